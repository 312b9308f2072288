"""Running an exported graph in ONNX Runtime beside the torch model it came from.

The reference for a decoder is segment-anything's own PromptEncoder and MaskDecoder, called as SamPredictor calls them,
not the module that was exported.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vplab.runtime.onnx_session import OnnxSettings, create_session, releasing_run
from vplab.training.models.parity import (
    EMBEDDING_TOLERANCE,
    END_TO_END,
    FEATURE_TOLERANCE,
    GIVEN_EMBEDDING,
    HALF_PRECISION,
    DecodingTolerance,
    FloatArray,
    ParityCase,
    logit_case,
    max_abs_difference,
)
from vplab.vision.adapters.bank_layout import BANK_INPUT
from vplab.vision.adapters.spec import EARLY_INPUT
from vplab.vision.preprocessing import FrameTransform, preprocess
from vplab.vision.prompts import ObjectPrompt, PromptTokens, prompt_tokens
from vplab.vision.sam.build import SamModel
from vplab.vision.sam.onnx_decoder import OUTPUT_NAMES
from vplab.vision.sam.onnx_encoder import INPUT_NAME
from vplab.vision.specs import EncoderSpec, OutputSpec, Precision, SegmenterSpec

PROVIDERS = ("CPUExecutionProvider",)
"""Both sides run on the CPU, where a difference is the graph's and not the device's."""
_MAX_BATCH = 3
_MAX_PATCHES = 8192
"""Patches of a batch, two images of SAM's: attention over all 4096 of ViT-H's takes 16 heads x 4096^2 x 4 bytes, 1 GiB,
five times for each image, and should fit where the model itself does."""
_PART = 6
"""Prompts decoded together: all of SAM's would take gigabytes."""
_NUM_TWICE = 4
"""Images with a second prompt."""
_SHARED = ("image_embedding", EARLY_INPUT, BANK_INPUT)
"""Inputs of a decoder that all its prompts share."""

Answers = tuple[FloatArray, FloatArray]
"""Logits (N, M, h, w) and IoU predictions (N, M) of N prompts."""


@dataclass(frozen=True)
class TorchImages:
    """Images as the torch model sees and encodes them."""

    transforms: tuple[FrameTransform, ...]
    tensors: FloatArray
    """(B, 3, S, S) float32."""
    expected: tuple[FloatArray, ...]
    """Of each of the encoder's outputs (B, ...) float32."""


@dataclass(frozen=True)
class EncodedImages:
    """The same images through both encoders: their first outputs."""

    transforms: tuple[FrameTransform, ...]
    expected: FloatArray
    """(B, ...) float32 of torch."""
    actual: FloatArray
    """(B, ...) float32 of ONNX Runtime."""
    precision: Precision
    """Of ONNX Runtime's side."""


def open_graph(path: Path) -> Any:
    """Open a graph as the services do, on PROVIDERS."""
    return create_session(path, OnnxSettings(providers=("cpu",), intra_op_threads=torch.get_num_threads()))


def make_picture(size_hw: tuple[int, int], seed: int) -> NDArray[np.uint8]:
    """Draw a (H, W, 3) uint8 picture with edges, slopes and texture: shaded discs on a gradient, with noise."""
    random = np.random.default_rng(seed)
    height, width = size_hw
    y, x = np.mgrid[:height, :width].astype(np.float32)
    picture = np.stack([255 * x / width, 255 * y / height, 128 + 0 * x], axis=-1)
    for _ in range(6):
        centre_y, centre_x = random.uniform(0, height), random.uniform(0, width)
        radius = random.uniform(0.05, 0.25) * min(size_hw)
        distance = np.hypot(y - centre_y, x - centre_x)[..., None]
        picture = np.where(distance < radius, random.uniform(0, 255, 3) * (1 - 0.5 * distance / radius), picture)
    return np.clip(picture + random.normal(0, 12, picture.shape), 0, 255).astype(np.uint8)


def encode_by_torch(
    encoder: nn.Module, spec: EncoderSpec, image_sizes_hw: Sequence[tuple[int, int]], seed: int
) -> TorchImages:
    """Encode pictures of these sizes with the torch model, one by one. encoder: returns a tensor, or one by output."""
    pictures = (make_picture(size, seed + i) for i, size in enumerate(image_sizes_hw))
    inputs = [preprocess(picture, spec.preprocessing) for picture in pictures]
    tensors = np.stack([item.tensor for item in inputs])
    with torch.inference_mode():
        found = [_in_a_tuple(encoder(torch.from_numpy(t[None]))) for t in tensors]
    expected = tuple(np.concatenate([tensor.numpy() for tensor in output]) for output in zip(*found, strict=True))
    return TorchImages(tuple(item.transform for item in inputs), tensors, expected)


def _in_a_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else outputs


def compare_encoder(graph: Path, spec: EncoderSpec, images: TorchImages) -> tuple[EncodedImages, list[ParityCase]]:
    """Encode the same images in ONNX Runtime, alone and in batches of two and three.

    Each output has a case for each size of batch.
    """
    session = open_graph(graph)
    names = [output.name for output in spec.outputs]
    parts: list[list[FloatArray]] = []
    batches: dict[int, list[slice]] = {}
    grid = spec.preprocessing.size // spec.outputs[0].stride
    for batch in _batches(len(images.transforms), max(2, min(_MAX_BATCH, _MAX_PATCHES // grid**2))):
        # The arena would keep gigabytes until the import ends.
        parts.append(releasing_run(session, names, {INPUT_NAME: images.tensors[batch]}))
        batches.setdefault(batch.stop - batch.start, []).append(batch)
    actual = [np.concatenate(found) for found in zip(*parts, strict=True)]
    cases = [
        ParityCase(
            name=f"encode {size} at a time",
            image_sizes_hw=tuple(t.original_hw for batch in same for t in images.transforms[batch]),
            quantity=output.role,
            # Not Python's max, which may pass over NaN.
            max_abs_difference=float(np.max([max_abs_difference(found[batch], wanted[batch]) for batch in same])),
            max_abs_tolerance=_tolerance(output, spec.precision, wanted),
        )
        for output, found, wanted in zip(spec.outputs, actual, images.expected, strict=True)
        for size, same in sorted(batches.items())
    ]
    return EncodedImages(images.transforms, images.expected[0], actual[0], spec.precision), cases


def _tolerance(output: OutputSpec, precision: Precision, expected: FloatArray) -> float:
    if output.role in ("patch_features", "colours"):  # their scale is known
        return FEATURE_TOLERANCE[precision]
    tolerance = EMBEDDING_TOLERANCE[precision] * float(expected.std())
    if output.role == "early_features" and precision == "float16":
        # No normalisation is behind it: single channels of a residual stream are far larger than the rest, and half
        # precision knows their last of eleven bits to a half. As much again for what was added before.
        tolerance += 2**-10 * float(np.abs(expected).max())
    return tolerance


def _batches(count: int, largest: int) -> Iterator[slice]:
    start = 0
    for size in cycle(range(1, largest + 1)):
        if start >= count:
            return
        yield slice(start, min(start + size, count))
        start += size


def compare_segmenter(
    model: SamModel, graph: Path, spec: SegmenterSpec, images: EncodedImages, seed: int
) -> list[ParityCase]:
    """Decode points, boxes and mask inputs on the encoded images, several prompts and images in one call."""
    run = partial(open_graph(graph).run, list(OUTPUT_NAMES))
    is_half = spec.precision == "float16"
    given = HALF_PRECISION if is_half else GIVEN_EMBEDDING
    end_to_end = HALF_PRECISION if is_half or images.precision == "float16" else END_TO_END
    cases = []
    for batch in prompt_batches(images.transforms, spec, seed, partial(_reference, model, images.expected)):
        for source, embedding, tolerance in (
            ("", images.expected, given),
            (", from the image", images.actual, end_to_end),
        ):
            actual = run_in_parts(run, graph_inputs(embedding, batch.image_index, batch.tokens, spec))
            cases.append(batch.case(batch.name + source, actual, batch.expected, spec.mask_threshold, tolerance))
    return cases


@dataclass(frozen=True)
class PromptBatch:
    """Prompts of one kind on many images, with what the reference answers."""

    name: str
    image_index: NDArray[np.int64]
    """(N,) of each prompt."""
    image_sizes_hw: tuple[tuple[int, int], ...]
    """Of each prompt's image."""
    tokens: tuple[PromptTokens, ...]
    """As many of each prompt."""
    expected: Answers

    def case(
        self,
        name: str,
        actual: Answers,
        expected: Answers,
        threshold: float,
        tolerance: DecodingTolerance = GIVEN_EMBEDDING,
    ) -> ParityCase:
        """Compare two answers to these prompts."""
        num_tokens = len(self.tokens[0].labels)
        return logit_case(name, self.image_sizes_hw, num_tokens, actual, expected, threshold, tolerance)


def prompt_batches(
    transforms: Sequence[FrameTransform],
    spec: SegmenterSpec,
    seed: int,
    answer: Callable[[NDArray[np.int64], Sequence[PromptTokens]], Answers],
) -> Iterator[PromptBatch]:
    """Yield a batch for every kind of prompt: points, boxes, and the first batch's answers as mask inputs.

    answer: the reference. Some images have two prompts, and the order of the prompts is not the images'.
    """
    every = np.arange(len(transforms))
    image_index = np.concatenate([every[::-1], every[:_NUM_TWICE]])
    own = [transforms[i] for i in image_index]
    sizes_hw = tuple(transform.original_hw for transform in own)
    earlier: FloatArray | None = None
    for name, prompts in _draw_prompts(np.random.default_rng(seed), sizes_hw):
        if name.startswith("mask"):
            assert earlier is not None
            prompts = [replace(p, low_res_logits=e) for p, e in zip(prompts, earlier[:, 0], strict=True)]
        tokens = tuple(prompt_tokens(p, t, spec) for p, t in zip(prompts, own, strict=True))
        expected = answer(image_index, tokens)
        earlier = expected[0] if earlier is None else earlier
        yield PromptBatch(name, image_index, sizes_hw, tokens, expected)


def run_in_parts(run: Callable[[dict[str, Any]], Sequence[FloatArray]], feed: dict[str, Any]) -> Answers:
    """Run a decoder's graph on _PART prompts at a time, each time with all images."""
    parts = [
        run({name: values if name in _SHARED else values[i : i + _PART] for name, values in feed.items()})
        for i in range(0, len(feed["image_index"]), _PART)
    ]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def graph_inputs(
    image_embedding: FloatArray, image_index: NDArray[np.int64], tokens: Sequence[PromptTokens], spec: SegmenterSpec
) -> dict[str, NDArray[np.generic]]:
    """Return the decoder graph's inputs for prompts that all have the same number of tokens."""
    empty = np.zeros(spec.low_res_hw, np.float32)
    masks = [empty if t.mask_logits is None else t.mask_logits for t in tokens]
    return {
        "image_embedding": image_embedding,
        "image_index": image_index.astype(np.int64),
        "point_coords": np.stack([t.coords for t in tokens]),
        "point_labels": np.stack([t.labels for t in tokens]),
        "mask_input": np.stack(masks)[:, None],
        "has_mask_input": np.array([t.mask_logits is not None for t in tokens], np.float32),
    }


def _draw_prompts(
    random: np.random.Generator, sizes_hw: Sequence[tuple[int, int]]
) -> list[tuple[str, list[ObjectPrompt]]]:
    """Draw a prompt for each image size, once for every kind; mask inputs are to be put in by the caller."""

    def points(num_points: int) -> list[ObjectPrompt]:
        return [
            ObjectPrompt(
                points_xy=(random.uniform(0.1, 0.9, (num_points, 2)) * (width, height)).astype(np.float32),
                point_labels=np.array([1, 0, 1, 1][:num_points]),
            )
            for height, width in sizes_hw
        ]

    def boxes(prompts: Sequence[ObjectPrompt]) -> list[ObjectPrompt]:
        corners = [
            (random.uniform((0.05, 0.05, 0.5, 0.5), (0.45, 0.45, 0.95, 0.95)) * (w, h, w, h)).astype(np.float32)
            for h, w in sizes_hw
        ]
        return [replace(prompt, box_xyxy=box) for prompt, box in zip(prompts, corners, strict=True)]

    nothing = [ObjectPrompt() for _ in sizes_hw]
    return [
        ("one point", points(1)),
        ("three points", points(3)),
        ("box", boxes(nothing)),
        ("box and two points", boxes(points(2))),
        ("mask input alone", nothing),
        ("mask input and one point", points(1)),
    ]


def _reference(
    model: SamModel, embeddings: FloatArray, image_index: NDArray[np.int64], tokens: Sequence[PromptTokens]
) -> Answers:
    logits, ious = [], []
    with torch.inference_mode():
        for index, token in zip(image_index, tokens, strict=True):
            sparse, dense = model.prompt_encoder(**_predictor_prompt(token))
            planes, iou = model.mask_decoder.predict_masks(
                image_embeddings=torch.from_numpy(embeddings[index : index + 1]),
                image_pe=model.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
            )
            logits.append(planes[0].numpy())
            ious.append(iou[0].numpy())
    return np.stack(logits), np.stack(ious)


def _predictor_prompt(token: PromptTokens) -> dict[str, Tensor | tuple[Tensor, Tensor] | None]:
    """Split tokens into what SamPredictor.predict_torch gives its prompt encoder, which adds the padding itself."""
    is_point, is_corner = (token.labels == 0) | (token.labels == 1), token.labels >= 2
    points = (torch.from_numpy(token.coords[is_point])[None], torch.from_numpy(token.labels[is_point])[None])
    return {
        "points": points if is_point.any() else None,
        "boxes": torch.from_numpy(token.coords[is_corner]).reshape(1, 4) if is_corner.any() else None,
        "masks": None if token.mask_logits is None else torch.from_numpy(token.mask_logits)[None, None],
    }
