"""GrabCut (Rother et al., SIGGRAPH 2004) through OpenCV, from a box, from clicks, or from both."""

import os
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from vplab.errors import InvalidInput
from vplab.evaluation.comparators.marks import ScaledImage, box_mask, components_at, discs
from vplab.evaluation.values import BoolArray, RgbArray


@dataclass(frozen=True)
class GrabCut:
    """Implements ``ClickMethod``.

    Box settings were chosen on held-out images of ecssd and bsds500 only. Resolution mattered most: 384 pixels lost a
    little and 256 a lot against the images' own 400 to 481. Two iterations did as well as five. Cutting the context to
    a margin around the box did not help, nor did an ellipse in the box as the first guess. With clicks, a first guess
    by geodesic distance did as well after five clicks as the discs used here; larger discs and starting from the last
    mask did worse.
    """

    max_side: int = 512
    """Larger images are scaled down, in pixels."""
    num_iterations: int = 2
    click_radius_share: float = 0.015
    """Radius of what a click makes certain, as a share of the image's diagonal."""
    guess_radius_share: float = 0.1
    """Radius around a click on the object that is first guessed to be object too, as a share of the diagonal."""

    name = "grabcut"
    takes_clicks = True

    @property
    def num_in_flight(self) -> int:
        """Return the number of cores: OpenCV lets go of the interpreter and draws from a generator of each thread."""
        return os.cpu_count() or 1

    def open(self, image_rgb: RgbArray, name: str) -> "GrabCutSession":
        """Begin with one object of an image."""
        return GrabCutSession(self, ScaledImage.fit(image_rgb, self.max_side))


@dataclass(frozen=True)
class GrabCutSession:
    """One object of one image; every answer is computed anew from all marks."""

    method: GrabCut
    scaled: ScaledImage

    def predict(
        self,
        points_xy: NDArray[np.float32],
        point_labels: NDArray[np.int64],
        box_xyxy: NDArray[np.float32] | None,
        previous: BoolArray | None,
    ) -> BoolArray:
        """Return the object as (H, W) bool; clicked regions only, where there are clicks on the object.

        Raises InvalidInput without any mark of the object.
        """
        is_object = point_labels == 1
        if box_xyxy is None and not is_object.any():
            raise InvalidInput("grabcut needs a box or a click on the object", field="points_xy")
        pixels = self.scaled.points(points_xy)
        found = self._cut(self._first_guess(pixels, is_object, box_xyxy))
        if is_object.any():
            found = components_at(found, pixels[is_object])
        elif box_xyxy is not None and not found.any():
            # GrabCut gives everything away where object and background look alike; a person would keep the box.
            found = box_mask(self.scaled.size_hw, self.scaled.box(box_xyxy))
        return self.scaled.restore(found.astype(np.float32))

    def _first_guess(
        self, pixels_xy: NDArray[np.int64], is_object: BoolArray, box_xyxy: NDArray[np.float32] | None
    ) -> NDArray[np.uint8]:
        size_hw = self.scaled.size_hw
        diagonal = float(np.hypot(*size_hw))
        certain = max(1, round(self.method.click_radius_share * diagonal))
        if box_xyxy is None:
            guess = np.full(size_hw, cv2.GC_PR_BGD, np.uint8)
            around = discs(
                size_hw, pixels_xy[is_object], max(certain, round(self.method.guess_radius_share * diagonal))
            )
            guess[around] = cv2.GC_PR_FGD
        else:
            guess = np.full(size_hw, cv2.GC_BGD, np.uint8)
            guess[box_mask(size_hw, self.scaled.box(box_xyxy))] = cv2.GC_PR_FGD
        guess[discs(size_hw, pixels_xy[~is_object], certain)] = cv2.GC_BGD
        guess[discs(size_hw, pixels_xy[is_object], certain)] = cv2.GC_FGD
        return guess

    def _cut(self, guess: NDArray[np.uint8]) -> BoolArray:
        is_inside = np.isin(guess, (cv2.GC_FGD, cv2.GC_PR_FGD))
        # OpenCV needs samples of both for its colour models.
        if is_inside.all() or not is_inside.any():
            return is_inside
        cv2.setRNGSeed(0)  # of this thread; the colour models start from k-means
        image_bgr = np.ascontiguousarray(self.scaled.image_rgb[..., ::-1])
        background, foreground = np.zeros((1, 65)), np.zeros((1, 65))  # 5 Gaussians x (weight, 3 means, 9 covariances)
        iterations = self.method.num_iterations
        cv2.grabCut(image_bgr, guess, (0, 0, 0, 0), background, foreground, iterations, cv2.GC_INIT_WITH_MASK)
        return np.isin(guess, (cv2.GC_FGD, cv2.GC_PR_FGD))
