"""Tasks for choosing how adapters are trained: a class of an image set or of the generator, embedded once and cached.

A task has a pool of images to tune on and others to test. Test is what serving does with the decoder: a box or one
click on an object, and softmatch with the tuning images as references, each against the full-size mask.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from vplab.training.tuning.augmentation import apply_view, plan_views
from vplab.training.tuning.ports import TunableDecoder
from vplab.training.tuning.values import EmbeddedView
from vplab.training.worker.decoder_weights import load_decoder
from vplab.vision.colour_evidence import ColourModel
from vplab.vision.final_masks import final_mask
from vplab.vision.matching import (
    MATCHERS,
    ClassBank,
    ClassReference,
    MatchOptions,
    PatchFeatures,
    TargetPatches,
    build_class_bank,
)
from vplab.vision.pipeline.segment import SegmentOptions, segment_class
from vplab.vision.preprocessing import FrameTransform, frame_transform, preprocess
from vplab.vision.prompts import ObjectPrompt, PromptTokens, prompt_tokens
from vplab.vision.sam.onnx_decoder import PromptDecoder
from vplab.vision.simulated_clicks import depth_inside, tight_box
from vplab.vision.specs import EncoderSpec, SegmenterSpec, spec_from_json
from vplab.vision.synthesis import synthesize_inspection_set

ROOT = Path(__file__).parents[2]
BUILTIN = ROOT / "services" / "vplab" / "registry" / "builtin"
HELD_OUT = ROOT / "services" / "vplab" / "training" / "foundation" / "held_out"
POOL, NUM_TEST, MAX_VIEWS = 12, 8, 6
NUM_MATCHED = 5
"""Test images that softmatch searches too, which costs far more than boxes and clicks."""
MAX_SIDE = 512
MAX_OBJECTS = 2
"""Largest pieces of a test image that are marked."""
MAX_POINTS = 12
"""Of the matcher on a test image; serving takes up to 40, which costs more and says the same."""

Labelled = tuple[NDArray[np.uint8], NDArray[np.bool_]]


@dataclass(frozen=True)
class Source:
    """Where the images of a task come from."""

    name: str
    folder: str = ""
    """Below VPLAB_DATA; empty for the generator."""
    value: int | None = None
    """Value of the class in the masks; None for all that is not 0."""
    defect: str = ""
    seed: int = 0

    def read(self, count: int) -> list[Labelled]:
        """Return images that show the class; the first ones do not depend on ``count``."""
        if self.defect:
            images = synthesize_inspection_set(count, (384, 512), self.defect, self.seed)
            return [(item.image_rgb, item.mask) for item in images]
        return [pair for pair, _ in zip(self._pairs(), range(count), strict=False)]

    def _pairs(self) -> Iterator[Labelled]:
        folder = Path(os.environ.get("VPLAB_DATA", "../shared/data")) / self.folder
        names = sorted(path.stem for path in (folder / "images").iterdir())
        held_out = HELD_OUT / f"{self.folder}.txt"
        if held_out.exists():  # what the nano models were trained on would flatter the base
            names = [name for name in names if name in set(held_out.read_text().split())]
        for index in np.random.default_rng(7).permutation(len(names)):
            path = next((folder / "images").glob(f"{names[index]}.*"))
            image = cv2.cvtColor(cv2.imread(str(path), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
            labels = cv2.imread(str(folder / "masks" / f"{names[index]}.png"), cv2.IMREAD_GRAYSCALE)
            mask = np.asarray(labels > 0 if self.value is None else labels == self.value)
            image, mask = _at_most(np.asarray(image, np.uint8), mask, MAX_SIDE)
            if int(mask.sum()) >= 60:
                yield image, mask


DEVELOPMENT = (
    *(Source(f"generated {name}", defect=name, seed=seed) for name, seed in (("scratch", 3), ("crack", 5))),
    *(Source(f"generated {name}", defect=name, seed=seed) for name, seed in (("pore", 1), ("stain", 2))),
    Source("camvid car", "camvid", 9),
    Source("camvid tree", "camvid", 6),
    Source("ecssd", "ecssd"),
)
"""For choosing. The natural ones are images that no training of the nano models saw."""
TECHNICAL = (
    Source("polypgen", "polypgen"),
    Source("neu_steel inclusion", "neu_steel", 1),
    Source("neu_steel patches", "neu_steel", 2),
    Source("neu_steel scratches", "neu_steel", 3),
    Source("crackforest", "crackforest"),
    Source("nuclei_dsb", "nuclei_dsb"),
    Source("cxr_covid lung", "cxr_covid", 1),
)
"""For verifying only."""


def _at_most(image: NDArray[np.uint8], mask: NDArray[np.bool_], side: int) -> Labelled:
    """Shrink what is larger than the encoder's input: it sees no more, and testing costs less."""
    scale = side / max(mask.shape)
    if scale >= 1:
        return image, mask
    size = (round(mask.shape[1] * scale), round(mask.shape[0] * scale))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    share = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.uint8), np.asarray(share >= 0.5)


@cache
def base() -> tuple[PromptDecoder, SegmenterSpec]:
    """Return the shipped decoder, and what it takes."""
    spec = spec_from_json((BUILTIN / "nano-segmenter" / "model.json").read_bytes())
    assert isinstance(spec, SegmenterSpec)
    return load_decoder(BUILTIN / "nano-segmenter", spec), spec


@cache
def digests() -> dict[str, str]:
    """Return the start of a sha256 by artifact: of the encoder's graph, and of the segmenter's weights.

    A segmenter that is exported anew answers the same, so what was measured of it stays.
    """
    weights = hashlib.sha256()
    for name, value in sorted(base()[0].state_dict().items()):
        weights.update(name.encode() + value.numpy().tobytes())
    encoder = hashlib.sha256((BUILTIN / "nano-encoder" / "encoder.onnx").read_bytes())
    return {"nano-encoder": encoder.hexdigest()[:12], "nano-segmenter": weights.hexdigest()[:12]}


@dataclass(frozen=True, eq=False)
class Task:
    """One class, embedded."""

    name: str
    views: Sequence[Sequence[EmbeddedView]]
    """Per pool image, the image itself first."""
    tests: Sequence[EmbeddedView]

    @classmethod
    def of(cls, source: Source, cache_dir: Path) -> "Task":
        """Embed, or read what was embedded before."""
        pairs = source.read(POOL + NUM_TEST)
        views: list[list[EmbeddedView]] = []
        for index, (image, mask) in enumerate(pairs):
            plans = plan_views(MAX_VIEWS if index < len(pairs) - NUM_TEST else 1, 0, index)
            views.append([])
            for number, plan in enumerate(plans):
                pixels, masks = apply_view(plan, image, {1: mask})
                # What another encoder said is no use to this one's decoder.
                place = cache_dir / digests()["nano-encoder"] / source.name.replace(" ", "_")
                path = place / f"{index}-{number}.npz"
                views[-1].append(embed_view(pixels, masks, index, plan.is_original, path))
        return cls(source.name, views[:-NUM_TEST], [v[0] for v in views[-NUM_TEST:]])

    def tuning_views(self, num_shots: int, num_views: int, seed: int) -> list[EmbeddedView]:
        """Return the views of the first shots of a seed's order."""
        order = np.random.default_rng(seed).permutation(len(self.views))[:num_shots]
        return [view for index in order for view in self.views[index][:num_views]]


@cache
def _encoder() -> tuple[ort.InferenceSession, EncoderSpec]:
    spec = spec_from_json((BUILTIN / "nano-encoder" / "model.json").read_bytes())
    assert isinstance(spec, EncoderSpec)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    path = BUILTIN / "nano-encoder" / spec.graph
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]), spec


def embed_view(
    pixels: NDArray[np.uint8], masks: dict[int, NDArray[np.bool_]], index: int, is_original: bool, path: Path
) -> EmbeddedView:
    transform = frame_transform((pixels.shape[0], pixels.shape[1]), _encoder()[1].preprocessing)
    if not path.exists():
        session, spec = _encoder()
        tensor = preprocess(pixels, spec.preprocessing).tensor[None]
        names = ["image_embedding", "patch_features", "colours"]
        embedding, features, colours = session.run(names, {"image": tensor})
        path.parent.mkdir(parents=True, exist_ok=True)
        halves = {"embedding": embedding, "features": features, "colours": colours}
        np.savez(path, **{name: values[0].astype(np.float16) for name, values in halves.items()})
    with np.load(path) as arrays:
        embedding, colours = arrays["embedding"], arrays["colours"]
        features = arrays["features"].astype(np.float32)
    features /= np.linalg.norm(features, axis=-1, keepdims=True).clip(1e-6)
    patches = PatchFeatures(features, transform, 8, colours=colours)
    return EmbeddedView(index, is_original, embedding, transform, masks, patches, colours=colours)


class ServedDecoder:
    """A torch decoder behind the pipeline's port, for one image."""

    def __init__(self, decoder: TunableDecoder | PromptDecoder, spec: SegmenterSpec, view: EmbeddedView) -> None:
        self.spec = spec
        colours = ColourModel.of(view.colours, view.transform, spec)
        assert colours is not None
        self._colours = colours
        self._decoder, self._view = decoder, view
        self.logit_sizes: list[float] = []
        """Mean absolute logit of each plane that ``mask`` was given."""
        self._embedding = torch.from_numpy(view.embedding.astype(np.float32))[None]

    def sharpen(self, tile: int, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._colours.sharpen(logits)

    def mask(self, logits: NDArray[np.float32], prompt: ObjectPrompt) -> NDArray[np.bool_]:
        """Return the mask (H, W) of one plane's logits (h, w)."""
        self.logit_sizes.append(float(np.abs(logits).mean()))
        return final_mask(logits, prompt, self.transform(0), self.spec, self._colours)

    def transform(self, tile: int) -> FrameTransform:
        return self._view.transform

    @torch.no_grad()
    def decode(self, tile: int, tokens: Sequence[PromptTokens]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Decode prompts of equally many tokens."""
        empty = np.zeros(self.spec.low_res_hw, np.float32)
        masks = np.stack([empty if t.mask_logits is None else t.mask_logits for t in tokens])[:, None]
        logits, ious = self._decoder(
            self._embedding,
            torch.zeros(len(tokens), dtype=torch.int64),
            torch.from_numpy(np.stack([t.coords for t in tokens])),
            torch.from_numpy(np.stack([t.labels for t in tokens])),
            torch.from_numpy(masks),
            torch.tensor([float(t.mask_logits is not None) for t in tokens]),
        )
        return logits.numpy(), ious.numpy()


def measure(
    decoder: TunableDecoder | PromptDecoder,
    tests: Sequence[EmbeddedView],
    references: Sequence[EmbeddedView],
    num_matched: int = NUM_MATCHED,
) -> dict[str, float]:
    """Return the mean IoU over test images, in per cent: of boxes, of clicks, and of softmatch with the references.

    ``logit_size`` is the mean absolute logit of the masks of boxes and clicks.
    """
    spec = base()[1]
    bank = build_class_bank([ClassReference(v.patches, v.masks[1], i) for i, v in enumerate(references) if v.patches])
    found: dict[str, list[float]] = {"box": [], "click": [], "match": []}
    logit_sizes: list[float] = []
    for index, view in enumerate(tests):
        served = ServedDecoder(decoder, spec, view)
        for name, iou in _marked(served, view).items():
            found[name].append(iou)
        if index < num_matched:
            found["match"].append(_iou(_matched(served, view, bank), view.masks[1]))
        logit_sizes += served.logit_sizes
    return _percent(found) | {"logit_size": float(np.mean(logit_sizes))}


def measure_marked(decoder: TunableDecoder | PromptDecoder, views: Sequence[EmbeddedView]) -> dict[str, float]:
    """Return the mean IoU over images, in per cent, of boxes and of clicks alone."""
    found: dict[str, list[float]] = {"box": [], "click": []}
    for view in views:
        for name, iou in _marked(ServedDecoder(decoder, base()[1], view), view).items():
            found[name].append(iou)
    return _percent(found)


def _marked(served: ServedDecoder, view: EmbeddedView) -> dict[str, float]:
    """Return the mean IoU over the largest pieces of an image: of a box, and of one click."""
    pieces = _pieces(view.masks[1])
    ways = {"box": _boxed, "click": _clicked}
    return {name: float(np.mean([_iou(ask(served, piece), piece) for piece in pieces])) for name, ask in ways.items()}


def _percent(found: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: 100 * float(np.mean(values)) for name, values in found.items()}


def _boxed(served: ServedDecoder, piece: NDArray[np.bool_]) -> NDArray[np.bool_]:
    prompt = ObjectPrompt(box_xyxy=tight_box(piece))
    logits, _ = served.decode(0, [prompt_tokens(prompt, served.transform(0), served.spec)])
    return served.mask(logits[0, 0], prompt)


def _clicked(served: ServedDecoder, piece: NDArray[np.bool_]) -> NDArray[np.bool_]:
    depth = depth_inside(piece)
    row, column = divmod(int(depth.argmax()), piece.shape[1])
    prompt = ObjectPrompt(points_xy=np.array([[column, row]], np.float32), point_labels=np.array([1]))
    logits, ious = served.decode(0, [prompt_tokens(prompt, served.transform(0), served.spec)])
    plane = 1 + int(ious[0, 1:].argmax())
    return served.mask(logits[0, plane], prompt)


def _matched(served: ServedDecoder, view: EmbeddedView, bank: ClassBank) -> NDArray[np.bool_]:
    """Return the union of what softmatch finds."""
    assert view.patches is not None
    found = segment_class(
        MATCHERS["softmatch"],
        bank,
        TargetPatches.of([view.patches]),
        served,
        MatchOptions(max_points=MAX_POINTS, presence_threshold=bank.presence_threshold),
        SegmentOptions(refines=served.spec.refines),
    )
    return found.mask(view.transform.original_hw)


def _pieces(mask: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    largest = sorted(range(1, count), key=lambda label: -int(stats[label, cv2.CC_STAT_AREA]))[:MAX_OBJECTS]
    return [np.asarray(labels == label) for label in largest]


def _iou(predicted: NDArray[np.bool_], wanted: NDArray[np.bool_]) -> float:
    union = int((predicted | wanted).sum())
    return int((predicted & wanted).sum()) / union if union else 1.0
