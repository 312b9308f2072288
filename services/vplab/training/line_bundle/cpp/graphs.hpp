// The bundle's graphs in ONNX Runtime, with what model.json says of them: Encoder, Matcher and Decoder of
// line_program.py.
#pragma once

#include <onnxruntime_cxx_api.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <regex>
#include <sstream>
#include <stdexcept>

#include "colours.hpp"
#include "matching.hpp"

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

struct Failure : std::runtime_error {
  Failure(const fs::path& file, const std::string& problem) : std::runtime_error(file.string() + ": " + problem) {}
};

// Reads a JSON file, and what build makes of it; errors name the file.
template <class Build>
auto from_json(const fs::path& file, Build build) {
  std::ifstream stream(file);
  if (!stream) throw Failure(file, "cannot be read");
  try {
    return build(Json::parse(stream));
  } catch (const Json::exception& error) {
    throw Failure(file, error.what());
  }
}

struct Tensor {
  std::vector<int64_t> shape;
  std::vector<float> values;
  size_t size_from(size_t axis) const {
    return std::accumulate(shape.begin() + axis, shape.end(), size_t(1), std::multiplies<size_t>());
  }
};

// Reads a little-endian float32 array as numpy.save writes it.
inline Tensor read_npy(const fs::path& file) {
  std::ifstream stream(file, std::ios::binary);
  std::array<unsigned char, 10> start{};
  stream.read(reinterpret_cast<char*>(start.data()), start.size());
  if (!stream || std::string(start.begin() + 1, start.begin() + 6) != "NUMPY" || start[6] != 1)
    throw Failure(file, "is no .npy file of version 1");
  std::string header(start[8] + 256 * start[9], ' ');
  stream.read(header.data(), std::streamsize(header.size()));
  std::smatch match;
  static const std::regex float32("'descr': '<f4', 'fortran_order': False, 'shape': \\(([^)]*)\\)");
  if (!std::regex_search(header, match, float32)) throw Failure(file, "holds no float32 in C order");
  Tensor found;
  std::istringstream shape(match[1]);
  for (int64_t length; shape >> length; shape.ignore()) found.shape.push_back(length);
  found.values.resize(found.size_from(0));
  stream.read(reinterpret_cast<char*>(found.values.data()), std::streamsize(found.values.size() * sizeof(float)));
  if (!stream) throw Failure(file, "ends early");
  return found;
}

// Wraps values, which have to live until the graph ran.
template <class T>
Ort::Value wrap(const T* values, const std::vector<int64_t>& shape) {
  static const Ort::MemoryInfo memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  const size_t count = std::accumulate(shape.begin(), shape.end(), size_t(1), std::multiplies<size_t>());
  return Ort::Value::CreateTensor<T>(memory, const_cast<T*>(values), count, shape.data(), shape.size());
}

class Graph {
 public:
  Graph(const fs::path& file, int threads) : file_(file) {
    static const Ort::Env environment(ORT_LOGGING_LEVEL_ERROR, "segment");
    Ort::SessionOptions options;
    options.SetIntraOpNumThreads(threads);
    options.SetInterOpNumThreads(1);
    options.SetLogSeverityLevel(3);
    // Fused, it is slower on a CPU (ONNX Runtime 1.31).
    options.AddConfigEntry("optimization.disable_specified_optimizers", "SkipLayerNormFusion");
    try {
      session_ = Ort::Session(environment, file.c_str(), options);
    } catch (const Ort::Exception& error) {
      throw Failure(file, error.what());
    }
  }

  bool takes(const std::string& input) const {
    Ort::AllocatorWithDefaultOptions allocator;
    for (size_t i = 0; i < session_.GetInputCount(); ++i)
      if (session_.GetInputNameAllocated(i, allocator).get() == input) return true;
    return false;
  }

  std::vector<Ort::Value> run(const std::vector<const char*>& inputs, const std::vector<Ort::Value>& values,
                              const std::vector<const char*>& outputs) {
    try {
      return session_.Run(Ort::RunOptions{nullptr}, inputs.data(), values.data(), inputs.size(), outputs.data(),
                          outputs.size());
    } catch (const Ort::Exception& error) {
      throw Failure(file_, error.what());
    }
  }

  // Copies an output, which has so many float32.
  std::vector<float> copied(const Ort::Value& value, size_t count) const {
    const auto info = value.GetTensorTypeAndShapeInfo();
    if (info.GetElementType() != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT || info.GetElementCount() != count)
      throw Failure(file_, "an output is not what model.json says");
    const float* data = value.GetTensorData<float>();
    return {data, data + count};
  }

 private:
  fs::path file_;
  Ort::Session session_{nullptr};
};

// Copies one plane of a tensor's values.
inline Plane plane_of(const float* values, cv::Size size) {
  return Plane(size.height, size.width, const_cast<float*>(values)).clone();
}

// An encoder's outputs for one image by role.
using Outputs = std::map<std::string, Tensor>;

// Returns red, green and blue.
inline std::vector<Plane> planes_of(const Tensor& colours) {
  const cv::Size size(int(colours.shape.at(2)), int(colours.shape.at(1)));
  std::vector<Plane> planes;
  for (int c = 0; c < 3; ++c) planes.push_back(plane_of(colours.values.data() + c * colours.size_from(1), size));
  return planes;
}

class Encoder {
 public:
  struct Output {
    std::string name, role;
    std::vector<int64_t> shape;
    int stride;
  };

  Encoder(const fs::path& folder, const std::string& precision, int threads)
      : rounds_(precision == "float16"), graph_(read(folder), threads) {}

  const Preprocessing& preprocessing() const { return preprocessing_; }

  Outputs encode(const cv::Mat& image_rgb) {
    const std::vector<float> image = preprocess(image_rgb, preprocessing_);
    std::vector<Ort::Value> inputs;
    inputs.push_back(wrap(image.data(), {1, 3, preprocessing_.size, preprocessing_.size}));
    std::vector<const char*> names;
    for (const Output& output : outputs_) names.push_back(output.name.c_str());
    const std::vector<Ort::Value> values = graph_.run({"image"}, inputs, names);
    Outputs found;
    for (size_t i = 0; i < outputs_.size(); ++i) {
      Tensor& tensor = found[outputs_[i].role] = {outputs_[i].shape, {}};
      tensor.values = rounded(graph_.copied(values[i], tensor.size_from(0)));
    }
    return found;
  }

  PatchFeatures tile_patches(const cv::Rect& area, const Outputs& outputs) const {
    const auto is_features = [](const Output& output) { return output.role == "patch_features"; };
    const auto output = std::find_if(outputs_.begin(), outputs_.end(), is_features);
    if (output == outputs_.end()) throw Failure(file_, "the feature encoder has no patch features");
    const Tensor& tensor = outputs.at("patch_features");
    PatchFeatures patches;
    patches.rows = int(tensor.shape[0]);
    patches.columns = int(tensor.shape[1]);
    patches.features = Plane(patches.rows * patches.columns, int(tensor.shape[2]),
                             const_cast<float*>(tensor.values.data())).clone();
    patches.transform = frame_transform(area.size(), preprocessing_);
    patches.stride = output->stride;
    patches.area = area;
    if (const auto colours = outputs.find("colours"); colours != outputs.end())
      patches.colours = planes_of(colours->second);
    return patches;
  }

 private:
  // Returns the graph's file.
  fs::path read(const fs::path& folder) {
    file_ = folder / "model.json";
    return from_json(file_, [&](const Json& said) {
      if (said.value("kind", "encoder") != "encoder") throw Failure(file_, "is of no encoder");
      const Json& preprocessing = said.at("preprocessing");
      preprocessing_.keeps_aspect = preprocessing.at("resize") == "longest_side";
      preprocessing_.size = preprocessing.at("size");
      preprocessing_.is_bicubic = preprocessing.value("interpolation", "bilinear") == "bicubic";
      preprocessing_.mean_rgb = preprocessing.at("mean_rgb").get<std::vector<float>>();
      preprocessing_.std_rgb = preprocessing.at("std_rgb").get<std::vector<float>>();
      for (const Json& output : said.at("outputs"))
        outputs_.push_back({output.at("name"), output.at("role"), output.at("shape"), output.at("stride")});
      return folder / said.value("graph", "encoder.onnx");
    });
  }

  // The services exchange outputs in half precision.
  std::vector<float> rounded(std::vector<float> values) const {
    if (!rounds_) return values;
    for (float& value : values) value = std::clamp(value, -65504.0f, 65504.0f);
    cv::Mat wide(1, int(values.size()), CV_32F, values.data()), half;
    wide.convertTo(half, CV_16F);
    half.convertTo(wide, CV_32F);
    return values;
  }

  bool rounds_;
  fs::path file_;
  Preprocessing preprocessing_;
  std::vector<Output> outputs_;
  Graph graph_;  // last: read() fills the others
};

class Matcher {
 public:
  Matcher(const fs::path& graph, const fs::path& references, size_t num_classes, int threads) : graph_(graph, threads) {
    for (const std::string name : kReferences) {
      const fs::path file = references / (name + ".npy");
      references_.push_back(read_npy(file));
      if (references_.back().shape.at(0) != int64_t(num_classes)) throw Failure(file, "is of other classes");
    }
  }

  PatchScores score(int class_index, const Plane& features, float min_relative_score, int64_t max_points) {
    std::vector<Ort::Value> inputs;
    for (const Tensor& all : references_) {
      std::vector<int64_t> shape = all.shape;
      shape[0] = 1;
      inputs.push_back(wrap(all.values.data() + class_index * all.size_from(1), shape));
    }
    inputs.push_back(wrap(features.ptr<float>(), {features.rows, features.cols}));
    inputs.push_back(wrap(&min_relative_score, {}));
    inputs.push_back(wrap(&max_points, {}));
    std::vector<const char*> names(kReferences.begin(), kReferences.end());
    names.insert(names.end(), {"features", "min_relative_score", "max_points"});
    const auto found = graph_.run(
        names, inputs, {"scores", "candidates", "similarity", "mean_similarity", "presence_score", "num_points"});
    const bool* candidates = found[1].GetTensorData<bool>();
    PatchScores scores;
    scores.scores = graph_.copied(found[0], features.rows);
    scores.candidates.assign(candidates, candidates + features.rows);
    scores.similarity = graph_.copied(found[2], features.rows);
    scores.mean_similarity = graph_.copied(found[3], features.rows);
    scores.presence_score = graph_.copied(found[4], 1)[0];
    scores.max_points = int(found[5].GetTensorData<int64_t>()[0]);
    return scores;
  }

 private:
  static constexpr std::array<const char*, 4> kReferences = {"rows", "row_weight", "centres", "centre_kind"};
  Graph graph_;
  std::vector<Tensor> references_;
};

struct PromptTokens {
  std::vector<cv::Point2f> coords;  // pixels of the encoder's input
  std::vector<float> labels;        // -1 padding, 0 background, 1 foreground, 2 and 3 the box's corners
  Plane mask_logits;                // empty where the prompt has no mask input
};

struct PromptRaster {
  float click_peak, click_sigma;
};

struct SegmenterSpec {
  int input_size = 0, num_planes = 0;
  cv::Size low_res;
  float mask_threshold = 0.0f;
  std::optional<PromptRaster> prompt_raster;
  std::optional<ColourEvidence> colour_evidence;
};

// The mask decoder's graph, for any image.
struct DecoderGraph {
  DecoderGraph(const fs::path& folder, int threads)
      : graph(read(folder), threads), fuses_early(graph.takes("early_features")) {}

  SegmenterSpec spec;
  Graph graph;
  bool fuses_early;

 private:
  fs::path read(const fs::path& folder) {
    const fs::path file = folder / "model.json";
    return from_json(file, [&](const Json& said) {
      if (said.value("kind", "encoder") != "segmenter") throw Failure(file, "is of no segmenter");
      spec.input_size = said.at("input_size");
      spec.low_res = {said.at("low_res_hw").at(1), said.at("low_res_hw").at(0)};
      spec.num_planes = said.value("num_planes", 4);
      spec.mask_threshold = said.value("mask_threshold", 0.0f);
      if (const Json raster = said.value("prompt_raster", Json()); !raster.is_null())
        spec.prompt_raster = PromptRaster{raster.at("click_peak"), raster.at("click_sigma")};
      if (const Json colours = said.value("colour_evidence", Json()); !colours.is_null())
        spec.colour_evidence = ColourEvidence{colours.at("weight"), colours.at("smoothing"), colours.at("sure_logit"),
                                              colours.at("reach"), colours.at("levels")};
      return folder / said.value("graph", "decoder.onnx");
    });
  }
};

struct EncodedTile {
  cv::Rect area;
  Outputs outputs;
};

// The pipeline's mask decoder for the tiles of one image.
class Decoder {
 public:
  struct Answer {
    std::vector<Plane> planes;
    std::vector<float> ious;
  };

  Decoder(DecoderGraph& graph, const Preprocessing& preprocessing, const std::vector<EncodedTile>& tiles)
      : graph_(graph), preprocessing_(preprocessing), tiles_(tiles), colours_(tiles.size()) {}

  const SegmenterSpec& spec() const { return graph_.spec; }
  FrameTransform transform(int tile) const { return frame_transform(tiles_[tile].area.size(), preprocessing_); }

  Plane sharpen(int tile, const Plane& logits) {
    if (!spec().colour_evidence) return logits;
    if (!colours_[tile]) {
      const std::vector<Plane> planes = planes_of(tiles_[tile].outputs.at("colours"));
      colours_[tile].emplace(planes, transform(tile), *spec().colour_evidence, spec().mask_threshold);
    }
    return colours_[tile]->sharpen(logits);
  }

  // tokens: of prompts that have equally many.
  std::vector<Answer> decode(int tile, const std::vector<PromptTokens>& tokens) {
    const size_t count = tokens.size(), length = tokens[0].labels.size(), area = spec().low_res.area();
    std::vector<float> coords, labels, masks(count * area, 0.0f), has_mask(count, 0.0f);
    for (size_t i = 0; i < count; ++i) {
      for (const cv::Point2f& point : tokens[i].coords) coords.insert(coords.end(), {point.x, point.y});
      labels.insert(labels.end(), tokens[i].labels.begin(), tokens[i].labels.end());
      if (tokens[i].mask_logits.empty()) continue;
      std::copy(tokens[i].mask_logits.begin(), tokens[i].mask_logits.end(), masks.begin() + i * area);
      has_mask[i] = 1.0f;
    }
    const std::vector<int64_t> image_index(count, 0);
    const int64_t n = int64_t(count), p = int64_t(length);
    std::vector<Ort::Value> inputs;
    inputs.push_back(image_output(tile, "image_embedding"));
    inputs.push_back(wrap(image_index.data(), {n}));
    inputs.push_back(wrap(coords.data(), {n, p, 2}));
    inputs.push_back(wrap(labels.data(), {n, p}));
    inputs.push_back(wrap(masks.data(), {n, 1, spec().low_res.height, spec().low_res.width}));
    inputs.push_back(wrap(has_mask.data(), {n}));
    std::vector<const char*> names = {"image_embedding", "image_index", "point_coords",
                                      "point_labels", "mask_input", "has_mask_input"};
    if (graph_.fuses_early) {  // an adapter that also reads an early output of the encoder
      names.push_back("early_features");
      inputs.push_back(image_output(tile, "early_features"));
    }
    const auto found = graph_.graph.run(names, inputs, {"low_res_logits", "iou_predictions"});
    const size_t num_planes = count * spec().num_planes;
    const std::vector<float> logits = graph_.graph.copied(found[0], num_planes * area);
    const std::vector<float> ious = graph_.graph.copied(found[1], num_planes);
    std::vector<Answer> answers(count);
    for (size_t plane = 0; plane < num_planes; ++plane) {
      Answer& answer = answers[plane / spec().num_planes];
      answer.planes.push_back(plane_of(&logits[plane * area], spec().low_res));
      answer.ious.push_back(ious[plane]);
    }
    return answers;
  }

 private:
  // Wraps an encoder's output for a tile as a batch of one.
  Ort::Value image_output(int tile, const std::string& role) const {
    const Tensor& tensor = tiles_[tile].outputs.at(role);
    std::vector<int64_t> shape = tensor.shape;
    shape.insert(shape.begin(), 1);
    return wrap(tensor.values.data(), shape);
  }

  DecoderGraph& graph_;
  const Preprocessing& preprocessing_;
  const std::vector<EncodedTile>& tiles_;
  std::vector<std::optional<ColourModel>> colours_;
};
