"""Images with validated masks, as plain values."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vplab.client.segmentation.values import SegmentClass
from vplab.vision.images import ImageLimits

MAX_CLASSES = 255


class PackedMasks(Mapping[int, NDArray[np.bool_]]):
    """Masks by class id, eight pixels to a byte in memory and unpacked when asked for."""

    def __init__(self, masks: Mapping[int, NDArray[np.bool_]]) -> None:
        """masks: class id to (H, W) bool."""
        self._packed = {
            class_id: (mask.shape, np.packbits(np.asarray(mask, np.bool_), axis=None))
            for class_id, mask in sorted(masks.items())
        }

    def __getitem__(self, class_id: int) -> NDArray[np.bool_]:
        """Return (H, W) bool."""
        shape, bits = self._packed[class_id]
        return np.unpackbits(bits, count=int(np.prod(shape))).reshape(shape).astype(np.bool_)

    def __iter__(self) -> Iterator[int]:
        """Iterate over the class ids in ascending order."""
        return iter(self._packed)

    def __len__(self) -> int:
        """Return the number of classes."""
        return len(self._packed)


@dataclass(frozen=True, eq=False)
class DatasetItem:
    """One image and where its classes are."""

    file_name: str
    """For people and error messages; unique in its data set without its suffix."""
    image: bytes
    """The encoded file as it came, so that its sha256 is the image digest."""
    size_hw: tuple[int, int]
    """Height and width of the image as people see it (EXIF orientation applied)."""
    masks: Mapping[int, NDArray[np.bool_]]
    """Class id to (H, W) bool with at least one pixel; a class that is missing is not on the image. May overlap."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images whose masks a person has checked."""

    classes: tuple[SegmentClass, ...]
    """Ordered by class id."""
    items: tuple[DatasetItem, ...]


@dataclass(frozen=True)
class DatasetLimits:
    """What one data set may cost."""

    max_images: int = 5_000
    """Masks are in memory too, one bit a pixel and class: those of 5,000 images of a megapixel are 0.6 GB."""
    max_bytes: int = 2 << 30
    """All image files together; they are in memory while the set is."""
    image: ImageLimits = field(default_factory=ImageLimits)
    """Each image and each mask."""
