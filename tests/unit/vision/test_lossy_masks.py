import io

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from vplab.errors import InvalidInput
from vplab.vision.lossy_masks import is_lossy, lossy_mask

DISC = cv2.circle(np.zeros((64, 80), np.uint8), (37, 30), 18, 255, -1)
KINDS = [("JPEG", "L"), ("JPEG", "RGB"), ("WEBP", "RGB")]


def encoded(values: NDArray[np.uint8], kind: str, mode: str = "L", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).convert(mode).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(("kind", "mode"), KINDS)
@pytest.mark.parametrize("quality", [60, 75, 95])
def test_an_object_is_what_is_brighter_than_half(kind: str, mode: str, quality: int) -> None:
    data = encoded(DISC, kind, mode, quality=quality)
    assert len(np.unique(np.asarray(Image.open(io.BytesIO(data)).convert("L")))) > 2  # it rings
    for is_binary in (True, None):
        np.testing.assert_array_equal(lossy_mask(data, is_binary=is_binary), DISC > 0)


@pytest.mark.parametrize(("kind", "mode"), KINDS)
def test_a_mask_without_an_object_is_empty(kind: str, mode: str) -> None:
    assert not lossy_mask(encoded(np.zeros_like(DISC), kind, mode)).any()


@pytest.mark.parametrize(("kind", "mode"), KINDS)
@pytest.mark.parametrize("ids", [(2, 3), (0, 7), (60, 90), (100, 255)])
def test_class_ids_are_refused_with_what_to_do(kind: str, mode: str, ids: tuple[int, int]) -> None:
    values = np.zeros_like(DISC)
    values[8:30, 8:30], values[40:60, 50:75] = ids
    data = encoded(values, kind, mode)
    with pytest.raises(InvalidInput, match="--binary"):
        lossy_mask(data)
    np.testing.assert_array_equal(lossy_mask(data, is_binary=True), values >= 128)
    with pytest.raises(InvalidInput, match="save it as PNG"):
        lossy_mask(encoded(DISC, kind, mode), is_binary=False)


def test_only_lossy_files_are_lossy() -> None:
    assert is_lossy(encoded(DISC, "JPEG"))
    assert is_lossy(encoded(DISC, "WEBP", "RGB"))
    assert is_lossy(encoded(DISC, "WEBP", "RGB", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"))  # an extended header
    assert not is_lossy(encoded(DISC, "WEBP", "RGB", lossless=True))
    assert not is_lossy(encoded(DISC, "PNG"))
    assert not is_lossy(b"RIFF")
