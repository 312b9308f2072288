import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from vplab.errors import InvalidInput
from vplab.vision.images import ImageLimits
from vplab.vision.label_images import colour_of, decode_edited_labels, label_png, read_labels


@settings(max_examples=50)
@given(labels=hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)))
def test_class_ids_survive_the_file(tmp_path_factory: pytest.TempPathFactory, labels: np.ndarray) -> None:
    path = tmp_path_factory.mktemp("labels") / "a.png"
    path.write_bytes(label_png(labels))
    np.testing.assert_array_equal(read_labels(path), labels)


@given(st.integers(1, 255))
def test_every_class_has_a_colour_that_is_not_the_background(class_id: int) -> None:
    assert colour_of(class_id) == colour_of(class_id)
    assert max(colour_of(class_id)) > 100


def test_the_first_classes_are_told_apart() -> None:
    assert len({colour_of(class_id) for class_id in range(1, 256)}) > 200


def test_grey_one_bit_and_palette_files_are_read_and_others_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.array([[0, 200]], np.uint8)).save(path)
    assert read_labels(path).tolist() == [[0, 200]]
    Image.fromarray(np.array([[False, True]])).save(path)
    assert read_labels(path).tolist() == [[0, 255]]
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(path)
    with pytest.raises(InvalidInput, match="mode is RGB"):
        read_labels(path)
    path.write_text("text")
    with pytest.raises(InvalidInput, match="cannot read"):
        read_labels(path)


def _saved(pixels: np.ndarray, mode: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, mode, **options)
    return file.getvalue()


@settings(max_examples=50)
@given(labels=hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)))
def test_an_editor_that_saves_in_colour_keeps_the_class_ids(labels: np.ndarray) -> None:
    with Image.open(io.BytesIO(label_png(labels))) as image:
        colours = np.asarray(image.convert("RGB"))
    for edited in (label_png(labels), _saved(labels), _saved(colours), _saved(colours, "BMP")):
        np.testing.assert_array_equal(decode_edited_labels(edited), labels)


def test_what_is_erased_to_transparency_is_background_whatever_its_colour() -> None:
    colours = np.full((2, 2, 4), 255, np.uint8)
    colours[0, 0] = (*colour_of(3), 255)
    colours[1, 1] = (9, 200, 77, 0)
    colours[0, 1] = (12, 12, 12, 255)
    colours[1, 0] = (255, 255, 255, 0)
    assert decode_edited_labels(_saved(colours)).tolist() == [[3, 12], [0, 0]]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (_saved(np.full((3, 4, 3), (0, 1, 0), np.uint8)), r"\(0, 1, 0\) at x 0, y 0 is no class's; 1 such"),
        (_saved(np.zeros((3, 4), np.uint16)), "its mode is I;16"),
        (b"text", "no JPEG, PNG"),
        (_saved(np.random.default_rng(0).integers(0, 9, (30, 40), np.uint8))[:200], "cannot be read"),
    ],
)
def test_what_holds_no_class_ids_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        decode_edited_labels(data)


def test_a_label_image_is_bounded_before_it_is_decoded() -> None:
    with pytest.raises(InvalidInput, match="12 pixels"):
        decode_edited_labels(_saved(np.zeros((3, 4), np.uint8)), ImageLimits(max_pixels=11))
