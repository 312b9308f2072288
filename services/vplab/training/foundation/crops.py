"""Training examples cut out of the cached sources: a view of one image and the exact masks of some of its segments."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from vplab.training.foundation.sources import PROCEDURAL, Source

PADDING_VALUE = 127
"""Nearest byte to the channel mean 127.5, which is what padding holds after normalisation."""
LOOSE_SHARE = 0.25
"""Of the generated views, how many have masks as loose as a hurried person draws them; exact ones are the rule."""
_LOW_RESOLUTION_SHARE = 0.3
_JPEG_SHARE = 0.3
_MIN_AREA_FRACTION = 0.0008
_MAX_AREA_FRACTION = 0.9
_MAX_TRIES = 20


@dataclass(frozen=True)
class View:
    """One training view."""

    image: NDArray[np.uint8]
    """(S, S, 3) RGB."""
    masks: NDArray[np.bool_]
    """(N, S, S), none empty."""


class ViewSampler:
    """Draws views with the mix of sources given; the same generator state gives the same views."""

    def __init__(self, sources: Sequence[Source], weights: Mapping[str, float], size: int, num_masks: int) -> None:
        self._sources = [s for s in sources if weights.get(s.name, 0) > 0]
        shares = np.array([weights[s.name] for s in self._sources])
        self._shares = shares / shares.sum()
        self._size = size
        self._num_masks = num_masks

    def draw(self, rng: np.random.Generator) -> View:
        """Return one view with ``num_masks`` masks; a view of few segments repeats some."""
        for _ in range(_MAX_TRIES):
            source = self._sources[rng.choice(len(self._sources), p=self._shares)]
            entry_index = int(rng.integers(len(source.entries)))
            entry = source.entries[entry_index]
            row = int(rng.choice(entry.label_rows))
            height, width = entry.size_hw
            image: NDArray[np.uint8] = source.images[entry_index, :height, :width]
            segments = source.labels[row, :height, :width]
            matrix, scale = self._place(segments, rng)
            view_segments = self._warp(segments, matrix, cv2.INTER_NEAREST, 0)
            masks = self._choose(view_segments, rng)
            if masks is not None:
                if scale < 0.7:
                    image = cv2.blur(image, (2, 2)).astype(np.uint8)  # against aliasing; exact to half a pixel
                view = self._warp(image, matrix, cv2.INTER_LINEAR, PADDING_VALUE).astype(np.uint8)
                if source.name == PROCEDURAL and rng.random() < LOOSE_SHARE:
                    masks = loosened(masks, rng)
                return View(degrade(vary_colour(view, rng), rng), masks)
        raise RuntimeError(f"no usable segments in {_MAX_TRIES} draws; the sources hold too few masks")

    def _place(self, segments: NDArray[np.uint16], rng: np.random.Generator) -> tuple[NDArray[np.float64], float]:
        """Return the 2 x 3 map from view pixels' source to the view, and its scale.

        Three views in ten show the whole picture at the top left, as inference does; the others are turned, flipped
        and scaled, and zoom in on a random segment's pixel.
        """
        height, width = segments.shape
        fit = self._size / max(height, width)
        if rng.random() < 0.3:
            flip = rng.random() < 0.5
            matrix = np.array([[-fit if flip else fit, 0, fit * (width - 1) if flip else 0], [0, fit, 0]])
            return matrix, fit
        scale = fit * float(np.exp(rng.uniform(np.log(0.6), np.log(2.5))))
        angle = rng.normal(0, 8) + (90 * rng.integers(4) if rng.random() < 0.3 else 0)
        turn = np.deg2rad(angle)
        linear = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        linear = linear @ np.diag([rng.choice([-1, 1]), 1])
        ids = np.nonzero(np.bincount(segments.ravel())[1:])[0] + 1
        rows, columns = np.nonzero(segments == (rng.choice(ids) if len(ids) else 0))
        pick = int(rng.integers(len(rows)))
        focus = np.array([columns[pick], rows[pick]])
        target = self._size * rng.uniform(0.25, 0.75, 2)
        return np.column_stack([linear, target - linear @ focus]), scale

    def _warp(
        self, array: NDArray[np.integer], matrix: NDArray[np.float64], interpolation: int, border: int
    ) -> NDArray[np.integer]:
        warped: NDArray[np.integer] = cv2.warpAffine(  # type: ignore[assignment]
            array,
            matrix,
            (self._size, self._size),
            flags=interpolation,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=(border, border, border),
        )
        return warped

    def _choose(self, segments: NDArray[np.integer], rng: np.random.Generator) -> NDArray[np.bool_] | None:
        counts = np.bincount(segments.ravel().astype(np.int64))
        counts[0] = 0
        area = self._size * self._size
        ids = np.nonzero((counts >= _MIN_AREA_FRACTION * area) & (counts <= _MAX_AREA_FRACTION * area))[0]
        if len(ids) == 0:
            return None
        weight = counts[ids] ** 0.4
        order = rng.choice(ids, size=min(len(ids), self._num_masks), replace=False, p=weight / weight.sum())
        chosen = np.resize(order, self._num_masks)
        masks: NDArray[np.bool_] = segments[None] == chosen[:, None, None]
        return masks


def vary_colour(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Change light, contrast, colour, sharpness and noise; (H, W, 3) uint8 in and out.

    Inspection cameras are often grey, inverted (X-ray, fluorescence) or of unusual colours, hence the strong changes.
    """
    x: NDArray[np.float32] = image.astype(np.float32)
    kind = rng.random()
    if kind < 0.3:
        x = np.repeat((x @ np.array([0.299, 0.587, 0.114], np.float32))[..., None], 3, axis=2)
    elif kind < 0.42:
        x = x[..., rng.permutation(3)]
    if rng.random() < 0.08:
        x = 255 - x
    if rng.random() < 0.8:
        gain = np.exp(rng.normal(0, 0.2)) * np.exp(rng.normal(0, 0.07, 3))
        x = (x - 127.5) * gain.astype(np.float32) + 127.5 + np.float32(rng.normal(0, 18))
    if rng.random() < 0.3:
        x = np.float32(255) * (np.clip(x, 0, 255) / np.float32(255)) ** np.float32(np.exp(rng.normal(0, 0.4)))
    if rng.random() < 0.15:
        x = cv2.GaussianBlur(x, (0, 0), float(rng.uniform(0.4, 1.5))).astype(np.float32)
    if rng.random() < 0.25:
        x = x + rng.standard_normal(x.shape[:2], dtype=np.float32)[..., None] * np.float32(rng.uniform(2, 14))
    return np.clip(x, 0, 255).astype(np.uint8)


def degrade(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Lose what a small sensor and a lossy file lose; (H, W, 3) uint8 in and out.

    A picture of 200 pixels reaches the model enlarged two to three times: without this, nothing so soft is ever seen.
    """
    height, width = image.shape[:2]
    if rng.random() < _LOW_RESOLUTION_SHARE:
        scale = float(rng.uniform(0.3, 0.8))
        small = cv2.resize(image, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
        image = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.uint8)
    if rng.random() < _JPEG_SHARE:
        _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(30, 90))])
        image = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
    return image


def loosened(masks: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Widen masks (N, S, S) by up to one and a half per cent of the side and round them, all by the same amount."""
    radius = max(1, round(float(rng.uniform(0.002, 0.015)) * masks.shape[-1]))
    brush = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return np.stack([cv2.dilate(mask.astype(np.uint8), brush) > 0 for mask in masks])
