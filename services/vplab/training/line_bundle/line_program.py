"""A prompt set on one image without any service: encode, match, decode and join, as the segmentation service does.

Runs in a line bundle, on numpy, OpenCV and ONNX Runtime alone, over copies of the modules that the service runs. The
service that makes bundles uses ``Encoder`` and ``tile_patches`` for the references, so both see them alike. The program
in C++ (``cpp/``) has the same parts under the same names.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vplab.errors import FailedPrecondition, VPLabError
from vplab.vision.colour_evidence import TileColours
from vplab.vision.images import ImageRGB
from vplab.vision.masks import encode_runs
from vplab.vision.matching import MatchOptions, PatchFeatures, PatchScores, PixelClassifier, TargetPatches, propose
from vplab.vision.pipeline.segment import ClassSegmentation, SegmentOptions, segment_matched
from vplab.vision.preprocessing import FrameTransform, frame_transform, preprocess
from vplab.vision.prompts import PromptTokens
from vplab.vision.specs import EncoderSpec, Preprocessing, SegmenterSpec, spec_from_json
from vplab.vision.tiling import Tile, tile_layout

MANIFEST, SPEC, REFERENCES = "bundle.json", "model.json", "references"
PIXEL_CLASSIFIERS = "pixel_classifiers.npy"
"""In REFERENCES, where a class has one: ``PixelClassifier.to_vector`` of each class, zeros for those without."""
REFERENCE_ARRAYS = ("rows", "row_weight", "centres", "centre_kind")
"""Inputs of the matcher's graph, each a file in REFERENCES; the first axis is the manifest's classes."""
SCORES = ("scores", "candidates", "similarity", "mean_similarity", "presence_score", "num_points")
"""Its outputs."""
EARLY_FEATURES = "early_features"
"""Role, and the decoder's input of that name where an adapter fuses them."""
_FLOAT16_MAX = 65504.0

Outputs = Mapping[str, NDArray[Any]]
"""An encoder's outputs for one image by role."""


class Encoder:
    """An image encoder's graph."""

    def __init__(self, folder: Path, precision: str, threads: int) -> None:
        """folder: holds the graph and its model.json. precision: of the outputs, ``float16`` or ``float32``."""
        spec = spec_from_json((folder / SPEC).read_bytes())
        if not isinstance(spec, EncoderSpec):
            raise FailedPrecondition(f"{folder.name} is no encoder")
        self.spec = spec
        self._precision = precision
        self._session = _session(folder / spec.graph, threads)

    def encode(self, image_rgb: ImageRGB) -> Outputs:
        """Return the outputs for an image, in the precision that the services exchange them in."""
        tensor = preprocess(image_rgb, self.spec.preprocessing).tensor
        found = self._session.run([output.name for output in self.spec.outputs], {"image": tensor[None]})
        return {o.role: self._rounded(values[0]) for o, values in zip(self.spec.outputs, found, strict=True)}

    def _rounded(self, values: NDArray[np.float32]) -> NDArray[Any]:
        if self._precision == "float32":
            return values
        return np.clip(values, -_FLOAT16_MAX, _FLOAT16_MAX).astype(np.float16)


def tile_patches(area: Tile, outputs: Outputs, spec: EncoderSpec) -> PatchFeatures:
    """Return the patch features of a tile that a feature encoder encoded."""
    output = spec.output("patch_features")
    if output is None:
        raise FailedPrecondition("the feature encoder has no patch features")
    transform = frame_transform(area.size_hw, spec.preprocessing)
    features = outputs["patch_features"].astype(np.float32)
    return PatchFeatures(features, transform, output.stride, area.origin_xy, outputs.get("colours"))


def crop_tile(image_rgb: ImageRGB, area: Tile) -> ImageRGB:
    """Return a tile's pixels."""
    return np.ascontiguousarray(area.crop(image_rgb))


class Matcher:
    """The matcher's graph with the references of all classes."""

    def __init__(self, graph: Path, references: Path, threads: int) -> None:
        self._session = _session(graph, threads)
        self._references = {n: np.load(references / f"{n}.npy", allow_pickle=False) for n in REFERENCE_ARRAYS}

    def score(self, class_index: int, features: NDArray[np.float32], options: MatchOptions) -> PatchScores:
        """Weigh patches (P, D) for one class of the manifest, which bounds what has to be in memory at once."""
        feed = {name: values[class_index : class_index + 1] for name, values in self._references.items()} | {
            "features": features,
            "min_relative_score": np.array(options.min_relative_score, np.float32),
            "max_points": np.array(options.max_points, np.int64),
        }
        found = dict(zip(SCORES, (values[0] for values in self._session.run(list(SCORES), feed)), strict=True))
        return PatchScores(
            scores=found["scores"],
            candidates=found["candidates"],
            similarity=found["similarity"],
            mean_similarity=found["mean_similarity"],
            presence_score=float(found["presence_score"]),
            max_points=int(found["num_points"]),
        )


class Decoder:
    """The pipeline's mask decoder for the tiles of one image."""

    def __init__(
        self,
        spec: SegmenterSpec,
        session: Any,
        preprocessing: Preprocessing,
        tiles: Sequence[tuple[Tile, Outputs]],
    ) -> None:
        self.spec = spec
        self._session = session
        self._fuses_early = EARLY_FEATURES in {value.name for value in session.get_inputs()}
        self._preprocessing = preprocessing
        self._tiles = tiles
        transforms = [self.transform(tile) for tile in range(len(tiles))]
        colours = [None if spec.colour_evidence is None else outputs["colours"] for _, outputs in tiles]
        self._colours = TileColours(colours, transforms, spec)

    def transform(self, tile: int) -> FrameTransform:
        return frame_transform(self._tiles[tile][0].size_hw, self._preprocessing)

    def sharpen(self, tile: int, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._colours.sharpen(tile, logits)

    def decode(self, tile: int, tokens: Sequence[PromptTokens]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        masks = np.zeros((len(tokens), 1, *self.spec.low_res_hw), np.float32)
        for row, token in zip(masks, tokens, strict=True):
            if token.mask_logits is not None:
                row[0] = token.mask_logits
        outputs = self._tiles[tile][1]
        feed = {
            "image_embedding": outputs["image_embedding"][None].astype(np.float32),
            "image_index": np.zeros(len(tokens), np.int64),
            "point_coords": np.stack([token.coords for token in tokens]),
            "point_labels": np.stack([token.labels for token in tokens]),
            "mask_input": masks,
            "has_mask_input": np.array([token.mask_logits is not None for token in tokens], np.float32),
        }
        if self._fuses_early:
            feed[EARLY_FEATURES] = outputs[EARLY_FEATURES][None].astype(np.float32)
        logits, ious = self._session.run(["low_res_logits", "iou_predictions"], feed)
        return logits, ious


@dataclass(frozen=True, eq=False)
class ClassResult:
    """What was found of one class."""

    class_id: int
    display_name: str
    found: ClassSegmentation

    @property
    def score(self) -> float:
        return max((instance.score for instance in self.found.instances), default=0.0)


class Line:
    """A bundle in memory, ready for images."""

    def __init__(self, folder: Path, threads: int = 0) -> None:
        """threads: of ONNX Runtime; 0 is one for each physical core."""
        self.manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        precision, graphs = self.manifest["embedding_precision"], self.manifest["graphs"]
        self._encoder = Encoder(folder / graphs["image_encoder"], precision, threads)
        self._feature_encoder = self._encoder
        if graphs["feature_encoder"] != graphs["image_encoder"]:
            self._feature_encoder = Encoder(folder / graphs["feature_encoder"], precision, threads)
        spec = spec_from_json((folder / graphs["decoder"] / SPEC).read_bytes())
        if not isinstance(spec, SegmenterSpec):
            raise FailedPrecondition(f"{graphs['decoder']} is no segmenter")
        self._spec = spec
        self._decoder = _session(folder / graphs["decoder"] / spec.graph, threads)
        self._matcher = Matcher(folder / graphs["matcher"], folder / REFERENCES, threads)
        self._pixel_classifiers = _pixel_classifiers(self.manifest["classes"], folder / REFERENCES / PIXEL_CLASSIFIERS)

    def segment(self, image_rgb: ImageRGB) -> list[ClassResult]:
        """Find the classes in an image, (H, W, 3) uint8 RGB."""
        options = self.manifest["options"]
        encoded, patches = [], []
        for area in tile_layout((image_rgb.shape[0], image_rgb.shape[1]), options["tile_side"]):
            pixels = crop_tile(image_rgb, area)
            outputs = self._encoder.encode(pixels)
            features = outputs if self._feature_encoder is self._encoder else self._feature_encoder.encode(pixels)
            encoded.append((area, outputs))
            patches.append(tile_patches(area, features, self._feature_encoder.spec))
        target = TargetPatches.of(patches)
        decoder = Decoder(self._spec, self._decoder, self._encoder.spec.preprocessing, encoded)
        return [
            ClassResult(int(c["class_id"]), c["display_name"], self._find(index, target, decoder))
            for index, c in enumerate(self.manifest["classes"])
        ]

    def _find(self, class_index: int, target: TargetPatches, decoder: Decoder) -> ClassSegmentation:
        options, line_class = self.manifest["options"], self.manifest["classes"][class_index]
        match_options = MatchOptions(
            max_points=options["max_points"],
            num_background_points=options["num_background_points"],
            min_relative_score=options["min_relative_score"],
        )
        scores = self._matcher.score(class_index, target.features, match_options)
        classifier = self._pixel_classifiers[class_index]
        match = propose(scores, target, match_options, line_class["presence_threshold"], classifier)
        further = SegmentOptions(min_mask_score=options["min_mask_score"], refines=options["refines"])
        return segment_matched(match, options["groups_masks"], target, decoder, further, line_class["group_share"])


def _pixel_classifiers(classes: Sequence[Mapping[str, Any]], file: Path) -> list[PixelClassifier | None]:
    has_one = [bool(c.get("has_pixel_classifier")) for c in classes]
    rows = np.load(file, allow_pickle=False) if any(has_one) else [None] * len(classes)
    return [PixelClassifier.from_vector(row) if has else None for row, has in zip(rows, has_one, strict=True)]


def label_image(results: Sequence[ClassResult], image_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Return (H, W) uint8 with each pixel's class id, 0 for none; where classes overlap the better score wins."""
    labels = np.zeros(image_hw, np.uint8)
    for result in sorted(results, key=lambda result: result.score):
        labels[result.found.mask(image_hw)] = result.class_id
    return labels


def damaged_files(folder: Path) -> list[str]:
    """Return the files that are not what bundle.json says."""
    said = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    return [path for path, sha256 in said.items() if not _has_digest(folder / path, sha256)]


def main() -> int:
    """Run from the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="segment.py", description="Segment one image with this line bundle.")
    parser.add_argument("image", type=Path, help="JPEG, PNG, BMP, TIFF or WebP")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for NAME.png (class ids) and NAME.json")
    parser.add_argument("--threads", type=int, default=0, help="of ONNX Runtime; 0 is one for each core")
    parser.add_argument("--check", action="store_true", help="first compare every file with its digest in bundle.json")
    said = parser.parse_args()
    folder = Path(__file__).resolve().parent
    damaged = damaged_files(folder) if said.check else []
    if damaged:
        print(f"segment.py: damaged or missing: {', '.join(damaged)}", file=sys.stderr)
        return 1
    try:
        return _run(folder, said.image, said.out, said.threads)
    except VPLabError as error:
        print(f"segment.py: {error.message}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"segment.py: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1


def _run(folder: Path, path: Path, out: Path, threads: int) -> int:
    # Only the bundle's own module of this name can read files.
    from vplab.vision.images import read_image  # type: ignore[attr-defined]

    image = read_image(path)
    line = Line(folder, threads)
    began = time.perf_counter()
    results = line.segment(image)
    seconds = time.perf_counter() - began
    image_hw = (image.shape[0], image.shape[1])
    out.mkdir(parents=True, exist_ok=True)
    ok, png = cv2.imencode(".png", label_image(results, image_hw))
    if not ok:
        raise FailedPrecondition("OpenCV cannot write PNG")
    (out / f"{path.stem}.png").write_bytes(png.tobytes())
    said = {
        "image": path.name,
        "size_hw": image_hw,
        "bundle": line.manifest["name"],
        "seconds": round(seconds, 4),
        "classes": [_to_json(result, image_hw) for result in results],
    }
    (out / f"{path.stem}.json").write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    return 0


def _to_json(result: ClassResult, image_hw: tuple[int, int]) -> dict[str, Any]:
    found = result.found
    mask = found.mask(image_hw)
    return {
        "class_id": result.class_id,
        "display_name": result.display_name,
        "is_present": found.is_present,
        "presence_score": found.match.presence_score,
        "presence_threshold": found.match.presence_threshold,
        "score": result.score,
        "num_pixels": int(mask.sum()),
        "runs": encode_runs(mask).tolist(),
        "instances": [
            {"box_xyxy": list(i.box_xyxy), "score": i.score, "predicted_iou": i.predicted_iou} for i in found.instances
        ],
    }


def _session(graph: Path, threads: int) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Fused, it is slower on a CPU (ONNX Runtime 1.31).
    slow = ["SkipLayerNormFusion"]
    return ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"], disabled_optimizers=slow)


def _has_digest(path: Path, sha256: str) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256
