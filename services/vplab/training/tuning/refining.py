"""The second pass of serving, for training: a proposal's mask, its box and its points become the next prompt.

The numpy twin is ``vplab.vision.pipeline.decoding``; a test holds the two equal.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vplab.training.tuning.grid_masks import mask_iou, on_grid
from vplab.training.tuning.prompting import DrawnPrompt
from vplab.vision.masks import mask_box
from vplab.vision.prompts import BOX_MAX, BOX_MIN, PromptTokens
from vplab.vision.specs import SegmenterSpec

MIN_FIRST_IOU = 0.5
"""Of the first mask with the object, for a second prompt that is trained on."""


def best_plane(
    logits: NDArray[np.float32], predicted_iou: NDArray[np.float32], similarity: NDArray[np.floating]
) -> int | None:
    """Choose the plane that serving chooses; None where all are empty. logits: (M, h, w), predicted_iou: (M,)."""
    best, best_value = None, 0.0
    total = float(similarity.sum(dtype=np.float64))
    for plane, iou in enumerate(predicted_iou):
        mask = logits[plane] > 0
        area = int(mask.sum())
        if area:
            inside = float(similarity[mask].sum(dtype=np.float64))
            value = max(float(iou), 1e-6) * (inside + 1e-6) / (area + 0.5 * total)
            if value > best_value:
                best, best_value = plane, value
    return best


def refined_prompts(
    prompts: Sequence[DrawnPrompt],
    logits: NDArray[np.float32],
    predicted_iou: NDArray[np.float32],
    similarities: Sequence[NDArray[np.floating]],
    segmenter: SegmenterSpec,
) -> list[DrawnPrompt | None]:
    """Return each proposal's second prompt, or None where the first pass found nothing.

    logits: (N, M, h, w); predicted_iou: (N, M); similarities: N of (h, w).
    """
    planes = slice(1, None) if segmenter.num_planes > 1 else slice(0, 1)
    refined: list[DrawnPrompt | None] = []
    for prompt, masks, ious, similarity in zip(prompts, logits, predicted_iou, similarities, strict=True):
        masks = masks[planes] - np.float32(segmenter.mask_threshold)
        plane = best_plane(masks, ious[planes], similarity)
        refined.append(None if plane is None else replace(prompt, tokens=_tokens(prompt, masks[plane], segmenter)))
    return refined


def hands_its_object_back(prompt: DrawnPrompt, segmenter: SegmenterSpec) -> bool:
    """Say whether a second prompt is trained on: its mask is about the object, or there is none to find.

    To ask for the object by the box of something else would teach the decoder to pass over boxes.
    """
    mask = prompt.tokens.mask_logits
    assert mask is not None, "the second pass hands a mask back"
    return prompt.is_false or mask_iou(mask > 0, on_grid(prompt.target, segmenter)) >= MIN_FIRST_IOU


def _tokens(prompt: DrawnPrompt, mask: NDArray[np.float32], segmenter: SegmenterSpec) -> PromptTokens:
    height, width = segmenter.low_res_hw
    step = np.array([segmenter.input_size / width, segmenter.input_size / height] * 2, np.float32)
    box = mask_box(mask > 0)
    assert box is not None, "the chosen plane has foreground"
    corners = (np.array(box, np.float32) * step).reshape(2, 2)
    is_point = prompt.tokens.labels >= 0
    return PromptTokens(
        np.concatenate([prompt.tokens.coords[is_point], corners]),
        np.concatenate([prompt.tokens.labels[is_point], np.array([BOX_MIN, BOX_MAX], np.float32)]),
        mask,
    )
