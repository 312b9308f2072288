"""Prompts about one object, and the tokens a mask decoder reads them as.

Source of the token order: segment-anything, ``SamPredictor.predict_torch`` and ``PromptEncoder._embed_points``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vplab.errors import InvalidInput
from vplab.vision.masks import mask_to_low_res_logits
from vplab.vision.preprocessing import FrameTransform
from vplab.vision.specs import PromptRaster, SegmenterSpec

MAX_POINTS = 256

PADDING, BACKGROUND, FOREGROUND, BOX_MIN, BOX_MAX = -1, 0, 1, 2, 3
"""Point labels of SAM's prompt encoder."""


@dataclass(frozen=True)
class ObjectPrompt:
    """Everything that is said about one object, in pixels of the oriented original image."""

    points_xy: NDArray[np.float32] | None = None
    """(N, 2) float32 clicks, 0 <= x <= width, 0 <= y <= height; at most MAX_POINTS."""
    point_labels: NDArray[np.int64] | None = None
    """(N,) 1 where the object covers the point, 0 where it does not."""
    box_xyxy: NDArray[np.float32] | None = None
    """(4,) float32, x_min < x_max and y_min < y_max, within the image."""
    low_res_logits: NDArray[np.float32] | None = None
    """(h, w) float32 of an earlier answer; excludes ``mask``."""
    mask: NDArray[np.bool_] | None = None
    """(H, W) bool guess of the image's size; excludes ``low_res_logits``."""

    @property
    def num_points(self) -> int:
        return 0 if self.points_xy is None else len(self.points_xy)

    @property
    def has_mask(self) -> bool:
        return self.low_res_logits is not None or self.mask is not None

    def bounded(self, mask: NDArray[np.bool_], spec: SegmenterSpec) -> NDArray[np.bool_]:
        """Return an answer's mask (H, W), cut at the box where the segmenter says so and nothing but a box was said."""
        if self.box_xyxy is None or self.num_points or self.has_mask or not spec.box_bounds_mask:
            return mask
        x_min, y_min, x_max, y_max = self.box_xyxy
        area = np.s_[math.floor(y_min) : math.ceil(y_max), math.floor(x_min) : math.ceil(x_max)]
        bounded = np.zeros_like(mask)
        bounded[area] = mask[area]
        return bounded

    def check(self, original_hw: tuple[int, int], low_res_hw: tuple[int, int]) -> None:
        """Raise InvalidInput naming the first field that does not fit the image or the segmenter."""
        if not self.num_points and self.box_xyxy is None and not self.has_mask:
            raise InvalidInput("a prompt needs points, a box or a mask input", field="points")
        self._check_points(original_hw)
        self._check_box(original_hw)
        if self.low_res_logits is not None and self.mask is not None:
            raise InvalidInput("a prompt has one mask input", field="mask")
        if self.low_res_logits is not None:
            if self.low_res_logits.shape != low_res_hw:
                message = f"logits are {self.low_res_logits.shape}, the segmenter's are {low_res_hw}"
                raise InvalidInput(message, field="low_res_logits")
            if not np.isfinite(self.low_res_logits).all():
                raise InvalidInput("logits are not finite", field="low_res_logits")
        if self.mask is not None and self.mask.shape != original_hw:
            message = f"the mask is {self.mask.shape[::-1]} pixels, the image {original_hw[::-1]}"
            raise InvalidInput(message, field="mask")

    def _check_points(self, original_hw: tuple[int, int]) -> None:
        if self.points_xy is None:
            return
        if self.num_points > MAX_POINTS:
            raise InvalidInput(f"{self.num_points} points are more than {MAX_POINTS}", field="points")
        if self.point_labels is None or len(self.point_labels) != self.num_points:
            raise InvalidInput("every point needs a label", field="points")
        height, width = original_hw
        points = self.points_xy.reshape(-1, 2).tolist()  # most prompts have few, for which numpy is slower
        for axis, name, limit in ((0, "x", width), (1, "y", height)):
            for index, point in enumerate(points):
                if not 0 <= point[axis] <= limit:
                    raise InvalidInput(f"{name} is not within 0 and {limit}", field=f"points[{index}].{name}")
        if any(label not in (BACKGROUND, FOREGROUND) for label in self.point_labels.tolist()):
            raise InvalidInput("labels are foreground or background", field="points")

    def _check_box(self, original_hw: tuple[int, int]) -> None:
        if self.box_xyxy is None:
            return
        x_min, y_min, x_max, y_max = map(float, self.box_xyxy)
        height, width = original_hw
        if not 0 <= x_min < x_max <= width:
            raise InvalidInput(f"0 <= x_min < x_max <= {width} does not hold", field="box")
        if not 0 <= y_min < y_max <= height:
            raise InvalidInput(f"0 <= y_min < y_max <= {height} does not hold", field="box")


@dataclass(frozen=True)
class PromptTokens:
    """One prompt as the decoder graph takes it."""

    coords: NDArray[np.float32]
    """(P, 2) float32, (x, y) in pixels of the encoder's input."""
    labels: NDArray[np.float32]
    """(P,) float32: -1 padding, 0 background, 1 foreground, 2 and 3 the box corners."""
    mask_logits: NDArray[np.float32] | None
    """(h, w) float32, or None where the prompt has no mask input."""


def prompt_tokens(prompt: ObjectPrompt, transform: FrameTransform, spec: SegmenterSpec) -> PromptTokens:
    """Return the tokens of a prompt: its points, then the box corners, or without a box one padding point.

    A prompt that is a mask alone has no tokens. Where the spec has a prompt raster, the mask input is the raster, or
    the prompt's own mask with its clicks added.
    """
    coords = [np.zeros((0, 2), np.float32)]
    labels = [np.zeros(0, np.float32)]
    if prompt.points_xy is not None and prompt.point_labels is not None and prompt.num_points:
        coords.append(transform.points_to_input(prompt.points_xy))
        labels.append(prompt.point_labels.astype(np.float32))
    if prompt.box_xyxy is not None:
        coords.append(transform.boxes_to_input(prompt.box_xyxy.reshape(1, 4)).reshape(2, 2))
        labels.append(np.array([BOX_MIN, BOX_MAX], np.float32))
    elif prompt.num_points:
        coords.append(np.zeros((1, 2), np.float32))
        labels.append(np.array([PADDING], np.float32))
    xy, label = np.concatenate(coords).astype(np.float32), np.concatenate(labels)
    if prompt.low_res_logits is not None:
        mask_logits: NDArray[np.float32] | None = prompt.low_res_logits
    elif prompt.mask is not None:
        mask_logits = mask_to_low_res_logits(prompt.mask, transform, spec.low_res_hw)
    else:
        mask_logits = None
    if spec.prompt_raster is not None:
        # A mask that is handed back already knows where the box was.
        kinds = label if mask_logits is None else np.where(label >= BOX_MIN, np.float32(PADDING), label)
        drawn = rasterize_prompt(xy, kinds, spec.low_res_hw, spec.input_size, spec.prompt_raster)
        mask_logits = drawn if mask_logits is None else mask_logits + drawn
    return PromptTokens(xy, label, mask_logits)


def group_by_token_count(tokens: Sequence[PromptTokens]) -> dict[int, list[int]]:
    """Return the positions of the prompts that may share a decoder call, by number of tokens."""
    groups: dict[int, list[int]] = {}
    for index, token in enumerate(tokens):
        groups.setdefault(len(token.labels), []).append(index)
    return groups


def rasterize_prompt(
    coords: NDArray[np.float32],
    labels: NDArray[np.float32],
    low_res_hw: tuple[int, int],
    input_size: int,
    raster: PromptRaster,
) -> NDArray[np.float32]:
    """Draw one prompt on the low-resolution grid, as ``vplab.vision.nano.prompt_raster`` does for training.

    coords: (P, 2) float32, (x, y) pixels of the model's input. labels: (P,), as the decoder takes them.
    Returns (h, w) float32 logits. A cell is inside a box when its centre is, borders included.
    """
    height, width = low_res_hw
    step = np.array([input_size / width, input_size / height], np.float32)
    cells = (coords.astype(np.float32) + np.float32(0.5)) / step
    x = np.arange(width, dtype=np.float32) + np.float32(0.5)
    y = np.arange(height, dtype=np.float32) + np.float32(0.5)
    canvas = np.zeros((height, width), np.float32)
    corners = [cells[labels == label] for label in (BOX_MIN, BOX_MAX)]
    if len(corners[0]) and len(corners[1]):
        low, high = corners[0][0], corners[1][0]
        within = ((y >= low[1]) & (y <= high[1]))[:, None] & ((x >= low[0]) & (x <= high[0]))[None, :]
        canvas = np.where(within, np.float32(raster.box_inside), np.float32(raster.box_outside))
    sign = (labels == FOREGROUND).astype(np.float32) - (labels == BACKGROUND).astype(np.float32)
    scale = np.float32(-0.5 / raster.click_sigma**2)
    bump_x = np.exp(scale * (x - cells[:, :1]) ** 2)  # (P, w)
    bump_y = np.exp(scale * (y - cells[:, 1:]) ** 2)  # (P, h)
    clicks = (bump_y * (sign * np.float32(raster.click_peak))[:, None]).T @ bump_x
    return np.asarray(canvas + clicks, np.float32)
