"""Folders of images with true masks, as ``vplab evaluate`` takes them, and methods whose answers are known."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vplab.evaluation.values import BoolArray, LabelArray, LabelledImage, RgbArray
from vplab.vision.synthesis import synthesize_inspection_set


def write_pair(
    root: Path, name: str, image: NDArray[np.uint8], mask: NDArray[np.generic], suffix: str = ".png"
) -> None:
    """Write one image and its mask."""
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(root / "images" / f"{name}{suffix}")
    Image.fromarray(mask).save(root / "masks" / f"{name}.png")


def write_squares(root: Path, num_images: int = 12, size_hw: tuple[int, int] = (40, 60), value: int = 255) -> Path:
    """Write grey images, each with a bright square that grows; every fourth, from the third on, has none."""
    for number in range(num_images):
        pixels = np.full((*size_hw, 3), 40, np.uint8)
        if number % 4 != 2:
            pixels[5 : 15 + number, 10:30] = 200
        write_pair(root, f"{number:02d}", pixels, (pixels[..., 0] > 100).astype(np.uint8) * value)
    return root


def write_inspection_set(root: Path, num_images: int, side: int = 128, seed: int = 3, defect: str = "patch") -> Path:
    """Write generated inspection images with their exact masks."""
    for number, image in enumerate(synthesize_inspection_set(num_images, (side, side), defect, seed)):
        write_pair(root, f"part-{number:02d}", image.image_rgb, image.mask.astype(np.uint8) * 255)
    return root


@dataclass
class BrightShots:
    """Finds what is bright; remembers what it was given."""

    name: str = "bright"
    min_shots: int = 1
    num_in_flight: int = 1
    fitted: list[tuple[tuple[str, ...], tuple[int, ...], int]] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    before: Callable[[str], None] = lambda name: None

    def fit(self, shots: Sequence[LabelledImage], class_ids: Sequence[int], seed: int) -> "BrightShots":
        self.fitted.append((tuple(shot.name for shot in shots), tuple(class_ids), seed))
        return self

    def predict(self, image_rgb: RgbArray, name: str) -> LabelArray:
        self.before(name)
        self.seen.append(name)
        return (image_rgb[..., 0] > 100).astype(np.uint8)


@dataclass
class BoxClicks:
    """Fills the box, or a disc of three pixels around each click on the object; remembers the clicks."""

    name: str = "box"
    takes_clicks: bool = True
    num_in_flight: int = 1
    asked: list[tuple[str, int, bool]] = field(default_factory=list)
    """Image, number of points, whether there was a box."""

    def open(self, image_rgb: RgbArray, name: str) -> "BoxSession":
        return BoxSession(self, image_rgb.shape[:2], name)


@dataclass
class BoxSession:
    method: BoxClicks
    size_hw: tuple[int, int]
    image: str

    def predict(
        self,
        points_xy: NDArray[np.float32],
        point_labels: NDArray[np.int64],
        box_xyxy: NDArray[np.float32] | None,
        previous: BoolArray | None,
    ) -> BoolArray:
        self.method.asked.append((self.image, len(points_xy), box_xyxy is not None))
        assert (previous is None) == (len(points_xy) <= 1)
        y, x = np.mgrid[: self.size_hw[0], : self.size_hw[1]]
        if box_xyxy is not None:
            return (x >= box_xyxy[0]) & (x < box_xyxy[2]) & (y >= box_xyxy[1]) & (y < box_xyxy[3])
        found = np.zeros(self.size_hw, bool)
        for (column, row), label in zip(points_xy, point_labels, strict=True):
            found[np.hypot(x - column, y - row) <= 3] = bool(label)
        return found


@dataclass
class LearningBoxes:
    """Learns nothing from its shots but to mark as ``BoxClicks`` does; remembers what it was given."""

    name: str = "boxes"
    fails_with: Exception | None = None
    learned: list[tuple[tuple[str, ...], tuple[int, ...], int]] = field(default_factory=list)

    def learn(self, shots: Sequence[LabelledImage], class_ids: Sequence[int], seed: int) -> BoxClicks:
        if self.fails_with is not None:
            raise self.fails_with
        self.learned.append((tuple(shot.name for shot in shots), tuple(class_ids), seed))
        return BoxClicks(self.name)
