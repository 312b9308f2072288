// A prompt set on one image without any service, in C++: the parts of line_program.py under the same names.
#include <iostream>
#include <opencv2/imgcodecs.hpp>

#include "pipeline.hpp"

struct Usage : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct LineClass {
  int class_id = 0;
  std::string display_name;
  double presence_threshold = 0.0, group_share = 0.0;
  bool has_pixel_classifier = false;
};

struct ClassResult {
  LineClass line_class;
  ClassSegmentation found;
};

struct Manifest {
  std::string name, precision, image_encoder, feature_encoder, matcher, decoder;
  std::vector<LineClass> classes;
  int tile_side = 0, max_points = 0, num_background_points = 0;
  float min_relative_score = 0.0f;
  SegmentOptions options;

  explicit Manifest(const fs::path& file) {
    from_json(file, [this](const Json& said) {
      name = said.at("name");
      precision = said.at("embedding_precision");
      const Json &graphs = said.at("graphs"), &given = said.at("options");
      image_encoder = graphs.at("image_encoder");
      feature_encoder = graphs.at("feature_encoder");
      matcher = graphs.at("matcher");
      decoder = graphs.at("decoder");
      for (const Json& item : said.at("classes"))
        classes.push_back({item.at("class_id"), item.at("display_name"), item.at("presence_threshold"),
                           item.at("group_share"), item.value("has_pixel_classifier", false)});
      tile_side = given.at("tile_side");
      max_points = given.at("max_points");
      num_background_points = given.at("num_background_points");
      min_relative_score = given.at("min_relative_score");
      options = {given.at("groups_masks"), given.at("refines"), given.at("min_mask_score")};
      return 0;
    });
  }
};

// Reads each class's pixel classifier; the file is there where a class has one.
std::vector<std::optional<PixelClassifier>> read_pixel_classifiers(const std::vector<LineClass>& classes,
                                                                   const fs::path& file) {
  std::vector<std::optional<PixelClassifier>> found(classes.size());
  const auto has_one = [](const LineClass& line_class) { return line_class.has_pixel_classifier; };
  if (std::none_of(classes.begin(), classes.end(), has_one)) return found;
  const Tensor all = read_npy(file);
  if (all.shape != std::vector<int64_t>{int64_t(classes.size()), int64_t(PixelClassifier::size())})
    throw Failure(file, "is of other classes");
  for (size_t i = 0; i < classes.size(); ++i)
    if (has_one(classes[i])) found[i].emplace(all.values.data() + i * all.size_from(1));
  return found;
}

// A bundle in memory, ready for images.
class Line {
 public:
  Line(const fs::path& folder, int threads)
      : manifest_(folder / "bundle.json"),
        encoder_(folder / manifest_.image_encoder, manifest_.precision, threads),
        matcher_(folder / manifest_.matcher, folder / "references", manifest_.classes.size(), threads),
        decoder_(folder / manifest_.decoder, threads),
        pixel_classifiers_(
            read_pixel_classifiers(manifest_.classes, folder / "references" / "pixel_classifiers.npy")) {
    if (manifest_.feature_encoder != manifest_.image_encoder)
      feature_encoder_.emplace(folder / manifest_.feature_encoder, manifest_.precision, threads);
  }

  const std::string& name() const { return manifest_.name; }

  std::vector<ClassResult> segment(const cv::Mat& image_rgb) {
    std::vector<EncodedTile> encoded;
    std::vector<PatchFeatures> patches;
    for (const cv::Rect& area : tile_layout(image_rgb.size(), manifest_.tile_side)) {
      const cv::Mat pixels = image_rgb(area).clone();
      encoded.push_back({area, encoder_.encode(pixels)});
      patches.push_back(feature_encoder_ ? feature_encoder_->tile_patches(area, feature_encoder_->encode(pixels))
                                         : encoder_.tile_patches(area, encoded.back().outputs));
    }
    const TargetPatches target(std::move(patches), image_rgb.size());
    Decoder decoder(decoder_, encoder_.preprocessing(), encoded);
    std::vector<ClassResult> results;
    for (size_t i = 0; i < manifest_.classes.size(); ++i) {
      const PatchScores scores =
          matcher_.score(int(i), target.features, manifest_.min_relative_score, manifest_.max_points);
      const PixelClassifier* classifier = pixel_classifiers_[i] ? &*pixel_classifiers_[i] : nullptr;
      const Match match = propose(scores, target, manifest_.classes[i].presence_threshold,
                                  manifest_.num_background_points, classifier);
      const double group_share = manifest_.classes[i].group_share;
      results.push_back({manifest_.classes[i], segment_matched(match, target, decoder, manifest_.options, group_share)});
    }
    return results;
  }

 private:
  Manifest manifest_;
  Encoder encoder_;
  std::optional<Encoder> feature_encoder_;
  Matcher matcher_;
  DecoderGraph decoder_;
  std::vector<std::optional<PixelClassifier>> pixel_classifiers_;
};

// Returns each pixel's class id, 0 for none; where classes overlap the better score wins.
cv::Mat1b label_image(const std::vector<ClassResult>& results, cv::Size image) {
  cv::Mat1b labels(image, uchar(0));
  std::vector<double> scores;
  for (const ClassResult& result : results) scores.push_back(result.found.score());
  for (int index : ranked(scores, std::less<double>()))
    labels.setTo(results[index].line_class.class_id, results[index].found.mask(image));
  return labels;
}

// Returns the lengths of alternating runs in row-major order, the first counting zeros.
std::vector<uint32_t> encode_runs(const Mask& mask) {
  std::vector<uint32_t> runs = {0};
  for (uchar value : mask) {
    if ((value != 0) != (runs.size() % 2 == 0)) runs.push_back(0);
    ++runs.back();
  }
  return runs;
}

Json to_json(const ClassResult& result, cv::Size image) {
  const ClassSegmentation& found = result.found;
  const Mask mask = found.mask(image);
  Json instances = Json::array();
  for (const Instance& instance : found.instances) {
    const cv::Rect& area = instance.placed.area;
    instances.push_back({{"box_xyxy", {area.x, area.y, area.br().x, area.br().y}},
                         {"score", instance.score},
                         {"predicted_iou", instance.predicted_iou}});
  }
  return {{"class_id", result.line_class.class_id},
          {"display_name", result.line_class.display_name},
          {"is_present", found.is_present()},
          {"presence_score", found.match.presence_score},
          {"presence_threshold", found.match.presence_threshold},
          {"score", found.score()},
          {"num_pixels", count(mask)},
          {"runs", encode_runs(mask)},
          {"instances", instances}};
}

cv::Mat read_image(const fs::path& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) throw Failure(path, "cannot be read");
  const std::vector<char> data((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
  const cv::Mat found = data.empty() ? cv::Mat() : cv::imdecode(data, cv::IMREAD_COLOR);
  if (found.empty()) throw Failure(path, "is no image that OpenCV reads");
  cv::Mat image_rgb;
  cv::cvtColor(found, image_rgb, cv::COLOR_BGR2RGB);
  return image_rgb;
}

void write(const fs::path& path, const char* data, size_t size) {
  std::ofstream stream(path, std::ios::binary);
  if (!stream.write(data, std::streamsize(size)) || !stream.flush()) throw Failure(path, "cannot be written");
}

struct Arguments {
  fs::path bundle, image, out = ".";
  int threads = 0;

  Arguments(int argc, char** argv) {
    std::vector<std::string> named;
    for (int i = 1; i < argc; ++i) {
      const std::string word = argv[i];
      if (word.rfind("--", 0) != 0) {
        named.push_back(word);
        continue;
      }
      if (i + 1 == argc) throw Usage(word + " needs a value");
      const std::string value = argv[++i];
      if (word == "--out") {
        out = value;
      } else if (word == "--threads" && value.find_first_not_of("0123456789") == value.npos && value.size() < 5) {
        threads = std::stoi(value);
      } else {
        throw Usage("no such option: " + word + " " + value);
      }
    }
    if (named.size() != 2) throw Usage("a bundle and an image are needed");
    bundle = named[0];
    image = named[1];
  }
};

void run(const Arguments& said) {
  const cv::Mat image_rgb = read_image(said.image);
  Line line(said.bundle, said.threads);
  const int64_t began = cv::getTickCount();
  const std::vector<ClassResult> results = line.segment(image_rgb);
  const double seconds = double(cv::getTickCount() - began) / cv::getTickFrequency();
  fs::create_directories(said.out);
  std::vector<uchar> png;
  cv::imencode(".png", label_image(results, image_rgb.size()), png);
  const std::string stem = said.image.stem().string();
  write(said.out / (stem + ".png"), reinterpret_cast<const char*>(png.data()), png.size());
  Json classes = Json::array();
  for (const ClassResult& result : results) classes.push_back(to_json(result, image_rgb.size()));
  const Json document = {{"image", said.image.filename().string()},
                         {"size_hw", {image_rgb.rows, image_rgb.cols}},
                         {"bundle", line.name()},
                         {"seconds", seconds},
                         {"classes", classes}};
  const std::string text = document.dump(1) + "\n";
  write(said.out / (stem + ".json"), text.data(), text.size());
}

int main(int argc, char** argv) {
  try {
    run(Arguments(argc, argv));
    return 0;
  } catch (const Usage& error) {
    std::cerr << "usage: segment BUNDLE IMAGE [--out FOLDER] [--threads N]\nsegment: error: " << error.what() << "\n";
    return 2;
  } catch (const std::exception& error) {
    std::cerr << "segment: " << error.what() << "\n";
    return 1;
  }
}
