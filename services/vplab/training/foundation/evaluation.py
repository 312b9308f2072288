"""How good the exported pair is: boxes and clicks on held-out and on technical images, and its speed, as JSON.

Runs the shipped graphs through the same preprocessing, prompt tokens and resizing as the services do.
"""

import csv
import hashlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from vplab.training.foundation.export import ENCODER, SEGMENTER, segmenter_spec
from vplab.training.foundation.sources import held_out_ids
from vplab.vision.colour_evidence import ColourModel
from vplab.vision.final_masks import final_mask
from vplab.vision.measures import BoolArray, iou, largest_piece
from vplab.vision.preprocessing import FrameTransform, preprocess
from vplab.vision.prompts import ObjectPrompt, PromptTokens, prompt_tokens
from vplab.vision.simulated_clicks import next_click, tight_box
from vplab.vision.specs import EncoderSpec, SegmenterSpec, canonical_json, spec_from_json

CLICKS = (1, 3, 5)


@dataclass(frozen=True)
class EvaluationSet:
    """A folder and the mask value that counts as the object."""

    name: str
    folder: str
    value: int
    whole_class: bool
    """Whether all pixels of the value are one object; otherwise the largest connected component is."""


SETS = (
    EvaluationSet("ecssd (held out)", "ecssd", 255, True),
    EvaluationSet("neu_steel 1 inclusion", "neu_steel", 1, False),
    EvaluationSet("neu_steel 2 patches", "neu_steel", 2, False),
    EvaluationSet("neu_steel 3 scratches", "neu_steel", 3, False),
    EvaluationSet("crackforest", "crackforest", 255, False),
    EvaluationSet("polypgen", "polypgen", 255, False),
    EvaluationSet("cxr_covid 1 left lung", "cxr_covid", 1, False),
    EvaluationSet("nuclei_dsb", "nuclei_dsb", 255, False),
    EvaluationSet("crop_weed 1 crop", "crop_weed", 1, False),
    EvaluationSet("digital_rock 1 clay", "digital_rock", 1, False),
)


@dataclass(frozen=True)
class Seconds:
    """A moment or a span, on the clock and of the processor."""

    clock: float
    cpu: float

    @classmethod
    def now(cls) -> "Seconds":
        """Return the present moment."""
        return cls(time.perf_counter(), time.process_time())

    def __sub__(self, earlier: "Seconds") -> "Seconds":
        return Seconds(self.clock - earlier.clock, self.cpu - earlier.cpu)


@dataclass(frozen=True, eq=False)
class Encoded:
    """An image as the decoder needs it."""

    embedding: NDArray[np.float32]
    """(1, C, h, w)"""
    transform: FrameTransform
    colours: ColourModel


class PromptedModel(Protocol):
    """What answers boxes and clicks."""

    def encode(self, image_rgb: NDArray[np.uint8]) -> tuple[Encoded, Seconds]:
        """Return the image encoded, and what the encoder took."""
        ...

    def decode(self, image: Encoded, prompt: ObjectPrompt) -> tuple[BoolArray, NDArray[np.float32], Seconds]:
        """Return the chosen mask, its low-resolution logits, and what the decoder took."""
        ...


class ExportedPair:
    """The two graphs of a folder, on the CPU."""

    def __init__(self, folder: Path, threads: int, *, is_decoder_alone: bool = False) -> None:
        """is_decoder_alone: leave out the colours and the box's bound, to see what they bring."""
        self._is_decoder_alone = is_decoder_alone
        self.encoder_spec = spec_from_json((folder / ENCODER / "model.json").read_bytes())
        self.segmenter_spec = spec_from_json((folder / SEGMENTER / "model.json").read_bytes())
        assert isinstance(self.encoder_spec, EncoderSpec)
        assert isinstance(self.segmenter_spec, SegmenterSpec)
        self._preprocessing, self._segmenter = self.encoder_spec.preprocessing, self.segmenter_spec
        if is_decoder_alone:
            self._segmenter = self.segmenter_spec.model_copy(update={"box_bounds_mask": False})
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        providers = ["CPUExecutionProvider"]
        self._encoder = ort.InferenceSession(folder / ENCODER / self.encoder_spec.graph, options, providers=providers)
        decoder_path = folder / SEGMENTER / self.segmenter_spec.graph
        self._decoder = ort.InferenceSession(decoder_path, options, providers=providers)

    def encode(self, image_rgb: NDArray[np.uint8]) -> tuple[Encoded, Seconds]:
        """Return the image encoded, and what the whole graph took."""
        prepared = preprocess(image_rgb, self._preprocessing)
        names = ["image_embedding", "patch_features", "colours"]
        before = Seconds.now()
        embedding, _, colours = self._encoder.run(names, {"image": prepared.tensor[None]})
        spent = Seconds.now() - before
        return Encoded(embedding, prepared.transform, colour_model(colours[0], prepared.transform)), spent

    def decode(self, image: Encoded, prompt: ObjectPrompt) -> tuple[BoolArray, NDArray[np.float32], Seconds]:
        """Return the chosen mask, its low-resolution logits, and what the graph and the sharpening took."""
        tokens = prompt_tokens(prompt, image.transform, self._segmenter)
        before = Seconds.now()
        logits, scores = self._decoder.run(["low_res_logits", "iou_predictions"], _feed(image.embedding, tokens))
        low_res = logits[0, chosen_plane(prompt, scores[0])]
        sharp = low_res if self._is_decoder_alone else image.colours.sharpen(low_res)
        seconds = Seconds.now() - before
        return final_mask(sharp, prompt, image.transform, self._segmenter, None), low_res, seconds


def colour_model(colours: NDArray[np.float32], transform: FrameTransform) -> ColourModel:
    """Return what the colours (3, H, W) of an image say, with the shipped settings."""
    model = ColourModel.of(colours, transform, segmenter_spec())
    assert model is not None
    return model


def chosen_plane(prompt: ObjectPrompt, scores: NDArray[np.float32]) -> int:
    """Return which plane answers a prompt, given their predicted IoU (4,).

    One click is answered by the best of the three alternatives, anything more by plane 0.
    """
    is_ambiguous = prompt.num_points == 1 and prompt.box_xyxy is None and not prompt.has_mask
    return 1 + int(scores[1:].argmax()) if is_ambiguous else 0


def _feed(embedding: NDArray[np.float32], tokens: PromptTokens) -> dict[str, NDArray[np.generic]]:
    assert tokens.mask_logits is not None
    return {
        "image_embedding": embedding,
        "image_index": np.zeros(1, np.int64),
        "point_coords": tokens.coords[None],
        "point_labels": tokens.labels[None],
        "mask_input": tokens.mask_logits[None, None],
        "has_mask_input": np.ones(1, np.float32),
    }


def read_set(data_dir: Path, wanted: EvaluationSet, limit: int) -> Iterator[tuple[NDArray[np.uint8], BoolArray]]:
    """Yield up to ``limit`` images with one object each, evenly from the list; of natural sets only held-out images."""
    folder = data_dir / wanted.folder
    with (folder / "filelist.csv").open() as file:
        ids = [row["id"] for row in csv.DictReader(file) if str(wanted.value) in row["mask_values"].split()]
    held_out = held_out_ids(wanted.folder)
    ids = [i for i in ids if not held_out or i in held_out]
    for index in sorted({int(i) for i in np.linspace(0, len(ids) - 1, min(limit, len(ids)))}):
        image = cv2.imread(str(next((folder / "images").glob(f"{ids[index]}.*"))), cv2.IMREAD_COLOR)
        mask = cv2.imread(str(folder / "masks" / f"{ids[index]}.png"), cv2.IMREAD_UNCHANGED)
        assert image is not None
        assert mask is not None
        target = np.asarray(mask == wanted.value)
        if not wanted.whole_class:
            target = largest_piece(target)
        yield np.ascontiguousarray(image[..., ::-1]).astype(np.uint8), target


def measure(pair: PromptedModel, objects: Iterable[tuple[NDArray[np.uint8], BoolArray]]) -> dict[str, float]:
    """Return mean IoU in per cent for the plain box, a box, and 1, 3 and 5 clicks, of images with one object each."""
    scores: dict[str, list[float]] = {}
    for image, target in objects:
        encoded, _ = pair.encode(image)
        box = tight_box(target)
        plain = np.zeros_like(target)
        plain[int(box[1]) : int(box[3]), int(box[0]) : int(box[2])] = True
        scores.setdefault("plain_box", []).append(iou(plain, target))
        predicted, _, _ = pair.decode(encoded, ObjectPrompt(box_xyxy=box))
        scores.setdefault("box", []).append(iou(predicted, target))
        for name, reuses_mask in (("clicks", False), ("clicks_refining", True)):
            for count, value in _click(pair, encoded, target, reuses_mask):
                scores.setdefault(f"{count}_{name}", []).append(value)
    return {name: round(100 * float(np.mean(values)), 1) for name, values in scores.items()} | {
        "num_images": len(scores["box"])
    }


def _click(pair: PromptedModel, image: Encoded, target: BoolArray, reuses_mask: bool) -> Iterator[tuple[int, float]]:
    predicted, low_res = np.zeros_like(target), None
    points, labels = [], []
    for count in range(1, max(CLICKS) + 1):
        point, label = next_click(predicted, target)
        points.append(point)
        labels.append(label)
        prompt = ObjectPrompt(np.array(points, np.float32), np.array(labels), low_res_logits=low_res)
        predicted, logits, _ = pair.decode(image, prompt)
        low_res = logits if reuses_mask else None
        if count in CLICKS:
            yield count, iou(predicted, target)


def time_graphs(pair: ExportedPair, repeats: int = 30) -> dict[str, float]:
    """Return the median milliseconds of both graphs for one image and one click.

    ``*_ms`` is time on the clock, ``*_cpu_ms`` the processor's: the latter does not count what other programs took.
    """
    image = np.random.default_rng(0).integers(0, 256, (512, 512, 3)).astype(np.uint8)
    click = ObjectPrompt(np.array([[200, 300]], np.float32), np.array([1]))
    taken: dict[str, list[float]] = {"encode_ms": [], "decode_ms": [], "encode_cpu_ms": [], "decode_cpu_ms": []}
    for _ in range(repeats):
        encoded, spent = pair.encode(image)
        _, _, spent_decoding = pair.decode(encoded, click)
        for name, seconds in (("encode", spent), ("decode", spent_decoding)):
            taken[f"{name}_ms"].append(seconds.clock)
            taken[f"{name}_cpu_ms"].append(seconds.cpu)
    return {name: round(1000 * float(np.median(values)), 1) for name, values in taken.items()}


def evaluate(
    folder: Path, data_dir: Path, output: Path, *, limit: int, threads: int, is_decoder_alone: bool = False
) -> dict[str, object]:
    """Measure the pair in ``folder`` and write the figures with what made them."""
    pair = ExportedPair(folder, threads, is_decoder_alone=is_decoder_alone)
    sets = {}
    for wanted in SETS:
        sets[wanted.name] = measure(pair, read_set(data_dir, wanted, 200 if wanted.whole_class else limit))
        print(wanted.name, sets[wanted.name], flush=True)
    figures: dict[str, object] = {
        "sets": sets,
        "speed": time_graphs(pair) | {"threads": threads, "load_average": round(os.getloadavg()[0], 2)},
        "protocol": [asdict(s) for s in SETS],
        "is_decoder_alone": is_decoder_alone,
        "models": {name: _sha256(folder / name) for name in (ENCODER, SEGMENTER)},
        "commit": code_commit(),
        "device": f"{platform.machine()} CPU, {threads} threads, onnxruntime {ort.__version__}",
    }
    output.write_text(json.dumps(figures, indent=1) + "\n")
    return figures


def comparison(runs: dict[str, dict[str, Any]]) -> str:
    """Return a Markdown table of the figures of several runs, box / 1 / 3 / 5 clicks for each set."""
    columns = ("box", "1_clicks", "3_clicks", "5_clicks")
    lines = [f"| set | plain box | {' | '.join(runs)} |", "|---|--:|" + "---|" * len(runs)]
    for name in next(iter(runs.values()))["sets"]:
        found = [run["sets"][name] for run in runs.values()]
        cells = [" / ".join(f"{scores[c]:.1f}" for c in columns) for scores in found]
        lines.append(f"| {name} | {found[-1]['plain_box']:.1f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _sha256(folder: Path) -> str:
    graph = next(folder.glob("*.onnx"))
    spec = canonical_json(json.loads((folder / "model.json").read_text()))
    return hashlib.sha256(graph.read_bytes() + spec).hexdigest()


def code_commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"
