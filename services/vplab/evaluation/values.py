"""What the harness hands to methods and keeps of their answers."""

from collections.abc import Mapping
from dataclasses import dataclass, field

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


@dataclass(frozen=True)
class Tuning:
    """One adapter that a training service made for an evaluation."""

    method: str
    """As ``--methods`` names it, such as ``e-peft``."""
    num_shots: int
    seed: int
    adapter: str
    """``artifacts/{artifact}/versions/{number}``; gone once the evaluation is complete."""
    digest: str
    num_parameters: int
    """Those that were trained."""
    adapter_bytes: int
    """What the registry stores of the trained parameters."""
    version_bytes: int
    """All files of the version, the merged decoder's graph among them."""
    wall_s: float
    """From asking for the job to its end."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The job's own: seconds of each stage, IoU before and after, memory."""
