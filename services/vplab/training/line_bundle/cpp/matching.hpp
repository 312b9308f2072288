// From scored patches to points: vplab/vision/matching/patches.py and proposals.py, pipeline/similarity_grid.py.
#pragma once

#include <limits>
#include <numeric>

#include "images.hpp"

constexpr double kSpacing = 1.5;  // proposals._SPACING

// Returns the positions of values, best first; equal ones keep their order.
template <class Values, class Better>
std::vector<int> ranked(const Values& values, Better better) {
  std::vector<int> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return better(values[a], values[b]); });
  return order;
}

// Patch features of one tile.
struct PatchFeatures {
  Plane features;  // (h * w, D)
  int rows = 0, columns = 0;
  FrameTransform transform;
  int stride = 0;
  cv::Rect area;  // the tile in the image

  // Patches whose centre lies on the image and not on padding are the first of each axis.
  static int num_valid(int cells, int length, int stride) {
    int count = 0;
    while (count < cells && (count + 0.5) * stride <= std::max(double(length), 0.5 * stride)) ++count;
    return count;
  }
  int valid_rows() const { return num_valid(rows, transform.input.height, stride); }
  int valid_columns() const { return num_valid(columns, transform.input.width, stride); }

  cv::Point2f centre(int row, int column) const {
    return {float((column + 0.5) * stride / transform.scale_x()) + float(area.x),
            float((row + 0.5) * stride / transform.scale_y()) + float(area.y)};
  }
};

// How far a point is inside a tile; a tile border on the image's border does not count.
inline float inner_distance(const cv::Rect& tile, cv::Size image, cv::Point2f point) {
  float distance = std::numeric_limits<float>::infinity();
  if (tile.x > 0) distance = std::min(distance, point.x - float(tile.x));
  if (tile.y > 0) distance = std::min(distance, point.y - float(tile.y));
  if (tile.br().x < image.width) distance = std::min(distance, float(tile.br().x) - point.x);
  if (tile.br().y < image.height) distance = std::min(distance, float(tile.br().y) - point.y);
  return distance;
}

// All patches of the tiles that lie on the image, in one list.
struct TargetPatches {
  std::vector<PatchFeatures> tiles;
  cv::Size image;
  Plane features;  // (P, D)
  std::vector<cv::Point2f> centres;
  std::vector<int> tile_index;
  std::vector<bool> is_home;  // no other tile sees more around the patch
  double spacing = 0.0;       // largest distance of neighbours, in pixels of the image

  TargetPatches(std::vector<PatchFeatures> found, cv::Size image_size) : tiles(std::move(found)), image(image_size) {
    for (size_t tile = 0; tile < tiles.size(); ++tile) {
      const PatchFeatures& patches = tiles[tile];
      const int width = patches.valid_columns();
      for (int row = 0; row < patches.valid_rows(); ++row) {
        const int first = row * patches.columns;
        features.push_back(patches.features.rowRange(first, first + width));
        for (int column = 0; column < width; ++column) {
          centres.push_back(patches.centre(row, column));
          tile_index.push_back(int(tile));
          is_home.push_back(home_of(centres.back()) == int(tile));
        }
      }
      const double scale = std::min(patches.transform.scale_x(), patches.transform.scale_y());
      spacing = std::max(spacing, patches.stride / scale);
    }
  }

  // Returns one tile's values on its grid; padding is 0.
  Plane grid(int tile, const std::vector<float>& values) const {
    const PatchFeatures& patches = tiles[tile];
    Plane out(patches.rows, patches.columns, 0.0f);
    auto next = values.begin() + (std::find(tile_index.begin(), tile_index.end(), tile) - tile_index.begin());
    for (int row = 0; row < patches.valid_rows(); ++row)
      for (int column = 0; column < patches.valid_columns(); ++column) out(row, column) = *next++;
    return out;
  }

 private:
  int home_of(cv::Point2f point) const {
    int best = 0;
    for (size_t tile = 1; tile < tiles.size(); ++tile)
      if (inner_distance(tiles[tile].area, image, point) > inner_distance(tiles[best].area, image, point))
        best = int(tile);
    return best;
  }
};

// What the matcher's graph says of one class.
struct PatchScores {
  std::vector<float> scores, similarity, mean_similarity;
  std::vector<bool> candidates;
  double presence_score = 0.0;
  int max_points = 0;
};

struct Match {
  std::vector<cv::Point2f> points;                   // best first
  std::vector<std::vector<cv::Point2f>> background;  // for each tile
  std::vector<float> similarity;
  double presence_score = 0.0, presence_threshold = 0.0;
  bool is_present() const { return presence_score >= presence_threshold && !points.empty(); }
};

// Returns up to at_most candidates, best first, none nearer than a distance to a better one.
inline std::vector<int> pick_apart(const TargetPatches& target, const PatchScores& found, double distance) {
  std::vector<int> chosen;
  const float limit = float(distance * distance);
  for (int patch : ranked(found.scores, std::greater<float>())) {
    if (!found.candidates[patch] || !target.is_home[patch]) continue;
    const bool is_apart = std::all_of(chosen.begin(), chosen.end(), [&](int better) {
      const cv::Point2f offset = target.centres[patch] - target.centres[better];
      return offset.x * offset.x + offset.y * offset.y > limit;
    });
    if (!is_apart) continue;
    chosen.push_back(patch);
    if (int(chosen.size()) == found.max_points) break;
  }
  return chosen;
}

inline Match propose(const PatchScores& found, const TargetPatches& target, double threshold, int num_background) {
  Match match;
  match.similarity = found.similarity;
  match.presence_score = found.presence_score;
  match.presence_threshold = threshold;
  std::vector<int> chosen;
  if (found.presence_score >= threshold) chosen = pick_apart(target, found, kSpacing * target.spacing);
  std::vector<bool> is_free(target.centres.size(), true);
  for (int patch : chosen) {
    match.points.push_back(target.centres[patch]);
    is_free[patch] = false;
  }
  match.background.resize(target.tiles.size());
  for (int patch : ranked(found.mean_similarity, std::less<float>())) {
    std::vector<cv::Point2f>& of_tile = match.background[target.tile_index[patch]];
    if (is_free[patch] && int(of_tile.size()) < num_background) of_tile.push_back(target.centres[patch]);
  }
  return match;
}

// Moves a tile's similarity from the patch grid to the decoder's; padding there is 0.
inline Plane on_decoder_grid(const Plane& similarity, const PatchFeatures& patches, const FrameTransform& transform,
                             cv::Size low_res) {
  struct Position {
    int near, far;
    float weight;
    bool is_on_image;
  };
  const auto positions = [](int cells, int padded, int input, int original, int patch_input, int stride, int num_valid,
                            int num_patches) {
    std::vector<Position> found(cells);
    for (int i = 0; i < cells; ++i) {
      const double in_input = (i + 0.5) * padded / cells;
      const double in_tile = in_input * original / input;
      const double scale = double(patch_input) / original;
      const float position = float(std::clamp(in_tile * scale / stride - 0.5, 0.0, double(num_valid - 1)));
      const int near = std::min(int(position), num_patches - 1);
      found[i] = {near, std::min(near + 1, num_patches - 1), position - float(near), in_input < input};
    }
    return found;
  };
  const FrameTransform& own = patches.transform;
  const auto rows =
      positions(low_res.height, transform.padded.height, transform.input.height, transform.original.height,
                own.input.height, patches.stride, patches.valid_rows(), patches.rows);
  const auto columns =
      positions(low_res.width, transform.padded.width, transform.input.width, transform.original.width,
                own.input.width, patches.stride, patches.valid_columns(), patches.columns);
  const auto lerp = [](float near, float far, float weight) { return near * (1 - weight) + far * weight; };
  Plane out(low_res, 0.0f);
  for (int y = 0; y < low_res.height; ++y)
    for (int x = 0; x < low_res.width; ++x) {
      const Position &row = rows[y], &column = columns[x];
      if (!row.is_on_image || !column.is_on_image) continue;
      const float near = lerp(similarity(row.near, column.near), similarity(row.far, column.near), row.weight);
      const float far = lerp(similarity(row.near, column.far), similarity(row.far, column.far), row.weight);
      out(y, x) = lerp(near, far, column.weight);
    }
  return out;
}
