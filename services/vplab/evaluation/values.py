"""What the harness hands to methods and keeps of their answers."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BoolArray = NDArray[np.bool_]
RgbArray = NDArray[np.uint8]
LabelArray = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class LabelledImage:
    """An image and what is on it."""

    name: str
    """Unique within the folder, without the ending; a key for caches."""
    image_rgb: RgbArray
    """(H, W, 3) uint8, EXIF orientation applied."""
    labels: LabelArray
    """(H, W) uint8 class ids, 0 background. Ids are 1, 2, ... in the order in which the classes were asked for."""

    def mask_of(self, class_id: int) -> BoolArray:
        """Return (H, W) bool."""
        found: BoolArray = self.labels == class_id
        return found
