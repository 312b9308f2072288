"""The box itself, filled: what every answer to a box has to beat."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vplab.errors import InvalidInput
from vplab.evaluation.comparators.marks import box_mask
from vplab.evaluation.values import BoolArray, RgbArray


class PlainBox:
    """Answers a box with all of its pixels; implements ``ClickMethod``."""

    name = "plain_box"
    takes_clicks = False
    num_in_flight = 1

    def open(self, image_rgb: RgbArray, name: str) -> "PlainBoxSession":
        """Begin with one object of an image."""
        return PlainBoxSession((image_rgb.shape[0], image_rgb.shape[1]))


@dataclass(frozen=True)
class PlainBoxSession:
    """One object of one image."""

    size_hw: tuple[int, int]

    def predict(
        self,
        points_xy: NDArray[np.float32],
        point_labels: NDArray[np.int64],
        box_xyxy: NDArray[np.float32] | None,
        previous: BoolArray | None,
    ) -> BoolArray:
        """Return the box as (H, W) bool; clicks change nothing. Raises InvalidInput without a box."""
        if box_xyxy is None:
            raise InvalidInput("plain_box answers boxes only", field="box_xyxy")
        return box_mask(self.size_hw, box_xyxy)
