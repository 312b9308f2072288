// Images and masks between the original's frame and a model's: vplab/vision/preprocessing.py, resizing.py, tiling.py
// (layout) and masks.py.
#pragma once

#include <algorithm>
#include <cmath>
#include <opencv2/core.hpp>
#include <opencv2/imgproc.hpp>
#include <string>
#include <vector>

using Plane = cv::Mat1f;
using Mask = cv::Mat1b;  // 255 is foreground

struct Preprocessing {
  bool keeps_aspect = true;  // else the image is stretched to the square
  int size = 0;
  bool is_bicubic = false;
  std::vector<float> mean_rgb, std_rgb;
};

struct FrameTransform {
  cv::Size original, input, padded;
  double scale_x() const { return double(input.width) / original.width; }
  double scale_y() const { return double(input.height) / original.height; }
};

inline FrameTransform frame_transform(cv::Size original, const Preprocessing& preprocessing) {
  const int side = preprocessing.size;
  if (!preprocessing.keeps_aspect) return {original, {side, side}, {side, side}};
  const double scale = side * 1.0 / std::max(original.width, original.height);
  const auto scaled = [scale](int length) { return std::max(1, int(length * scale + 0.5)); };
  return {original, {scaled(original.width), scaled(original.height)}, {side, side}};
}

// Returns how much of a grid over the padded frame lies on the image: its first columns and rows.
inline cv::Size valid_part(cv::Size grid, const FrameTransform& transform) {
  const auto share = [](int length, int part, int whole) { return (length * part + whole - 1) / whole; };
  return {share(grid.width, transform.input.width, transform.padded.width),
          share(grid.height, transform.input.height, transform.padded.height)};
}

inline double filter(double x, bool is_bicubic) {
  x = std::abs(x);
  if (!is_bicubic) return std::max(0.0, 1.0 - x);
  const double a = -0.5;
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  return x < 2.0 ? (((x - 5) * x + 8) * x - 4) * a : 0.0;
}

// Resizes the rows of an RGB image as Pillow does, in fixed point.
inline cv::Mat resize_rows(const cv::Mat& pixels, int length, bool is_bicubic) {
  constexpr int bits = 22;
  const double scale = double(pixels.rows) / length, stretch = std::max(scale, 1.0);
  const double support = (is_bicubic ? 2.0 : 1.0) * stretch, inverse = 1.0 / stretch;
  cv::Mat out(length, pixels.cols, pixels.type());
  std::vector<int> sums(pixels.cols * pixels.channels());
  for (int index = 0; index < length; ++index) {
    const double centre = (index + 0.5) * scale;
    const int start = std::max(0, int(centre - support + 0.5));
    const int stop = std::min(pixels.rows, int(centre + support + 0.5));
    std::vector<double> weights;
    double total = 0.0;
    for (int row = start; row < stop; ++row) {
      weights.push_back(filter((row - centre + 0.5) * inverse, is_bicubic));
      total += weights.back();
    }
    const double factor = total != 0.0 ? 1.0 / total : 1.0;
    std::fill(sums.begin(), sums.end(), 1 << (bits - 1));
    for (int row = start; row < stop; ++row) {
      const double weight = weights[row - start] * factor * (1 << bits);
      const int whole = int(weight < 0 ? weight - 0.5 : weight + 0.5);
      const uchar* from = pixels.ptr(row);
      for (size_t i = 0; i < sums.size(); ++i) sums[i] += whole * from[i];
    }
    uchar* to = out.ptr(index);
    for (size_t i = 0; i < sums.size(); ++i) to[i] = cv::saturate_cast<uchar>(sums[i] >> bits);
  }
  return out;
}

inline cv::Mat resize_rgb(const cv::Mat& image_rgb, cv::Size size, bool is_bicubic) {
  const int less_height = image_rgb.rows - size.height, less_width = image_rgb.cols - size.width;
  const bool goes_down_first = less_height > 0 && less_height > 2 * less_width;
  cv::Mat pixels = image_rgb;
  if (goes_down_first) pixels = resize_rows(pixels, size.height, is_bicubic);
  if (less_width != 0) pixels = resize_rows(pixels.t(), size.width, is_bicubic).t();
  return less_height == 0 || goes_down_first ? pixels : resize_rows(pixels, size.height, is_bicubic);
}

// Returns (3, S, S), normalised; padding is zero.
inline std::vector<float> preprocess(const cv::Mat& image_rgb, const Preprocessing& preprocessing) {
  const FrameTransform transform = frame_transform(image_rgb.size(), preprocessing);
  const cv::Mat resized = resize_rgb(image_rgb, transform.input, preprocessing.is_bicubic);
  const size_t side = preprocessing.size;
  std::vector<float> tensor(3 * side * side, 0.0f);
  for (int y = 0; y < resized.rows; ++y)
    for (int x = 0; x < resized.cols; ++x)
      for (int c = 0; c < 3; ++c)
        tensor[(c * side + y) * side + x] =
            (resized.at<cv::Vec3b>(y, x)[c] - preprocessing.mean_rgb[c]) / preprocessing.std_rgb[c];
  return tensor;
}

constexpr double kOverlap = 0.25;  // tiling.OVERLAP

inline std::vector<int> tile_starts(int length, int side) {
  if (length <= side) return {0};
  const int step = std::max(1, side - int(std::ceil(kOverlap * side)));
  const int count = 1 + int(std::ceil(double(length - side) / step));
  std::vector<int> starts;
  for (int i = 0; i < count; ++i) starts.push_back(int(std::nearbyint(double(i) * (length - side) / (count - 1))));
  return starts;
}

inline std::vector<cv::Rect> tile_layout(cv::Size image, int side) {
  const cv::Rect whole({0, 0}, image);
  if (side == 0 || std::max(image.width, image.height) <= side) return {whole};
  std::vector<cv::Rect> tiles;
  for (int y : tile_starts(image.height, side))
    for (int x : tile_starts(image.width, side)) tiles.push_back(cv::Rect(x, y, side, side) & whole);
  return tiles;
}

// Bilinear with positions rounded to float32, as torch's; OpenCV's are the same where the ratio is a power of two.
inline Plane resize_plane(const Plane& plane, cv::Size size) {
  const auto is_power = [](int after, int before) {
    const double power = std::log2(double(after) / before);
    return power == std::floor(power);
  };
  Plane out;
  if (is_power(size.width, plane.cols) && is_power(size.height, plane.rows)) {
    cv::resize(plane, out, size, 0, 0, cv::INTER_LINEAR);
    return out;
  }
  struct Tap {
    int near, far;
    float weight;
  };
  const auto taps = [](int before, int after) {
    std::vector<Tap> found(after);
    const float ratio = float(before) / float(after);
    for (int i = 0; i < after; ++i) {
      const float position = std::max((float(i) + 0.5f) * ratio - 0.5f, 0.0f);
      const int near = std::min(int(position), before - 1);
      found[i] = {near, std::min(near + 1, before - 1), position - float(near)};
    }
    return found;
  };
  const std::vector<Tap> rows = taps(plane.rows, size.height), columns = taps(plane.cols, size.width);
  out.create(size);
  std::vector<float> line(plane.cols);
  for (int y = 0; y < size.height; ++y) {
    const float *near = plane[rows[y].near], *far = plane[rows[y].far];
    for (int x = 0; x < plane.cols; ++x) line[x] = near[x] + (far[x] - near[x]) * rows[y].weight;
    for (int x = 0; x < size.width; ++x) {
      const Tap& tap = columns[x];
      out(y, x) = line[tap.near] + (line[tap.far] - line[tap.near]) * tap.weight;
    }
  }
  return out;
}

// Brings logits over the whole padded input to the original's pixels.
inline Plane upsample_logits(const Plane& low_res, const FrameTransform& transform) {
  const Plane padded = resize_plane(low_res, transform.padded);
  return resize_plane(padded(cv::Rect({0, 0}, transform.input)), transform.original);
}
