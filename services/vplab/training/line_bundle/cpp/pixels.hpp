// What the pixels of the references say: vplab/vision/matching/pixel_classifier.py.
#pragma once

#include <array>
#include <numeric>

#include "images.hpp"

constexpr int kNumLevels = 5;          // pixel_classifier.NUM_LEVELS
constexpr int kNumFeatures = 35;       // pixel_classifier.NUM_FEATURES
constexpr int kHidden = 24;            // pixel_classifier.HIDDEN
constexpr float kMaxLogOdds = 8.0f;    // pixel_classifier.MAX_LOG_ODDS
constexpr float kMapScale = 3.0f;      // pixel_classifier._MAP_SCALE
constexpr float kFeatureLimit = 4.0f;  // pixel_classifier._LIMIT

// What one level of the pyramid says of a pixel.
using LevelFeatures = cv::Mat_<cv::Vec<float, kNumFeatures / kNumLevels>>;

// level: red, green, blue, and the square of the first level's mean of colours.
inline LevelFeatures level_features(const cv::Mat4f& level) {
  Plane grey(level.size()), square(level.size());
  for (int y = 0; y < level.rows; ++y)
    for (int x = 0; x < level.cols; ++x) {
      const cv::Vec4f& pixel = level(y, x);
      grey(y, x) = (pixel[0] + pixel[1] + pixel[2]) / 3.0f;
      square(y, x) = pixel[3];
    }
  const auto derivative = [&grey](int x, int y, double scale) {
    Plane found;
    cv::Sobel(grey, found, CV_32F, x, y, 3, scale, 0, cv::BORDER_REFLECT);
    return found;
  };
  const Plane right = derivative(1, 0, 1.0 / 8), down = derivative(0, 1, 1.0 / 8);
  const Plane across = derivative(2, 0, 1.0 / 16), along = derivative(0, 2, 1.0 / 16);
  const Plane mixed = derivative(1, 1, 1.0 / 4);
  Plane mean, mean_square;
  cv::blur(grey, mean, {3, 3}, {-1, -1}, cv::BORDER_REFLECT);
  cv::blur(square, mean_square, {3, 3}, {-1, -1}, cv::BORDER_REFLECT);
  LevelFeatures found(level.size());
  for (int y = 0; y < level.rows; ++y)
    for (int x = 0; x < level.cols; ++x) {
      const cv::Vec4f& pixel = level(y, x);
      const float middle = (across(y, x) + along(y, x)) / 2;
      const float spread = std::hypot((across(y, x) - along(y, x)) / 2, mixed(y, x));
      const float variance = mean_square(y, x) - mean(y, x) * mean(y, x);
      found(y, x) = {pixel[0],        pixel[1],        pixel[2], std::hypot(right(y, x), down(y, x)),
                     middle + spread, middle - spread, std::sqrt(std::max(variance, 0.0f))};
    }
  return found;
}

// Returns what each level of a pyramid says, brought to the size of the first; colours: planes without padding.
inline std::array<LevelFeatures, kNumLevels> pixel_features(const std::vector<Plane>& colours) {
  cv::Mat4f level(colours[0].size());
  for (int y = 0; y < level.rows; ++y)
    for (int x = 0; x < level.cols; ++x) {
      cv::Vec4f& pixel = level(y, x);
      for (int c = 0; c < 3; ++c) pixel[c] = std::clamp(colours[c](y, x), 0.0f, 1.0f);
      const float mean = (pixel[0] + pixel[1] + pixel[2]) / 3.0f;
      pixel[3] = mean * mean;
    }
  std::array<LevelFeatures, kNumLevels> found;
  for (int number = 0; number < kNumLevels; ++number) {
    if (number > 0) {
      cv::Mat4f smaller;
      const cv::Size size(std::max(2, (level.cols + 1) / 2), std::max(2, (level.rows + 1) / 2));
      cv::resize(level, smaller, size, 0, 0, cv::INTER_AREA);
      level = smaller;
    }
    found[number] = level_features(level);
    if (number > 0) {
      LevelFeatures enlarged;
      cv::resize(found[number], enlarged, found[0].size(), 0, 0, cv::INTER_LINEAR);
      found[number] = enlarged;
    }
  }
  return found;
}

// A network with two hidden layers and a linear part beside them.
class PixelClassifier {
 public:
  // How many numbers it is made of.
  static constexpr size_t size() {
    return 2 * kNumFeatures + kNumInputs * kHidden + kHidden + kHidden * kHidden + kHidden + kHidden + kNumInputs + 1;
  }

  // vector: what PixelClassifier.to_vector gave, of that size.
  explicit PixelClassifier(const float* vector) {
    const auto take = [&vector](auto& values) {
      std::copy(vector, vector + values.size(), values.begin());
      vector += values.size();
    };
    take(mean_);
    take(deviation_);
    for (Row& row : to_first_) take(row);
    take(first_bias_);
    for (Row& row : to_second_) take(row);
    take(second_bias_);
    take(from_second_);
    take(from_inputs_);
    bias_ = *vector;
  }

  // Returns the log-odds of foreground; colours: planes without padding, map_odds: of the similarity map.
  Plane log_odds(const std::vector<Plane>& colours, const Plane& map_odds) const {
    const std::array<LevelFeatures, kNumLevels> features = pixel_features(colours);
    Plane found(map_odds.size());
    for (int y = 0; y < found.rows; ++y)
      for (int x = 0; x < found.cols; ++x) {
        Inputs row;
        float* next = row.data();
        for (const LevelFeatures& level : features) next = std::copy_n(level(y, x).val, level.channels(), next);
        for (int i = 0; i < kNumFeatures; ++i)
          row[i] = std::clamp((row[i] - mean_[i]) / deviation_[i], -kFeatureLimit, kFeatureLimit);
        row[kNumFeatures] = std::clamp(map_odds(y, x), -kMaxLogOdds, kMaxLogOdds) / kMapScale;
        found(y, x) = std::clamp(forward(row), -kMaxLogOdds, kMaxLogOdds);
      }
    return found;
  }

 private:
  static constexpr int kNumInputs = kNumFeatures + 1;
  using Row = std::array<float, kHidden>;
  using Inputs = std::array<float, kNumInputs>;

  template <size_t N>
  static Row layer(const std::array<float, N>& values, const std::array<Row, N>& weights, const Row& bias) {
    Row sums{};
    for (size_t i = 0; i < N; ++i)
      for (int j = 0; j < kHidden; ++j) sums[j] += values[i] * weights[i][j];
    for (int j = 0; j < kHidden; ++j) sums[j] = std::max(sums[j] + bias[j], 0.0f);
    return sums;
  }

  float forward(const Inputs& row) const {
    const Row second = layer(layer(row, to_first_, first_bias_), to_second_, second_bias_);
    return std::inner_product(second.begin(), second.end(), from_second_.begin(), 0.0f) +
           std::inner_product(row.begin(), row.end(), from_inputs_.begin(), 0.0f) + bias_;
  }

  std::array<float, kNumFeatures> mean_, deviation_;
  std::array<Row, kNumInputs> to_first_;
  std::array<Row, kHidden> to_second_;
  Row first_bias_, second_bias_, from_second_;
  Inputs from_inputs_;
  float bias_;
};
