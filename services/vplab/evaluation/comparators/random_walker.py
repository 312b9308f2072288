"""Random walker (Grady, IEEE TPAMI 2006) through scikit-image: a pixel goes to the marks that a walk reaches first."""

import warnings
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.segmentation import random_walker

from vplab.errors import InvalidInput
from vplab.evaluation.comparators.marks import ScaledImage, border_mask, box_mask, discs
from vplab.evaluation.values import BoolArray, RgbArray

_OBJECT, _BACKGROUND = 1, 2


@dataclass(frozen=True)
class RandomWalker:
    """Implements ``ClickMethod``. Beta, centre and clicks are the best of seven settings on held-out natural images."""

    max_side: int = 256
    """Larger images are scaled down, in pixels: the linear system has one unknown for each pixel."""
    beta: float = 1000.0
    """How much an edge stops a walk."""
    centre_share: float = 0.5
    """Side of the part of a box that is taken for the object, as a share of the box's side."""
    click_radius_share: float = 0.02
    """Radius of a click, as a share of the image's diagonal."""

    name = "random_walker"
    takes_clicks = True
    num_in_flight = 1

    def open(self, image_rgb: RgbArray, name: str) -> "RandomWalkerSession":
        """Begin with one object of an image."""
        return RandomWalkerSession(self, ScaledImage.fit(image_rgb, self.max_side))


@dataclass(frozen=True)
class RandomWalkerSession:
    """One object of one image; every answer is computed anew from all marks."""

    method: RandomWalker
    scaled: ScaledImage

    def predict(
        self,
        points_xy: NDArray[np.float32],
        point_labels: NDArray[np.int64],
        box_xyxy: NDArray[np.float32] | None,
        previous: BoolArray | None,
    ) -> BoolArray:
        """Return the object as (H, W) bool.

        Outside a box is background; without one, the image's border is. Raises InvalidInput without any mark of the
        object.
        """
        if box_xyxy is None and not np.any(point_labels == 1):
            raise InvalidInput("random_walker needs a box or a click on the object", field="points_xy")
        seeds = self._seeds(points_xy, point_labels, box_xyxy)
        if not np.any(seeds == _BACKGROUND):
            return np.ones(self.scaled.original_hw, np.bool_)
        return self.scaled.restore(self._walk(seeds))

    def _seeds(
        self, points_xy: NDArray[np.float32], point_labels: NDArray[np.int64], box_xyxy: NDArray[np.float32] | None
    ) -> NDArray[np.int32]:
        size_hw = self.scaled.size_hw
        seeds = np.zeros(size_hw, np.int32)
        if box_xyxy is None:
            seeds[border_mask(size_hw)] = _BACKGROUND
        else:
            box = self.scaled.box(box_xyxy)
            seeds[~box_mask(size_hw, box)] = _BACKGROUND
            if not np.any(point_labels == 1):
                centre, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2 * self.method.centre_share
                seeds[box_mask(size_hw, np.concatenate([centre - half, centre + half]))] = _OBJECT
        radius = max(1, round(self.method.click_radius_share * float(np.hypot(*size_hw))))
        pixels = self.scaled.points(points_xy)
        seeds[discs(size_hw, pixels[point_labels == 0], radius)] = _BACKGROUND
        seeds[discs(size_hw, pixels[point_labels == 1], radius)] = _OBJECT
        return seeds

    def _walk(self, seeds: NDArray[np.int32]) -> NDArray[np.float32]:
        """Return the probability (h, w) float32 that a walk from a pixel reaches the object first."""
        lab = cv2.cvtColor(self.scaled.image_rgb, cv2.COLOR_RGB2LAB).astype(np.float64) / 255
        with warnings.catch_warnings():
            # scikit-image warns of solvers that would be faster, and of marks that leave nothing to decide.
            warnings.simplefilter("ignore")
            shares = random_walker(
                lab, seeds, beta=self.method.beta, mode="cg_j", tol=1e-3, channel_axis=-1, return_full_prob=True
            )
        if shares.ndim == 2:  # nothing was left to decide, and labels came back instead
            return np.asarray(shares == _OBJECT, np.float32)
        return np.asarray(shares[0], np.float32)
