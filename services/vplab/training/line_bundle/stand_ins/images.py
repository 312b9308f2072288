"""What a bundle's modules need of images: the type, and files read with OpenCV."""

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from vplab.errors import InvalidInput

ImageRGB = npt.NDArray[np.uint8]


def read_image(path: Path) -> ImageRGB:
    """Return (H, W, 3) uint8 RGB, turned as its EXIF orientation says. Raises InvalidInput."""
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror or error}", field="image") from error
    found = cv2.imdecode(data, cv2.IMREAD_COLOR) if len(data) else None
    if found is None:
        raise InvalidInput(f"{path} is no image that OpenCV reads", field="image")
    return np.asarray(cv2.cvtColor(found, cv2.COLOR_BGR2RGB), np.uint8)
