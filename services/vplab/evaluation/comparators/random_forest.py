"""A random forest on filtered pixels, as ilastik's pixel classification does it (Berg et al., Nature Methods 2019).

Features: scikit-image's ``multiscale_basic_features`` (intensity, gradient, eigenvalues of the Hessian) of
each colour.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.feature import multiscale_basic_features
from sklearn.ensemble import RandomForestClassifier  # type: ignore[import-untyped,import-not-found,unused-ignore]

from vplab.evaluation.comparators.marks import ScaledImage
from vplab.evaluation.values import LabelArray, LabelledImage, RgbArray

_ROWS_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class RandomForest:
    """Implements ``ShotMethod``."""

    max_side: int = 512
    """Larger images are scaled down, in pixels, for the sake of time."""
    num_trees: int = 100
    pixels_per_class: int = 20_000
    """At most this many pixels of each class, over all shots."""
    num_threads: int = 1

    name = "random_forest"
    min_shots = 1
    num_in_flight = 1

    def fit(self, shots: Sequence[LabelledImage], class_ids: Sequence[int], seed: int) -> "RandomForestPredictor":
        """Grow the forest on as many pixels of each class, drawn evenly over the shots."""
        rng = np.random.default_rng(seed)
        rows: list[NDArray[np.float32]] = []
        targets: list[NDArray[np.uint8]] = []
        for shot, pixels in zip(shots, self._draw(shots, rng), strict=True):
            features = _features(ScaledImage.fit(shot.image_rgb, self.max_side))
            rows.append(features[pixels])
            targets.append(self._labels(shot).reshape(-1)[pixels])
        forest = RandomForestClassifier(self.num_trees, random_state=seed, n_jobs=self.num_threads)
        forest.fit(np.concatenate(rows), np.concatenate(targets))
        return RandomForestPredictor(forest, self.max_side)

    def _labels(self, shot: LabelledImage) -> LabelArray:
        height, width = ScaledImage.fit(shot.image_rgb, self.max_side).size_hw
        return cv2.resize(shot.labels, (width, height), interpolation=cv2.INTER_NEAREST).astype(np.uint8)

    def _draw(self, shots: Sequence[LabelledImage], rng: np.random.Generator) -> list[NDArray[np.int64]]:
        """Return the flat pixel numbers to learn from, shot by shot."""
        labels = [self._labels(shot).reshape(-1) for shot in shots]
        classes = np.unique(np.concatenate([np.unique(flat) for flat in labels]))
        counts = np.array([[np.count_nonzero(flat == c) for c in classes] for flat in labels])
        drawn: list[list[NDArray[np.int64]]] = [[] for _ in shots]
        per_class = min(self.pixels_per_class, int(counts.sum(0).max()))
        for column, class_id in enumerate(classes):
            # A class smaller than the sample is repeated, so that the forest sees all classes alike.
            pool_sizes = counts[:, column]
            owner = np.repeat(np.arange(len(shots)), pool_sizes)
            within = np.concatenate([np.arange(size) for size in pool_sizes])
            picks = rng.choice(len(owner), per_class, replace=len(owner) < per_class)
            for index, flat in enumerate(labels):
                chosen = within[picks[owner[picks] == index]]
                drawn[index].append(np.flatnonzero(flat == class_id)[chosen])
        return [np.concatenate(parts) for parts in drawn]


@dataclass(frozen=True)
class RandomForestPredictor:
    """A grown forest; implements ``ShotPredictor``."""

    forest: RandomForestClassifier
    max_side: int

    def predict(self, image_rgb: RgbArray, name: str) -> LabelArray:
        """Return the likeliest class of each pixel, (H, W) uint8."""
        scaled = ScaledImage.fit(image_rgb, self.max_side)
        features = _features(scaled)
        parts = [
            self.forest.predict_proba(features[start : start + _ROWS_AT_ONCE])
            for start in range(0, len(features), _ROWS_AT_ONCE)
        ]
        height, width = scaled.original_hw
        shares = np.concatenate(parts).astype(np.float32)
        # Class by class, because OpenCV resizes at most four channels in one go.
        planes = [
            cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR)
            for plane in shares.T.reshape(-1, *scaled.size_hw)
        ]
        labels: LabelArray = self.forest.classes_[np.argmax(planes, axis=0)].astype(np.uint8)
        return labels


def _features(scaled: ScaledImage) -> NDArray[np.float32]:
    """Return (h * w, D) float32 of an image: five scales from 1 to 16 pixels."""
    image = scaled.image_rgb.astype(np.float32) / np.float32(255)
    found = multiscale_basic_features(
        image, intensity=True, edges=True, texture=True, sigma_min=1, sigma_max=16, workers=1, channel_axis=-1
    )
    return np.ascontiguousarray(found.reshape(-1, found.shape[-1]), np.float32)
