"""From an RGB image to an encoder's input, and coordinates between the two frames.

Source: segment-anything ``utils/transforms.py`` (ResizeLongestSide) and ``modeling/sam.py`` (Sam.preprocess), which
``longest_side`` equals bit for bit; DINO's backbones use ``fixed``.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vplab.vision.images import ImageRGB
from vplab.vision.resizing import resize_rgb
from vplab.vision.specs import Preprocessing


@dataclass(frozen=True)
class FrameTransform:
    """How an image lies in an encoder's square input: scaled into its top left corner, the rest is padding."""

    original_hw: tuple[int, int]
    """Size of the oriented original, in pixels."""
    input_hw: tuple[int, int]
    """Size the image was scaled to: the valid area of the input."""
    padded_hw: tuple[int, int]
    """Size of the encoder's input."""

    @property
    def scale_xy(self) -> npt.NDArray[np.float64]:
        """Input pixels per original pixel, along x and y; they differ a little, because sizes are whole."""
        return np.array(
            [self.input_hw[1] / self.original_hw[1], self.input_hw[0] / self.original_hw[0]], dtype=np.float64
        )

    def points_to_input(self, points_xy: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Move points of the original, (..., 2) in pixels, to the input's frame.

        The product is taken in float64 and then rounded to float32, as SamPredictor does.
        """
        return (np.asarray(points_xy, dtype=np.float64) * self.scale_xy).astype(np.float32)

    def points_to_original(self, points_xy: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Move points of the input, (..., 2) in pixels, to the original's frame."""
        return (np.asarray(points_xy, dtype=np.float64) / self.scale_xy).astype(np.float32)

    def boxes_to_input(self, boxes_xyxy: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Move boxes of the original, (..., 4) in pixels, to the input's frame."""
        boxes = np.asarray(boxes_xyxy, dtype=np.float64)
        return self.points_to_input(boxes.reshape(*boxes.shape[:-1], 2, 2)).reshape(boxes.shape)

    def valid_grid_hw(self, stride: int) -> tuple[int, int]:
        """Return how many rows and columns of a grid with ``stride`` input pixels per cell see any of the image."""
        height, width = self.input_hw
        return -(-height // stride), -(-width // stride)


@dataclass(frozen=True)
class Preprocessed:
    """An encoder's input for one image."""

    tensor: npt.NDArray[np.float32]
    """(3, S, S) float32, normalised; padding is zero."""
    transform: FrameTransform


def frame_transform(original_hw: tuple[int, int], preprocessing: Preprocessing) -> FrameTransform:
    """Return where an image of that size lies in the input; needs no pixels."""
    side = preprocessing.size
    if preprocessing.resize == "fixed":
        return FrameTransform(original_hw, (side, side), (side, side))
    scale = side * 1.0 / max(original_hw)
    # Deviation: SAM rounds the short side of an extreme strip to zero pixels and fails; here it keeps one.
    height, width = (max(1, int(length * scale + 0.5)) for length in original_hw)
    return FrameTransform(original_hw, (height, width), (side, side))


def preprocess(image_rgb: ImageRGB, preprocessing: Preprocessing) -> Preprocessed:
    """Scale, normalise and pad an image for an encoder.

    image_rgb: (H, W, 3) uint8. Scaling is Pillow's antialiased filter on uint8, as torchvision's on a PIL image.
    """
    transform = frame_transform((image_rgb.shape[0], image_rgb.shape[1]), preprocessing)
    height, width = transform.input_hw
    resized = resize_rgb(image_rgb, (height, width), preprocessing.interpolation)
    mean, std = (np.array(v, dtype=np.float32) for v in (preprocessing.mean_rgb, preprocessing.std_rgb))
    tensor = np.zeros((3, *transform.padded_hw), dtype=np.float32)
    valid = tensor[:, :height, :width]
    # In place: what new megabytes cost a thread is several times the arithmetic.
    valid[...] = resized.transpose(2, 0, 1)
    valid -= mean[:, None, None]
    valid /= std[:, None, None]
    return Preprocessed(tensor, transform)
