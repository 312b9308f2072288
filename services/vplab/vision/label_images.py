"""Label images: one picture for each image, a pixel's value or colour says its class, 0 and black are background."""

import colorsys
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vplab.errors import InvalidInput
from vplab.vision.images import ImageLimits, decode_image

Colour = tuple[int, int, int]

# Okabe and Ito's colours, which people with a colour vision deficiency can tell apart (jfly.uni-koeln.de/color); the
# ones that stand out from grey metal come first.
_FIRST: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (240, 228, 66),
    (0, 114, 178),
)
_GOLDEN_RATIO = 0.618034


def colour_of(class_id: int) -> Colour:
    """Return a class's colour: the same id has the same colour in every picture of every run."""
    if class_id <= len(_FIRST):
        return _FIRST[class_id - 1]
    hue = (class_id * _GOLDEN_RATIO) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.75, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


_PALETTE = [0, 0, 0, *(channel for class_id in range(1, 256) for channel in colour_of(class_id))]


def label_png(labels: NDArray[np.uint8]) -> bytes:
    """Return a label image as a PNG with a palette, so that viewers show colours and programs read ids."""
    indexed = Image.frombytes("P", (labels.shape[1], labels.shape[0]), np.ascontiguousarray(labels).tobytes())
    indexed.putpalette(_PALETTE)
    file = io.BytesIO()
    indexed.save(file, format="PNG")
    return file.getvalue()


def read_labels(path: Path, limits: ImageLimits | None = None) -> NDArray[np.uint8]:
    """Return (H, W) uint8 class ids of a label image: grey values or palette indices.

    Raises InvalidInput for a file that is no 8-bit grey or palette picture.
    """
    limits = limits or ImageLimits()
    try:
        with Image.open(path) as image:
            if image.width * image.height > limits.max_pixels:
                raise InvalidInput(f"{path} has more than {limits.max_pixels} pixels", field="labels")
            if image.mode not in ("1", "L", "P"):
                raise InvalidInput(f"{path} is no label image: its mode is {image.mode}", field="labels")
            return np.asarray(image.convert("L") if image.mode == "1" else image, dtype=np.uint8)
    except (OSError, SyntaxError, ValueError) as error:
        raise InvalidInput(f"cannot read {path}: {error}", field="labels") from error


def decode_edited_labels(data: bytes, limits: ImageLimits | None = None) -> NDArray[np.uint8]:
    """Return (H, W) uint8 class ids of a label image that an editor may have saved in colour.

    Grey values and palette indices are ids. Of a colour picture each pixel's colour must be grey, which is an id again,
    or exactly that of a class as ``label_png`` writes it; what is fully transparent is background.
    Raises InvalidInput for anything else, naming the first pixel whose colour belongs to no class.
    """
    decode_image(data, limits)  # refuses what is damaged or too large
    with Image.open(io.BytesIO(data)) as image:
        if image.mode in ("1", "L", "P"):
            return np.asarray(image.convert("L") if image.mode == "1" else image, dtype=np.uint8)
        if image.mode not in ("RGB", "RGBA", "LA"):
            raise InvalidInput(f"it is no label image: its mode is {image.mode}", field="labels")
        image.info.pop("transparency", None)
        is_clear = np.asarray(image.getchannel("A")) == 0 if "A" in image.mode else None
        return _ids_of_colours(np.asarray(image.convert("RGB")), is_clear)


def _ids_of_colours(colours: NDArray[np.uint8], is_clear: NDArray[np.bool_] | None) -> NDArray[np.uint8]:
    codes = colours.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    if is_clear is not None:
        codes[is_clear] = 0
    present, index = np.unique(codes, return_inverse=True)
    known = {value * 0x010101: value for value in range(256)} | {
        (red << 16) + (green << 8) + blue: class_id
        for class_id in range(255, 0, -1)
        for red, green, blue in [colour_of(class_id)]
    }
    foreign = [code for code in present.tolist() if code not in known]
    if foreign:
        row, column = np.argwhere(codes == foreign[0])[0]
        colour = ", ".join(str(channel) for channel in colours[row, column])
        message = (
            f"the colour ({colour}) at x {column}, y {row} is no class's; {len(foreign)} such colours: save with the "
            "palette, or draw with the classes' own colours and without smooth edges"
        )
        raise InvalidInput(message, field="labels")
    return np.array([known[code] for code in present.tolist()], np.uint8)[index].reshape(codes.shape)
