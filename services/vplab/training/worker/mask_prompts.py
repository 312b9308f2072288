"""Prompts that ask for a mask that is known, to compare or show what a decoder answers."""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vplab.training.models.compare import graph_inputs
from vplab.training.tuning.values import TuningExample, TuningPreview
from vplab.vision.adapters.adapt import AdaptedDecoder
from vplab.vision.adapters.spec import EARLY_INPUT
from vplab.vision.final_masks import final_mask
from vplab.vision.preprocessing import FrameTransform
from vplab.vision.prompts import ObjectPrompt, PromptTokens, prompt_tokens
from vplab.vision.sam.onnx_decoder import INPUT_NAMES
from vplab.vision.specs import SegmenterSpec

Feed = dict[str, NDArray[np.generic]]

MAX_PREVIEWS: Final = 4


def point_in(mask: NDArray[np.bool_], earlier: NDArray[np.float32] | None = None) -> ObjectPrompt:
    """Click on one of the pixels of a mask (S, S) bool in the segmenter's frame."""
    rows, columns = np.nonzero(mask)
    middle = len(rows) // 2
    return ObjectPrompt(points_xy=np.array([[columns[middle], rows[middle]]], np.float32), point_labels=np.array([1]))


def box_around(mask: NDArray[np.bool_], earlier: NDArray[np.float32] | None = None) -> ObjectPrompt:
    """Draw the box around a mask (S, S) bool in the segmenter's frame; ``earlier`` logits go along as mask input."""
    rows, columns = np.nonzero(mask)
    corners = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    return ObjectPrompt(box_xyxy=np.array(corners, np.float32), low_res_logits=earlier)


def tokens_of(prompt: ObjectPrompt, transform: FrameTransform, spec: SegmenterSpec) -> PromptTokens:
    """Return the tokens of a prompt that is in the segmenter's frame, where the examples' masks are."""
    points = None if prompt.points_xy is None else transform.points_to_original(prompt.points_xy)
    box = None if prompt.box_xyxy is None else _box_to_original(prompt.box_xyxy, transform)
    moved = ObjectPrompt(
        points_xy=prompt.points_xy if points is None else points,
        point_labels=prompt.point_labels,
        box_xyxy=box,
        low_res_logits=prompt.low_res_logits,
    )
    return prompt_tokens(moved, transform, spec)


def _box_to_original(box_xyxy: NDArray[np.float32], transform: FrameTransform) -> NDArray[np.float32]:
    corners: NDArray[np.float32] = transform.points_to_original(box_xyxy.reshape(2, 2))
    return corners.reshape(4)


def decode(module: nn.Module, feed: Feed) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return logits (N, M, h, w) and predicted IoU (N, M) of a decoder on the CPU for the inputs of its graph."""
    names = [*INPUT_NAMES, EARLY_INPUT] if EARLY_INPUT in feed else INPUT_NAMES
    with torch.inference_mode():
        logits, ious = module(*(torch.from_numpy(np.asarray(feed[name])) for name in names))
    return logits.numpy(), ious.numpy()


def box_previews(
    decoder: AdaptedDecoder, examples: Sequence[TuningExample], spec: SegmenterSpec
) -> Iterator[TuningPreview]:
    """Yield what a decoder on the CPU makes of boxes around the masks of the first images."""
    shown = [
        (example, class_id, mask)
        for example in examples
        if example.is_original
        for class_id, mask in example.masks.items()
        if mask.any()
    ]
    for example, class_id, mask in shown[:MAX_PREVIEWS]:
        embedding = np.asarray(example.embedding, np.float32)[None]
        tokens = tokens_of(box_around(mask), example.transform, spec)
        feed = graph_inputs(embedding, np.zeros(1, np.int64), [tokens], spec)
        if decoder.early_channels is not None:
            feed[EARLY_INPUT] = np.asarray(example.early_features, np.float32)[None]
        logits, _ = decode(decoder, feed)
        full = final_mask(logits[0, 0], ObjectPrompt(), example.transform, spec, example.colours)
        yield TuningPreview(example.image_index, class_id, full)
