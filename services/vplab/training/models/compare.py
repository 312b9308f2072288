"""Running an exported graph in ONNX Runtime beside the torch model it came from.

The reference for a decoder is segment-anything's own PromptEncoder and MaskDecoder, called as SamPredictor calls them,
not the module that was exported.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vplab.runtime.onnx_session import OnnxSettings, create_session
from vplab.training.models.parity import (
    EMBEDDING_TOLERANCE,
    END_TO_END_LOGIT_TOLERANCE,
    FEATURE_TOLERANCE,
    LOGIT_TOLERANCE,
    FloatArray,
    ParityCase,
    logit_case,
    max_abs_difference,
)
from vplab.vision.preprocessing import FrameTransform, preprocess
from vplab.vision.prompts import ObjectPrompt, PromptTokens, prompt_tokens
from vplab.vision.sam.build import SamModel
from vplab.vision.sam.onnx_decoder import OUTPUT_NAMES
from vplab.vision.sam.onnx_encoder import INPUT_NAME
from vplab.vision.specs import EncoderSpec, SegmenterSpec

PROVIDERS = ("CPUExecutionProvider",)
"""Both sides run on the CPU, where a difference is the graph's and not the device's."""


@dataclass(frozen=True)
class EncodedImages:
    """The same images through both encoders."""

    transforms: tuple[FrameTransform, ...]
    expected: FloatArray
    """(B, ...) float32 of torch."""
    actual: FloatArray
    """(B, ...) float32 of ONNX Runtime."""


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


def compare_encoder(
    encoder: nn.Module, graph: Path, spec: EncoderSpec, image_sizes_hw: Sequence[tuple[int, int]], seed: int
) -> tuple[EncodedImages, list[ParityCase]]:
    """Encode pictures of these sizes: torch one by one, ONNX Runtime the first alone and the others as a batch."""
    output = spec.outputs[0]
    pictures = [make_picture(size, seed + i) for i, size in enumerate(image_sizes_hw)]
    inputs = [preprocess(picture, spec.preprocessing) for picture in pictures]
    tensors = np.stack([item.tensor for item in inputs])
    with torch.inference_mode():
        expected = np.concatenate([encoder(torch.from_numpy(t[None])).numpy() for t in tensors])
    session = open_graph(graph)
    cases, parts = [], []
    for batch in (slice(0, 1), slice(1, None)):
        if not len(tensors[batch]):
            continue
        actual = session.run([output.name], {INPUT_NAME: tensors[batch]})[0]
        parts.append(actual)
        has_known_scale = output.role in ("patch_features", "colours")
        scale = 1.0 if has_known_scale else float(expected[batch].std())
        case = ParityCase(
            name=f"encode a batch of {len(actual)}",
            image_sizes_hw=tuple(image_sizes_hw[batch]),
            quantity="image_embedding" if output.role == "early_features" else output.role,
            max_abs_difference=max_abs_difference(actual, expected[batch]),
            max_abs_tolerance=scale * (FEATURE_TOLERANCE if has_known_scale else EMBEDDING_TOLERANCE),
        )
        cases.append(case)
    return EncodedImages(tuple(i.transform for i in inputs), expected, np.concatenate(parts)), cases


def compare_segmenter(
    model: SamModel, graph: Path, spec: SegmenterSpec, images: EncodedImages, seed: int
) -> list[ParityCase]:
    """Decode points, boxes and mask inputs on the encoded images, several prompts and images in one call."""
    session = open_graph(graph)
    random = np.random.default_rng(seed)
    # One prompt more than images, so that an image has two prompts and the order is not the images'.
    image_index = np.concatenate([np.arange(len(images.transforms))[::-1], [0]])
    cases = []
    earlier: FloatArray | None = None
    for name, prompts in prompt_batches(random, [images.transforms[i].original_hw for i in image_index]):
        if name.startswith("mask"):
            assert earlier is not None
            prompts = [replace(p, low_res_logits=e) for p, e in zip(prompts, earlier[:, 0], strict=True)]
        tokens = [prompt_tokens(p, images.transforms[i], spec) for p, i in zip(prompts, image_index, strict=True)]
        logits, ious = _reference(model, images.expected, image_index, tokens)
        earlier = logits if earlier is None else earlier
        for source, embedding, tolerance in (
            ("", images.expected, LOGIT_TOLERANCE),
            (", from the image", images.actual, END_TO_END_LOGIT_TOLERANCE),
        ):
            feed = graph_inputs(embedding, image_index, tokens, spec)
            actual = tuple(session.run(list(OUTPUT_NAMES), feed))
            sizes = (images.transforms[i].original_hw for i in image_index)
            num_tokens = len(tokens[0].labels)
            cases.append(
                logit_case(name + source, sizes, num_tokens, actual, (logits, ious), spec.mask_threshold, tolerance)
            )
    return cases


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


def prompt_batches(
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
) -> tuple[FloatArray, FloatArray]:
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
