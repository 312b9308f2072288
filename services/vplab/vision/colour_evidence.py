"""What an object's own colours say about its mask, where the decoder is not sure.

A small decoder knows where an object is better than where it ends: its grid is coarse. The colours inside its sure
foreground and its sure background around it, as two histograms, say for every pixel of a finer grid which of the two it
is more like; the logarithm of that ratio is added to the logits.

Source: the colour models of GrabCut (Rother et al., SIGGRAPH 2004), as histograms and without the graph cut.
"""

from collections.abc import Sequence
from typing import Any, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from vplab.vision.masks import mask_box
from vplab.vision.preprocessing import FrameTransform
from vplab.vision.specs import ColourEvidence, SegmenterSpec

_LEAST_SHARE = 1e-3
"""Added to both shares of a colour, so that one that neither histogram knows says nothing."""
_ONE = np.ones(1, np.float32)
_MIN_MARGIN = 1 / 64
"""Least width of the background around the object, as a share of the frame."""


class ColourModel:
    """The colours of one image, ready for any number of masks. Thread-safe."""

    def __init__(
        self, colours: NDArray[np.floating], transform: FrameTransform, evidence: ColourEvidence, threshold: float
    ) -> None:
        """colours: (3, H, W), RGB in 0..1 of the whole padded frame. threshold: the decoder's mask threshold."""
        self._evidence = evidence
        self._threshold = np.float32(threshold)
        self._size_hw = colours.shape[1], colours.shape[2]
        (pad_h, pad_w), (valid_h, valid_w) = transform.padded_hw, transform.input_hw
        self._valid_hw = -(-self._size_hw[0] * valid_h // pad_h), -(-self._size_hw[1] * valid_w // pad_w)
        levels = evidence.levels
        red, green, blue = np.clip((colours.astype(np.float32) * levels).astype(np.int32), 0, levels - 1)
        self._bins = (red * levels + green) * levels + blue  # (H, W)
        self._kernel = cv2.getGaussianKernel(2 * round(4 * evidence.smoothing) + 1, evidence.smoothing, cv2.CV_32F)

    @classmethod
    def of(cls, colours: NDArray[Any] | None, transform: FrameTransform, spec: SegmenterSpec) -> Self | None:
        """Return what sharpens a segmenter's masks of an image; None where it asks for nothing, or no colours came."""
        if colours is None or spec.colour_evidence is None:
            return None
        return cls(colours, transform, spec.colour_evidence, spec.mask_threshold)

    @property
    def num_bytes(self) -> int:
        """What it holds in memory."""
        return int(self._bins.nbytes)

    def sharpen(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return one mask's logits with what the colours say of it; logits: (h, w) over the padded frame.

        (H, W) float32 on the colours' grid. A mask without foreground, or without background around it, is only
        enlarged.
        """
        height, width = self._size_hw
        plane = np.ascontiguousarray(logits, np.float32)
        enlarged = np.asarray(cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)
        valid = np.s_[: self._valid_hw[0], : self._valid_hw[1]]
        certainty = enlarged[valid] - self._threshold
        box = mask_box(certainty > 0)
        if box is None:
            return enlarged
        area = self._around(box)
        near, bins = certainty[area], self._bins[valid][area]
        sure = self._evidence.sure_logit
        inside, outside = near > min(sure, 0.5 * float(near.max())), near < -sure
        if not outside.any():
            return enlarged
        ratio = np.log(self._shares(bins[inside])) - np.log(self._shares(bins[outside]))
        enlarged[valid] += np.float32(self._evidence.weight) * ratio[self._bins[valid]]
        return enlarged

    def _around(self, box: tuple[int, int, int, int]) -> tuple[slice, slice]:
        """Return the box with the surroundings that stand for the background."""
        x_min, y_min, x_max, y_max = box
        margin = round(max(self._evidence.reach * max(x_max - x_min, y_max - y_min), _MIN_MARGIN * self._size_hw[1]))
        return np.s_[max(0, y_min - margin) : y_max + margin, max(0, x_min - margin) : x_max + margin]

    def _shares(self, bins: NDArray[np.int32]) -> NDArray[np.float32]:
        """Return each colour's smoothed share of the pixels, (levels ** 3,) float32."""
        levels = self._evidence.levels
        counts = np.bincount(bins, minlength=levels**3).astype(np.float32)
        for _ in range(3):
            # Blurs the first axis and moves it to the end, so three turns blur all and restore the order.
            rows = counts.reshape(levels, levels**2)
            blurred = cv2.sepFilter2D(rows, -1, _ONE, self._kernel, borderType=cv2.BORDER_REFLECT)
            counts = np.asarray(blurred.T.reshape(-1), np.float32)
        return np.asarray(counts / np.float32(max(len(bins), 1)) + np.float32(_LEAST_SHARE))


class TileColours:
    """The colour models of an image's tiles, each made when its first mask comes."""

    def __init__(
        self, colours: Sequence[NDArray[Any] | None], transforms: Sequence[FrameTransform], spec: SegmenterSpec
    ) -> None:
        """colours: (3, H, W) of each tile, None where they are not known."""
        self._colours = colours
        self._transforms = transforms
        self._spec = spec
        self._models: dict[int, ColourModel | None] = {}

    def sharpen(self, tile: int, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return a mask's logits as ``ColourModel.sharpen`` does, or as they are without one."""
        if tile not in self._models:
            self._models[tile] = ColourModel.of(self._colours[tile], self._transforms[tile], self._spec)
        model = self._models[tile]
        return logits if model is None else model.sharpen(logits)
