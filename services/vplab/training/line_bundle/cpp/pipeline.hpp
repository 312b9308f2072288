// From matched points to masks: vplab/vision/prompts.py, pipeline/decoding.py, grouping.py and segment.py, and what
// joins tiles in tiling.py.
#pragma once

#include <memory>

#include "graphs.hpp"

constexpr int kChunk = 32;                  // decoding.CHUNK
constexpr double kSameIou = 0.5;            // grouping._SAME_IOU
constexpr double kContained = 0.8;          // grouping._CONTAINED
constexpr double kMinShare = 0.7;           // grouping._MIN_SHARE
constexpr float kSure = 12.0f;              // grouping._SURE
constexpr float kSimilarityWeight = 0.5f;   // segment.SIMILARITY_WEIGHT
constexpr float kSimilarityDoubt = 1e-3f;   // segment._SIMILARITY_DOUBT
constexpr float kPixelWeight = 0.5f;        // segment.PIXEL_WEIGHT
constexpr double kSameObject = 0.5;         // tiling._SAME_OBJECT
constexpr double kContainedInTile = 0.8;    // tiling._CONTAINED
constexpr float kClip = 8.0f;               // tiling._CLIP

inline int count(const cv::Mat& mask) { return cv::countNonZero(mask); }

// ---- prompts.py

// Draws clicks on the low-resolution grid.
inline Plane rasterize_prompt(const PromptTokens& tokens, const SegmenterSpec& spec) {
  Plane canvas(spec.low_res, 0.0f);
  const float step_x = float(spec.input_size) / float(spec.low_res.width);
  const float step_y = float(spec.input_size) / float(spec.low_res.height);
  const float scale = float(-0.5 / (double(spec.prompt_raster->click_sigma) * spec.prompt_raster->click_sigma));
  const auto bump = [scale](int cells, float at) {
    std::vector<float> found(cells);
    for (int i = 0; i < cells; ++i) found[i] = std::exp(scale * (float(i) + 0.5f - at) * (float(i) + 0.5f - at));
    return found;
  };
  for (size_t i = 0; i < tokens.labels.size(); ++i) {
    if (tokens.labels[i] < 0) continue;
    const float peak = (tokens.labels[i] > 0 ? 1.0f : -1.0f) * spec.prompt_raster->click_peak;
    const std::vector<float> x = bump(canvas.cols, (tokens.coords[i].x + 0.5f) / step_x);
    const std::vector<float> y = bump(canvas.rows, (tokens.coords[i].y + 0.5f) / step_y);
    for (int row = 0; row < canvas.rows; ++row)
      for (int column = 0; column < canvas.cols; ++column) canvas(row, column) += peak * y[row] * x[column];
  }
  return canvas;
}

// Returns the tokens of one foreground point with all background points, in pixels of the tile.
inline PromptTokens prompt_tokens(cv::Point2f point, const std::vector<cv::Point2f>& background,
                                  const FrameTransform& transform, const SegmenterSpec& spec) {
  PromptTokens tokens;
  const auto add = [&](cv::Point2f at, float label) {
    tokens.coords.emplace_back(float(at.x * transform.scale_x()), float(at.y * transform.scale_y()));
    tokens.labels.push_back(label);
  };
  add(point, 1);
  for (const cv::Point2f& other : background) add(other, 0);
  add({0, 0}, -1);
  if (spec.prompt_raster) tokens.mask_logits = rasterize_prompt(tokens, spec);
  return tokens;
}

// ---- decoding.py

struct Candidate {
  Plane logits;  // on the decoder's grid, foreground above 0
  double predicted_iou = 0.0, similarity = 0.0;
  PromptTokens tokens;
  cv::Point2f point;  // the matched point, in pixels of the tile
  double score() const { return similarity * std::clamp(predicted_iou, 0.0, 1.0); }
};

// Chooses a plane by predicted IoU times how well its mask explains the similarity map; none where all are empty.
inline std::optional<Candidate> best_plane(const Decoder::Answer& answer, int first, int last, float threshold,
                                           const Plane& similarity) {
  std::optional<Candidate> best;
  double best_value = 0.0;
  const double total = cv::sum(similarity)[0];
  for (int plane = first; plane < last; ++plane) {
    const Plane logits = answer.planes[plane] - threshold;
    const Mask mask = logits > 0;
    const int area = count(mask);
    if (area == 0) continue;
    const double inside = cv::mean(similarity, mask)[0] * area;
    const double value = std::max(double(answer.ious[plane]), 1e-6) * (inside + 1e-6) / (area + 0.5 * total);
    if (value <= best_value) continue;
    best_value = value;
    best = Candidate{logits, answer.ious[plane], inside / area, {}, {}};
  }
  return best;
}

// Decodes prompts in chunks; each answer takes its prompt and its point.
inline std::vector<std::optional<Candidate>> decode(Decoder& decoder, int tile, const std::vector<PromptTokens>& tokens,
                                                    const std::vector<cv::Point2f>& points, const Plane& similarity,
                                                    int first, int last) {
  std::vector<std::optional<Candidate>> found;
  for (size_t start = 0; start < tokens.size(); start += kChunk) {
    const size_t stop = std::min(tokens.size(), start + kChunk);
    for (const Decoder::Answer& answer : decoder.decode(tile, {tokens.begin() + start, tokens.begin() + stop})) {
      found.push_back(best_plane(answer, first, last, decoder.spec().mask_threshold, similarity));
      if (!found.back()) continue;
      found.back()->tokens = tokens[found.size() - 1];
      found.back()->point = points[found.size() - 1];
    }
  }
  return found;
}

inline std::vector<Candidate> decode_points(Decoder& decoder, int tile, const std::vector<cv::Point2f>& points,
                                            const std::vector<cv::Point2f>& background, const Plane& similarity) {
  std::vector<PromptTokens> tokens;
  for (const cv::Point2f& point : points)
    tokens.push_back(prompt_tokens(point, background, decoder.transform(tile), decoder.spec()));
  const int planes = decoder.spec().num_planes;
  std::vector<Candidate> candidates;
  for (auto& found : decode(decoder, tile, tokens, points, similarity, planes > 1 ? 1 : 0, planes))
    if (found) candidates.push_back(std::move(*found));
  return candidates;
}

// Decodes every candidate again from its points, its mask's box and its own logits; keeps the better of the two.
inline void refine(Decoder& decoder, int tile, std::vector<Candidate>& candidates, const Plane& similarity) {
  const float step_x = float(decoder.spec().input_size) / float(decoder.spec().low_res.width);
  const float step_y = float(decoder.spec().input_size) / float(decoder.spec().low_res.height);
  std::vector<PromptTokens> tokens;
  std::vector<cv::Point2f> points;
  for (const Candidate& candidate : candidates) {
    PromptTokens again;
    for (size_t i = 0; i < candidate.tokens.labels.size(); ++i) {
      if (candidate.tokens.labels[i] < 0) continue;
      again.coords.push_back(candidate.tokens.coords[i]);
      again.labels.push_back(candidate.tokens.labels[i]);
    }
    const cv::Rect box = cv::boundingRect(Mask(candidate.logits > 0));
    again.coords.emplace_back(box.x * step_x, box.y * step_y);
    again.coords.emplace_back(box.br().x * step_x, box.br().y * step_y);
    again.labels.insert(again.labels.end(), {2.0f, 3.0f});
    again.mask_logits = candidate.logits;
    tokens.push_back(again);
    points.push_back(candidate.point);
  }
  auto found = decode(decoder, tile, tokens, points, similarity, 0, 1);
  for (size_t i = 0; i < candidates.size(); ++i)
    if (found[i] && found[i]->score() >= candidates[i].score()) candidates[i] = std::move(*found[i]);
}

// ---- grouping.py

struct Group {
  int tile = 0;
  Plane logits;
  double predicted_iou = 0.0, score = 0.0;  // the best member's
};

// Returns the log-odds of the members' mean probability, weighted by score.
inline Group mean_of(const std::vector<const Candidate*>& members) {
  float total = 0.0f;
  std::vector<float> weights;
  for (const Candidate* member : members) total += weights.emplace_back(float(std::max(member->score(), 1e-6)));
  Plane logits(members[0]->logits.size(), 0.0f);
  for (size_t i = 0; i < members.size(); ++i)
    for (int y = 0; y < logits.rows; ++y)
      for (int x = 0; x < logits.cols; ++x)
        logits(y, x) += weights[i] / total / (1 + std::exp(-std::clamp(members[i]->logits(y, x), -kSure, kSure)));
  for (float& value : logits) value = std::log(value / std::max(1 - value, 1e-7f));
  return {0, logits, members[0]->predicted_iou, members[0]->score()};
}

inline std::vector<int> best_first(const std::vector<Candidate>& candidates) {
  std::vector<double> scores;
  for (const Candidate& candidate : candidates) scores.push_back(candidate.score());
  return ranked(scores, std::greater<double>());
}

inline std::vector<Group> group_by_overlap(const std::vector<Candidate>& candidates) {
  std::vector<const Candidate*> order;
  std::vector<Mask> masks;
  for (int index : best_first(candidates)) {
    order.push_back(&candidates[index]);
    masks.push_back(candidates[index].logits > 0);
  }
  std::vector<bool> is_free(order.size(), true);
  std::vector<Group> groups;
  for (size_t best = 0; best < order.size(); ++best) {
    if (!is_free[best]) continue;
    std::vector<const Candidate*> members;
    const int area = count(masks[best]);
    for (size_t i = best; i < order.size(); ++i) {
      if (!is_free[i]) continue;
      const int common = count(masks[best] & masks[i]), other = count(masks[i]);
      if (i != best && common < kSameIou * (area + other - common) && common < kContained * other) continue;
      is_free[i] = false;
      if (order[i]->score() >= kMinShare * order[best]->score()) members.push_back(order[i]);
    }
    groups.push_back(mean_of(members));
  }
  return groups;
}

inline std::vector<Group> group_by_points(const std::vector<Candidate>& candidates, const Plane& similarity,
                                          int input_size, const FrameTransform& transform) {
  if (candidates.empty()) return {};
  const int size = int(candidates.size());
  std::vector<Mask> masks;
  std::vector<cv::Point> cells;
  for (const Candidate& candidate : candidates) {
    masks.push_back(candidate.logits > 0);
    const double x = candidate.point.x * transform.scale_x() * similarity.cols / input_size;
    const double y = candidate.point.y * transform.scale_y() * similarity.rows / input_size;
    cells.emplace_back(std::clamp(int(x), 0, similarity.cols - 1), std::clamp(int(y), 0, similarity.rows - 1));
  }
  std::vector<int> component(size);
  std::iota(component.begin(), component.end(), 0);
  for (bool is_done = false; !is_done;) {
    is_done = true;
    for (int i = 0; i < size; ++i)
      for (int j = 0; j < size; ++j)
        if (component[j] < component[i] && (masks[i](cells[j]) || masks[j](cells[i]))) {
          component[i] = component[j];
          is_done = false;
        }
  }
  const Mask is_foreground = similarity > 0.5;
  const std::vector<int> order = best_first(candidates);
  std::vector<Group> groups;
  for (int label = 0; label < size; ++label) {
    int num_members = 0, num_on_foreground = 0;
    for (int i = 0; i < size; ++i) {
      if (component[i] != label) continue;
      ++num_members;
      num_on_foreground += is_foreground(cells[i]) != 0;
    }
    if (2 * num_on_foreground <= num_members) continue;
    Mask covered(similarity.size(), uchar(0));
    Group group;
    for (int i : order) {
      if (component[i] != label) continue;
      const Mask gained = masks[i] & ~covered;
      if (2 * count(gained & is_foreground) <= count(gained)) continue;
      covered |= masks[i];
      if (group.logits.empty())
        group = {0, candidates[i].logits.clone(), candidates[i].predicted_iou, candidates[i].score()};
      else
        group.logits = cv::max(group.logits, candidates[i].logits);
    }
    if (!group.logits.empty()) groups.push_back(group);
  }
  if (groups.empty()) groups.push_back(mean_of({&candidates[order[0]]}));
  return groups;
}

// ---- segment.py and tiling.py

// A mask with its place in the image.
struct PlacedMask {
  cv::Rect area;  // the foreground's box
  Mask mask;      // of the area's size
};

struct Instance {
  PlacedMask placed;
  double score = 0.0, predicted_iou = 0.0;
};

struct SegmentOptions {
  bool groups_masks = false, refines = true;
  double min_mask_score = 0.0;
};

struct ClassSegmentation {
  Match match;
  std::vector<Instance> instances;  // best first

  bool is_present() const { return match.is_present() && !instances.empty(); }
  double score() const { return instances.empty() ? 0.0 : instances[0].score; }
  Mask mask(cv::Size image) const {
    Mask canvas(image, uchar(0));
    for (const Instance& instance : instances) canvas(instance.placed.area) |= instance.placed.mask;
    return canvas;
  }
};

// One connected piece of a group's mask, as one tile sees it.
struct Piece {
  cv::Rect tile;
  PlacedMask foreground;
  std::shared_ptr<const Plane> group_logits;  // of the tile's size, with the group's other pieces
  double similarity = 0.0, predicted_iou = 0.0;

  Plane logits() const {
    Plane own = group_logits->clone();
    Mask is_other = own > 0;
    is_other(foreground.area - tile.tl()).setTo(0, foreground.mask);
    cv::multiply(own, -1.0, own);
    group_logits->copyTo(own, ~is_other);
    return own;
  }
};

inline Mask foreground_in(const cv::Rect& area, const PlacedMask& placed) {
  Mask canvas(area.size(), uchar(0));
  const cv::Rect both = area & placed.area;
  if (!both.empty()) placed.mask(both - placed.area.tl()).copyTo(canvas(both - area.tl()));
  return canvas;
}

inline bool agree(const Piece& first, const Piece& second) {
  const cv::Rect common = first.tile & second.tile;
  if (common.empty() || (first.foreground.area & second.foreground.area).empty()) return false;
  const Mask a = foreground_in(common, first.foreground), b = foreground_in(common, second.foreground);
  const int smaller = std::min(count(a), count(b));
  const double share = first.tile == second.tile ? kContainedInTile : kSameObject;
  return smaller > 0 && count(a & b) >= share * smaller;
}

// Returns which pieces are one object, transitively.
inline std::vector<std::vector<int>> join_views(const std::vector<Piece>& pieces) {
  std::vector<int> parent(pieces.size());
  std::iota(parent.begin(), parent.end(), 0);
  const auto root = [&](int index) {
    while (parent[index] != index) index = parent[index];
    return index;
  };
  for (int a = 0; a < int(pieces.size()); ++a)
    for (int b = 0; b < a; ++b)
      if (agree(pieces[a], pieces[b])) parent[root(a)] = root(b);
  std::vector<std::vector<int>> groups;
  std::map<int, size_t> group_of;
  for (int index = 0; index < int(pieces.size()); ++index) {
    const auto [at, is_new] = group_of.emplace(root(index), groups.size());
    if (is_new) groups.emplace_back();
    groups[at->second].push_back(index);
  }
  return groups;
}

// Returns weights of pixels start..stop of a tile low..high: from about 0 at an inner border to 1 inside.
inline std::vector<float> ramp(int start, int stop, int low, int high, int length) {
  std::vector<float> weights;
  for (int i = start; i < stop; ++i) {
    float distance = std::numeric_limits<float>::infinity();
    if (low > 0) distance = std::min(distance, float(i) + 0.5f - float(low));
    if (high < length) distance = std::min(distance, float(high) - float(i) - 0.5f);
    weights.push_back(std::min(distance / float(std::max(1.0, kOverlap * (high - low))), 1.0f));
  }
  return weights;
}

// Puts the tiles' views of one object together: a mean of logits whose weight falls towards a tile's inner border.
inline PlacedMask blend(const std::vector<const Piece*>& pieces, cv::Size image) {
  if (pieces.size() == 1) return pieces[0]->foreground;
  cv::Rect area = pieces[0]->foreground.area;
  std::vector<cv::Rect> tiles;
  for (const Piece* piece : pieces) {
    area |= piece->foreground.area;
    if (std::find(tiles.begin(), tiles.end(), piece->tile) == tiles.end()) tiles.push_back(piece->tile);
  }
  Plane total(area.size(), 0.0f);
  for (const cv::Rect& tile : tiles) {
    const cv::Rect common = area & tile;
    if (common.empty()) continue;
    Plane most;
    for (const Piece* piece : pieces) {
      if (piece->tile != tile) continue;
      const Plane logits = piece->logits()(common - tile.tl());
      most = most.empty() ? logits.clone() : Plane(cv::max(most, logits));
    }
    const auto rows = ramp(common.y, common.br().y, tile.y, tile.br().y, image.height);
    const auto columns = ramp(common.x, common.br().x, tile.x, tile.br().x, image.width);
    Plane view = total(common - area.tl());
    for (int y = 0; y < view.rows; ++y)
      for (int x = 0; x < view.cols; ++x)
        view(y, x) += std::min(rows[y], columns[x]) * std::clamp(most(y, x), -kClip, kClip);
  }
  const Mask mask = total > 0;
  const cv::Rect box = cv::boundingRect(mask);
  return {box + area.tl(), mask(box).clone()};
}

// Cuts a group's mask into connected pieces; those smaller than a cell of the decoder's grid are noise.
inline void add_pieces(const cv::Rect& tile, const Group& group, const Plane& similarity, Decoder& decoder,
                       std::vector<Piece>& pieces) {
  const FrameTransform transform = decoder.transform(group.tile);
  const auto logits = std::make_shared<const Plane>(upsample_logits(group.logits, transform));
  const SegmenterSpec& spec = decoder.spec();
  const double cell = double(spec.input_size) / spec.low_res.height * spec.input_size / spec.low_res.width;
  const double smallest = 1 / (transform.scale_x() * transform.scale_y()) * cell;
  cv::Mat1i labels, stats;
  cv::Mat1d centroids;
  const int num = cv::connectedComponentsWithStats(Mask(*logits > 0), labels, stats, centroids, 8, CV_32S);
  for (int label = 1; label < num; ++label) {
    if (stats(label, cv::CC_STAT_AREA) < smallest) continue;
    const cv::Rect box(stats(label, cv::CC_STAT_LEFT), stats(label, cv::CC_STAT_TOP), stats(label, cv::CC_STAT_WIDTH),
                       stats(label, cv::CC_STAT_HEIGHT));
    const Mask inside = labels(box) == label;
    const double mean = cv::mean(similarity(box), inside)[0];
    pieces.push_back({tile, {box + tile.tl(), inside}, logits, mean, group.predicted_iou});
  }
}

// Groups the candidates of one tile, and gives the similarity map a say in the masks.
inline std::vector<Group> tile_groups(int tile, const std::vector<Candidate>& candidates, const Plane& similarity,
                                      Decoder& decoder, bool groups_masks) {
  std::vector<Group> groups =
      groups_masks ? group_by_points(candidates, similarity, decoder.spec().input_size, decoder.transform(tile))
                   : group_by_overlap(candidates);
  for (Group& group : groups) {
    group.tile = tile;
    for (int y = 0; y < similarity.rows; ++y)
      for (int x = 0; x < similarity.cols; ++x) {
        const float odds = std::clamp(similarity(y, x), kSimilarityDoubt, 1 - kSimilarityDoubt);
        group.logits(y, x) += kSimilarityWeight * std::log(odds / (1 - odds));
      }
  }
  return groups;
}

// Returns a tile's similarity map on the decoder's grid: of pixels where the match has them.
inline Plane similarity_on_grid(const TargetPatches& target, const Match& match, int tile,
                                const FrameTransform& transform, cv::Size low_res) {
  if (!match.pixel_odds.empty())
    return pixels_on_grid(shares_of(match.pixel_odds[tile]), target.tiles[tile], transform, low_res);
  return on_decoder_grid(target.grid(tile, match.similarity), target.tiles[tile], transform, low_res);
}

// Returns a group's logits with what the colours say of the object, and what pixels say of the class.
inline Plane sharpened(const TargetPatches& target, const Match& match, Decoder& decoder, const Group& group) {
  const Plane logits = decoder.sharpen(group.tile, group.logits);
  if (match.pixel_odds.empty()) return logits;
  const Plane odds = pixels_on_grid(match.pixel_odds[group.tile], target.tiles[group.tile],
                                    decoder.transform(group.tile), logits.size());
  return Plane(logits + kPixelWeight * odds);
}

// Turns the points of one class into its instances.
inline ClassSegmentation segment_matched(const Match& match, const TargetPatches& target, Decoder& decoder,
                                         const SegmentOptions& options, double group_share) {
  ClassSegmentation result{match, {}};
  if (!match.is_present()) return result;
  std::vector<Plane> maps;
  std::vector<Group> groups;
  double best = 0.0;
  for (int tile = 0; tile < int(target.tiles.size()); ++tile) {
    const PatchFeatures& patches = target.tiles[tile];
    maps.push_back(similarity_on_grid(target, match, tile, decoder.transform(tile), decoder.spec().low_res));
    const cv::Point2f origin = patches.area.tl(), end = patches.area.br();
    std::vector<cv::Point2f> points, background;
    for (const cv::Point2f& point : match.points)
      if (point.x >= origin.x && point.y >= origin.y && point.x <= end.x && point.y <= end.y)
        points.push_back(point - origin);
    for (const cv::Point2f& point : match.background[tile]) background.push_back(point - origin);
    std::vector<Candidate> candidates = decode_points(decoder, tile, points, background, maps[tile]);
    if (options.refines && !candidates.empty()) refine(decoder, tile, candidates, maps[tile]);
    for (Group& group : tile_groups(tile, candidates, maps[tile], decoder, options.groups_masks)) {
      best = std::max(best, group.score);
      groups.push_back(std::move(group));
    }
  }
  std::vector<Piece> pieces;
  for (Group& group : groups) {
    if (group.score < group_share * best) continue;
    const Plane similarity = upsample_logits(maps[group.tile], decoder.transform(group.tile));
    group.logits = sharpened(target, match, decoder, group);
    add_pieces(target.tiles[group.tile].area, group, similarity, decoder, pieces);
  }
  for (const std::vector<int>& indices : join_views(pieces)) {
    std::vector<const Piece*> views;
    double area = 0.0, similarity = 0.0, iou = -std::numeric_limits<double>::infinity();
    for (int index : indices) {
      views.push_back(&pieces[index]);
      const int size = count(pieces[index].foreground.mask);
      area += size;
      similarity += size * pieces[index].similarity;
      iou = std::max(iou, pieces[index].predicted_iou);
    }
    const PlacedMask placed = blend(views, target.image);
    const double score = similarity / area * std::clamp(iou, 0.0, 1.0);
    if (!placed.area.empty() && score >= options.min_mask_score) result.instances.push_back({placed, score, iou});
  }
  const auto is_better = [](const Instance& a, const Instance& b) { return a.score > b.score; };
  std::stable_sort(result.instances.begin(), result.instances.end(), is_better);
  return result;
}
