"""Writes the files of a line bundle from those of the versions it is made of. Needs onnxruntime, no torch."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from vplab import errors
from vplab.errors import FailedPrecondition
from vplab.training.line_bundle import line_program, stand_ins
from vplab.training.line_bundle.line_program import MANIFEST, PIXEL_CLASSIFIERS, REFERENCES, SPEC, Encoder
from vplab.training.line_bundle.matcher_graph import graph_references, matcher_graph, matcher_parity
from vplab.training.values import ExportPlan
from vplab.vision import specs
from vplab.vision.images import ImageLimits, ImageRGB, PixelFormat, decode_image, frame_to_rgb
from vplab.vision.masks import png_to_mask
from vplab.vision.matching import MATCHERS, ClassBank, ClassReference, build_class_bank
from vplab.vision.tiling import tile_layout

DEFAULTS: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "matcher": "softmatch",
        "max_points": 40,
        "num_background_points": 2,
        "min_relative_score": 0.4,
        "min_mask_score": 0.0,
        "seed": 0,
        "tile_side": 2048,
    }
)
"""What a prompt set does not say; the segmentation service's defaults."""

_SCHEMA: Final = 1
_PROMPT_SET: Final = "prompt_set.json"
_MATCHER: Final = "matcher.onnx"
_ADAPTER: Final = "adapter.json"
_WITH_GRAPHS: Final = ("image_encoder", "feature_encoder", "segmenter", "adapter")
_MODULES: Final = (
    "errors.py",
    "vision/__init__.py",
    "vision/colour_evidence.py",
    "vision/mask_formats.py",
    "vision/masks.py",
    "vision/matching/*.py",
    "vision/pipeline/*.py",
    "vision/preprocessing.py",
    "vision/prompts.py",
    "vision/tiling.py",
)
"""Modules of vplab that the program runs, copied as they are."""


@dataclass(frozen=True)
class Source:
    """A version on this machine."""

    folder: Path
    licence: str


def write_bundle(
    plan: ExportPlan,
    sources: Mapping[str, Source],
    folder: Path,
    limits: ImageLimits,
    precision: specs.Precision,
    threads: int,
) -> None:
    """Write every file of a bundle into an empty folder; equal input gives equal bytes.

    sources: by the relations of the plan's lineage. precision: in which the services exchange embeddings; the program
    rounds to it, so that its masks are theirs. threads: of ONNX Runtime.
    Raises FailedPrecondition for versions whose files are not what their kind has, InvalidInput for a damaged picture.
    """
    is_shared = plan.image_encoder.digest == plan.feature_encoder.digest
    graphs = {
        "image_encoder": "image_encoder",
        "feature_encoder": "image_encoder" if is_shared else "feature_encoder",
        "decoder": "decoder",
        "matcher": _MATCHER,
    }
    decoder = sources["segmenter" if plan.adapter is None else "adapter"]
    _copy_model(sources["image_encoder"].folder, folder / "image_encoder")
    if not is_shared:
        _copy_model(sources["feature_encoder"].folder, folder / "feature_encoder")
    _copy_model(decoder.folder, folder / "decoder")
    if plan.adapter is not None:
        _require_early_features(plan.adapter.name, decoder.folder, folder / "image_encoder")
    verdicts = _copy_reports(sources, folder)
    index = json.loads((sources["prompt_set"].folder / _PROMPT_SET).read_bytes())
    if index.get("schema") != 1:
        raise FailedPrecondition(f"{plan.prompt_set.name} has schema {index.get('schema')}; this server reads 1")
    options = dict(DEFAULTS) | {name: index["options"][name] for name in DEFAULTS if name in index["options"]}
    encoder = Encoder(folder / graphs["feature_encoder"], precision, threads)
    references = _references(index, sources["prompt_set"].folder, encoder, options, limits)
    banks = [build_class_bank(of_class, seed=options["seed"]) for of_class in references.values()]
    _write_matcher(references, banks, options, plan.bundle_id, folder)
    _copy_program(folder)
    (folder / "README.md").write_text(_readme(plan, sources, index), encoding="utf-8")
    threshold = index["options"].get("presence_threshold")
    spec = specs.spec_from_json((folder / "decoder" / SPEC).read_bytes())
    assert isinstance(spec, specs.SegmenterSpec), "checked when the job was made"
    document = {
        "schema": _SCHEMA,
        "name": f"artifacts/{plan.bundle_id}",
        "made_from": {
            relation: {"name": model.name, "digest": model.digest, "licence": sources[relation].licence}
            for relation, model in plan.lineage.items()
        },
        "graphs": graphs,
        "embedding_precision": precision,
        # The matcher's graph was compared just now, and is not written where it does not agree.
        "parity": verdicts | {"matcher": "passed"},
        # The segmentation service's rule: what draws prompts as a raster gains nothing from a second pass.
        "options": options | {"refines": spec.refines, "groups_masks": MATCHERS[options["matcher"]].groups_masks},
        "classes": [
            {
                "class_id": int(c["class_id"]),
                "display_name": c["display_name"],
                "presence_threshold": float(c["presence_threshold"] if threshold is None else threshold),
                "group_share": bank.group_share,
                "has_pixel_classifier": bank.pixel_classifier is not None,
            }
            for c, bank in zip(index["classes"], banks, strict=True)
        ],
        "files": {path.relative_to(folder).as_posix(): _sha256(path) for path in _files(folder)},
    }
    text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def _copy_model(source: Path, target: Path) -> None:
    """Copy a graph with its spec, and its weights where they lie beside it."""
    spec_file = source / SPEC
    if not spec_file.is_file():
        raise FailedPrecondition(f"a model's files lack {SPEC}", reason="MODEL_UNSUPPORTED")
    spec = specs.spec_from_json(spec_file.read_bytes())
    if not (source / spec.graph).is_file():
        raise FailedPrecondition(f"a model's files lack {spec.graph}", reason="MODEL_UNSUPPORTED")
    target.mkdir(parents=True)
    shutil.copyfile(spec_file, target / SPEC)
    for path in sorted(source.glob(f"{spec.graph}*")):
        shutil.copyfile(path, target / path.name)


def _require_early_features(adapter: str, folder: Path, encoder: Path) -> None:
    """Raise FailedPrecondition where an adapter fuses early features that the image encoder does not give."""
    description = folder / _ADAPTER
    if not description.is_file():
        return
    wanted = json.loads(description.read_bytes()).get("adapter", {}).get("early_channels")
    spec = specs.spec_from_json((encoder / SPEC).read_bytes())
    assert isinstance(spec, specs.EncoderSpec), "checked when the job was made"
    if wanted is not None and spec.early_channels != wanted:
        actual = "none" if spec.early_channels is None else str(spec.early_channels)
        message = f"adapter: {adapter} takes early features of {wanted} channels, the image encoder gives {actual}"
        metadata = {"field": "adapter", "expected": str(wanted), "actual": actual}
        raise FailedPrecondition(message, reason="MODEL_MISMATCH", metadata=metadata)


def _copy_reports(sources: Mapping[str, Source], folder: Path) -> dict[str, str]:
    """Copy how well each graph agrees with what it was made from, and return the verdicts by relation."""
    verdicts = {}
    (folder / "parity").mkdir()
    for relation in _WITH_GRAPHS:
        if relation not in sources:
            continue
        report = sources[relation].folder / "parity.json"
        verdicts[relation] = "not reported"
        if report.is_file():
            shutil.copyfile(report, folder / "parity" / f"{relation}.json")
            verdicts[relation] = "passed" if json.loads(report.read_bytes()).get("passed") is True else "failed"
    return verdicts


def _copy_program(folder: Path) -> None:
    here, root = Path(line_program.__file__).parent, Path(errors.__file__).parent
    for pattern in _MODULES:
        for path in sorted(root.glob(pattern)):
            target = folder / "vplab" / path.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    # A package with this file is found before, and never mixed with, an installed vplab.
    (folder / "vplab" / "__init__.py").write_text('"""The part of VP Lab that this bundle runs."""\n')
    for path in sorted(Path(stand_ins.__file__).parent.glob("*.py")):
        if path.name != "__init__.py":
            shutil.copyfile(path, folder / "vplab" / "vision" / path.name)
    for name in ("segment.py", "line_program.py"):
        shutil.copyfile(here / name, folder / name)
    shutil.copytree(here / "cpp", folder / "cpp")


def _write_matcher(
    references: Mapping[int, Sequence[ClassReference]],
    banks: Sequence[ClassBank],
    options: Mapping[str, Any],
    bundle_id: str,
    folder: Path,
) -> None:
    """Write the matcher's graph, what it takes of the references, and how well it agrees with the numpy matcher."""
    (folder / REFERENCES).mkdir()
    for name, values in graph_references(banks).items():
        np.save(folder / REFERENCES / f"{name}.npy", values)
    vectors = [None if b.pixel_classifier is None else b.pixel_classifier.to_vector() for b in banks]
    known = next((vector for vector in vectors if vector is not None), None)
    if known is not None:
        rows = np.stack([np.zeros_like(known) if vector is None else vector for vector in vectors])
        np.save(folder / REFERENCES / PIXEL_CLASSIFIERS, rows)
    graph = matcher_graph(options["matcher"])
    (folder / _MATCHER).write_bytes(graph)
    tiles = [reference.patches for reference in next(iter(references.values()))]
    parity = matcher_parity(graph, options["matcher"], banks, tiles, options["seed"])
    parity.require_passed(f"{bundle_id}'s matcher")
    (folder / "parity" / "matcher.json").write_text(parity.model_dump_json(indent=2) + "\n", encoding="utf-8")


def _references(
    index: Mapping[str, Any], folder: Path, encoder: Encoder, options: Mapping[str, Any], limits: ImageLimits
) -> dict[int, list[ClassReference]]:
    """Gather each class from the references, tile by tile, as the segmentation service does."""
    ids = [int(c["class_id"]) for c in index["classes"]]
    found: dict[int, list[ClassReference]] = {class_id: [] for class_id in ids}
    for number, entry in enumerate(index["references"]):
        image = _picture(folder / entry["image"], limits)
        image_hw = (image.shape[0], image.shape[1])
        masks = {}
        for class_id in ids:
            path = entry["masks"].get(str(class_id))
            masks[class_id] = (
                np.zeros(image_hw, np.bool_) if path is None else png_to_mask((folder / path).read_bytes())
            )
        for area in tile_layout(image_hw, options["tile_side"]):
            outputs = encoder.encode(line_program.crop_tile(image, area))
            patches = line_program.tile_patches(area, outputs, encoder.spec)
            for class_id in ids:
                found[class_id].append(ClassReference(patches, area.crop(masks[class_id]), number))
    return found


def _picture(path: Path, limits: ImageLimits) -> ImageRGB:
    data = path.read_bytes()
    if path.suffix != ".frame":
        return decode_image(data, limits)
    _, size, pixel_format, rows = data.split(b":", 3)
    width, height = (int(n) for n in size.split(b"x"))
    kind = PixelFormat(pixel_format.decode().removeprefix("PIXEL_FORMAT_"))
    return frame_to_rgb(rows, width, height, width * kind.num_bytes, kind, limits)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _readme(plan: ExportPlan, sources: Mapping[str, Source], index: Mapping[str, Any]) -> str:
    rows = "\n".join(
        f"| {relation} | {model.name} | {model.digest[:12]} | {sources[relation].licence or 'not stated'} |"
        for relation, model in plan.lineage.items()
    )
    classes = "\n".join(f"- {c['class_id']}: {c['display_name'] or '(no name)'}" for c in index["classes"])
    return f"""# Line bundle {plan.bundle_id}

Finds the classes of a prompt set in images, without a service and without the reference images.

    pip install numpy opencv-python-headless onnxruntime
    python segment.py IMAGE --out FOLDER

writes `NAME.png`, a class id for each pixel, and `NAME.json`: for each class whether it is there, its score, its mask
as row-major run lengths, the first counting zeros, and its objects. `--check` first compares files with their digests.

The same in C++ (without `--check`), where `ONNXRUNTIME` is an unpacked release of ONNX Runtime, 1.21 or newer:

    sudo apt-get install cmake g++ libopencv-core-dev libopencv-imgproc-dev libopencv-imgcodecs-dev nlohmann-json3-dev
    cmake -S cpp -B build -DONNXRUNTIME_DIR=ONNXRUNTIME && cmake --build build
    build/segment . IMAGE --out FOLDER

## Classes

{classes}

## Made from

| what | version | digest | licence |
|---|---|---|---|
{rows}

Whoever passes the bundle on passes on these models, under their licences.

## Files

- `bundle.json`: digests, options, classes and thresholds; the precision that the services exchange embeddings in, to
  which the program rounds as they do; and, under `parity`, whether each graph agrees with what it was made from.
- `image_encoder/`, `decoder/` and, where it is another one, `feature_encoder/`: ONNX graphs, each with `model.json`.
  An adapter is part of the decoder's graph.
- `matcher.onnx`: scores the patches of an image for each class by those of the references, which are its inputs.
- `references/`: these inputs: patch features and their centres, for the classes in the order of `bundle.json`; and
  what several references taught of single pixels.
- `parity/`: the reports of that comparison, as far as the versions have one.
- `segment.py`, `line_program.py`, `vplab/`: the program in Python; all but `images.py`, `resizing.py` and `specs.py` in
  `vplab/vision` are copies of what the services run. On PNG, BMP and TIFF the masks are the services'; another JPEG
  decoder may differ in single pixels.
- `cpp/`: the same program in C++17.
"""
