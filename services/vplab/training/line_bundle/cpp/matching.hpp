// From scored patches to points: vplab/vision/matching/patches.py, grids.py and proposals.py.
#pragma once

#include <limits>
#include <numeric>

#include "pixels.hpp"

constexpr double kSpacing = 1.5;  // proposals._SPACING
constexpr float kDoubt = 1e-4f;   // proposals._DOUBT

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
  cv::Rect area;               // the tile in the image
  std::vector<Plane> colours;  // of the whole padded frame; empty where the encoder gives none

  // Patches whose centre lies on the image and not on padding are the first of each axis.
  static int num_valid(int cells, int length, int stride) {
    int count = 0;
    while (count < cells && (count + 0.5) * stride <= std::max(double(length), 0.5 * stride)) ++count;
    return count;
  }
  int valid_rows() const { return num_valid(rows, transform.input.height, stride); }
  int valid_columns() const { return num_valid(columns, transform.input.width, stride); }

  // Returns the colours without their padding.
  std::vector<Plane> pixels() const {
    std::vector<Plane> found;
    for (const Plane& plane : colours) found.push_back(plane(cv::Rect({0, 0}, valid_part(plane.size(), transform))));
    return found;
  }

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

// ---- grids.py

// One axis of a source grid.
struct Axis {
  double cell;    // input pixels of the source's encoder for each cell
  int num_valid;  // cells that lie on the tile; the first ones
};

// Where a cell of another grid lies between two of the source's.
struct Position {
  int near, far;
  float weight;
  bool is_on_image;
};

// length: which axis, as the member of its sizes.
inline std::vector<Position> positions(const Axis& own, int num_values, const FrameTransform& source,
                                       const FrameTransform& transform, int num_cells, int cv::Size::*length) {
  std::vector<Position> found(num_cells);
  for (int i = 0; i < num_cells; ++i) {
    const double in_input = (i + 0.5) * (transform.padded.*length) / num_cells;
    const double in_tile = in_input * (transform.original.*length) / (transform.input.*length);
    const double scale = double(source.input.*length) / (source.original.*length);
    const float position = float(std::clamp(in_tile * scale / own.cell - 0.5, 0.0, double(own.num_valid - 1)));
    const int near = std::min(int(position), num_values - 1);
    found[i] = {near, std::min(near + 1, num_values - 1), position - float(near), in_input < transform.input.*length};
  }
  return found;
}

// Moves values bilinearly to another grid over the same tile; padding there is 0.
inline Plane resample(const Plane& values, const FrameTransform& source, const Axis& down, const Axis& across,
                      const FrameTransform& transform, cv::Size size) {
  const auto rows = positions(down, values.rows, source, transform, size.height, &cv::Size::height);
  const auto columns = positions(across, values.cols, source, transform, size.width, &cv::Size::width);
  const auto lerp = [](float near, float far, float weight) { return near * (1 - weight) + far * weight; };
  Plane out(size, 0.0f);
  for (int y = 0; y < size.height; ++y)
    for (int x = 0; x < size.width; ++x) {
      const Position &row = rows[y], &column = columns[x];
      if (!row.is_on_image || !column.is_on_image) continue;
      const float near = lerp(values(row.near, column.near), values(row.far, column.near), row.weight);
      const float far = lerp(values(row.near, column.far), values(row.far, column.far), row.weight);
      out(y, x) = lerp(near, far, column.weight);
    }
  return out;
}

// Moves a tile's similarity from the patch grid to another, such as that of the logits.
inline Plane on_decoder_grid(const Plane& similarity, const PatchFeatures& patches, const FrameTransform& transform,
                             cv::Size size) {
  const double cell = patches.stride;
  return resample(similarity, patches.transform, {cell, patches.valid_rows()}, {cell, patches.valid_columns()},
                  transform, size);
}

// Moves what is said of the pixels of a tile's colours, without their padding.
inline Plane pixels_on_grid(const Plane& pixels, const PatchFeatures& patches, const FrameTransform& transform,
                            cv::Size size) {
  const cv::Size frame = patches.colours[0].size(), padded = patches.transform.padded;
  return resample(pixels, patches.transform, {double(padded.height) / frame.height, pixels.rows},
                  {double(padded.width) / frame.width, pixels.cols}, transform, size);
}

// Brings what is said of a tile's patches, on their grid, to the pixels of its colours, without padding.
inline Plane patches_at_pixels(const Plane& grid, const PatchFeatures& patches) {
  const cv::Size frame = patches.colours[0].size();
  return on_decoder_grid(grid, patches, patches.transform,
                         frame)(cv::Rect({0, 0}, valid_part(frame, patches.transform)));
}

// Returns probabilities.
inline Plane shares_of(const Plane& odds) {
  Plane found(odds.size());
  std::transform(odds.begin(), odds.end(), found.begin(), [](float value) { return 1 / (1 + std::exp(-value)); });
  return found;
}

// ---- proposals.py

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
  std::vector<Plane> pixel_odds;  // log-odds of the tiles' pixels; empty where there is no pixel classifier
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

// Returns each tile's log-odds of foreground at the pixels of its colours.
inline std::vector<Plane> pixel_odds(const PixelClassifier& classifier, const PatchScores& found,
                                     const TargetPatches& target) {
  std::vector<float> map_odds;
  for (float value : found.similarity) {
    const float similarity = std::clamp(value, kDoubt, 1 - kDoubt);
    map_odds.push_back(std::clamp(std::log(similarity / (1 - similarity)), -kMaxLogOdds, kMaxLogOdds));
  }
  std::vector<Plane> odds;
  for (int tile = 0; tile < int(target.tiles.size()); ++tile) {
    const PatchFeatures& patches = target.tiles[tile];
    odds.push_back(classifier.log_odds(patches.pixels(), patches_at_pixels(target.grid(tile, map_odds), patches)));
  }
  return odds;
}

// Returns scores with the mean probability of each patch's pixels in the place of what patches say.
inline PatchScores by_pixels(PatchScores found, const TargetPatches& target, const std::vector<Plane>& odds) {
  std::vector<float> shares;
  for (size_t tile = 0; tile < odds.size(); ++tile) {
    const PatchFeatures& patches = target.tiles[tile];
    Plane frame(patches.colours[0].size(), 0.0f), grid;
    shares_of(odds[tile]).copyTo(frame(cv::Rect({0, 0}, odds[tile].size())));
    cv::resize(frame, grid, {patches.columns, patches.rows}, 0, 0, cv::INTER_AREA);
    for (int row = 0; row < patches.valid_rows(); ++row)
      shares.insert(shares.end(), grid[row], grid[row] + patches.valid_columns());
  }
  // Of thin things a patch has few pixels: half of the best one's are enough.
  const float least = std::min(0.5f, 0.5f * *std::max_element(shares.begin(), shares.end()));
  for (size_t patch = 0; patch < shares.size(); ++patch) found.candidates[patch] = shares[patch] > least;
  found.scores = found.similarity = shares;
  return found;
}

// classifier: none where the class has none.
inline Match propose(PatchScores found, const TargetPatches& target, double threshold, int num_background,
                     const PixelClassifier* classifier) {
  Match match;
  const bool has_colours = std::all_of(target.tiles.begin(), target.tiles.end(),
                                       [](const PatchFeatures& tile) { return !tile.colours.empty(); });
  if (classifier && found.presence_score >= threshold && has_colours) {
    match.pixel_odds = pixel_odds(*classifier, found, target);
    found = by_pixels(std::move(found), target, match.pixel_odds);
  }
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
