// What an object's own colours say about its mask: vplab/vision/colour_evidence.py.
#pragma once

#include "images.hpp"

constexpr float kLeastShare = 1e-3f;       // colour_evidence._LEAST_SHARE
constexpr double kMinMargin = 1.0 / 64.0;  // colour_evidence._MIN_MARGIN

struct ColourEvidence {
  double weight = 0.0, smoothing = 0.0, sure_logit = 0.0, reach = 0.0;
  int levels = 0;
};

// The colours of one tile, ready for any number of masks.
class ColourModel {
 public:
  // colours: red, green and blue planes in 0..1 of the whole padded frame, float32.
  ColourModel(const std::vector<Plane>& colours, const FrameTransform& transform, const ColourEvidence& evidence,
              double threshold)
      : evidence_(evidence), threshold_(float(threshold)), bins_(colours[0].size(), 0) {
    const int levels = evidence.levels;
    for (const Plane& plane : colours)
      for (int y = 0; y < bins_.rows; ++y)
        for (int x = 0; x < bins_.cols; ++x)
          bins_(y, x) = bins_(y, x) * levels + std::clamp(int(plane(y, x) * float(levels)), 0, levels - 1);
    valid_ = {{0, 0}, valid_part(bins_.size(), transform)};
    const int reach = int(std::nearbyint(4 * evidence.smoothing));
    kernel_ = cv::getGaussianKernel(2 * reach + 1, evidence.smoothing, CV_32F);
  }

  // Returns a mask's logits on the colours' grid with what the colours say of it.
  Plane sharpen(const Plane& logits) const {
    Plane enlarged;
    cv::resize(logits, enlarged, bins_.size(), 0, 0, cv::INTER_LINEAR);
    const Plane certainty = enlarged(valid_) - threshold_;
    const cv::Rect box = cv::boundingRect(Mask(certainty > 0));
    if (box.empty()) return enlarged;
    const double wide = std::max(evidence_.reach * std::max(box.width, box.height), kMinMargin * bins_.cols);
    const int margin = int(std::nearbyint(wide));
    const cv::Rect area = cv::Rect(box.x - margin, box.y - margin, box.width + 2 * margin, box.height + 2 * margin) &
                          cv::Rect({0, 0}, certainty.size());
    double most = 0.0;
    cv::minMaxLoc(certainty(area), nullptr, &most);
    const Mask inside = certainty(area) > std::min(evidence_.sure_logit, 0.5 * most);
    const Mask outside = certainty(area) < -evidence_.sure_logit;
    if (cv::countNonZero(outside) == 0) return enlarged;
    const cv::Mat1i bins = bins_(valid_)(area);
    const std::vector<float> of_object = shares(bins, inside), of_rest = shares(bins, outside);
    for (int y = 0; y < valid_.height; ++y)
      for (int x = 0; x < valid_.width; ++x) {
        const int bin = bins_(y, x);
        enlarged(y, x) += float(evidence_.weight) * (std::log(of_object[bin]) - std::log(of_rest[bin]));
      }
    return enlarged;
  }

 private:
  std::vector<float> shares(const cv::Mat1i& bins, const Mask& counted) const {
    const int levels = evidence_.levels;
    Plane counts(levels, levels * levels, 0.0f);
    float* count = counts.ptr<float>();
    for (int y = 0; y < bins.rows; ++y)
      for (int x = 0; x < bins.cols; ++x)
        if (counted(y, x)) count[bins(y, x)] += 1.0f;
    for (int turn = 0; turn < 3; ++turn) {  // blurs the first axis and moves it to the end
      Plane blurred;
      cv::sepFilter2D(counts, blurred, -1, Plane(1, 1, 1.0f), kernel_, {-1, -1}, 0, cv::BORDER_REFLECT);
      counts = Plane(blurred.t()).reshape(1, levels);
    }
    const float total = float(std::max(cv::countNonZero(counted), 1));
    std::vector<float> found(counts.begin(), counts.end());
    for (float& value : found) value = value / total + kLeastShare;
    return found;
  }

  ColourEvidence evidence_;
  float threshold_;
  cv::Mat1i bins_;
  cv::Rect valid_;
  Plane kernel_;
};
