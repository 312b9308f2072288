import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vplab.client.datasets import DatasetLimits, read_folder
from vplab.client.segmentation.values import SegmentClass
from vplab.errors import InvalidInput
from vplab.vision.images import ImageLimits
from vplab.vision.label_images import colour_of, label_png

LABELS = np.zeros((6, 9), np.uint8)
LABELS[1:3, 2:5] = 1
LABELS[4:, 6:] = 2


def picture(seed: int, size_hw: tuple[int, int] = (6, 9), kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size_hw, 3), np.uint8)).save(file, kind)
    return file.getvalue()


def png(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images: one with classes 1 and 2, one without any."""
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(picture(1, kind="JPEG"))
    (tmp_path / "images" / "b.png").write_bytes(picture(2))
    (tmp_path / "masks" / "a.png").write_bytes(label_png(LABELS))
    (tmp_path / "masks" / "b.png").write_bytes(label_png(np.zeros_like(LABELS)))
    return tmp_path


def problems_of(folder: Path, **options: object) -> dict[str, str]:
    with pytest.raises(InvalidInput) as caught:
        read_folder(folder, **options)  # type: ignore[arg-type]
    return {violation.field: violation.description for violation in caught.value.violations}


def test_pairs_are_read_with_their_bytes_and_masks(folder: Path) -> None:
    found = read_folder(folder)
    assert [(c.class_id, c.display_name) for c in found.classes] == [(1, "class 1"), (2, "class 2")]
    first, second = found.items
    assert (first.file_name, first.size_hw, list(first.masks)) == ("a.jpg", (6, 9), [1, 2])
    assert first.image == (folder / "images" / "a.jpg").read_bytes()
    np.testing.assert_array_equal(first.masks[2], LABELS == 2)
    assert (second.file_name, len(second.masks)) == ("b.png", 0)


@pytest.mark.parametrize("table", ["classes.csv", "results.csv"])
def test_class_names_come_from_the_table_beside_the_folders(folder: Path, table: str) -> None:
    (folder / table).write_text("image,class_id,class\na,2,dent\na,1,scratch\nb,1,scratch\n", encoding="utf-8")
    assert read_folder(folder).classes == (SegmentClass(1, "scratch"), SegmentClass(2, "dent"))


def test_a_table_without_the_columns_is_named(folder: Path) -> None:
    (folder / "classes.csv").write_text("id,name\n1,scratch\n", encoding="utf-8")
    assert "class_id and class" in problems_of(folder)["classes.csv"]


def test_a_class_that_nobody_named_is_wrong_in_its_file(folder: Path) -> None:
    assert problems_of(folder, classes=[SegmentClass(1, "scratch")]) == {
        "masks/a.png": "holds class 2; the classes are 1"
    }


@pytest.mark.parametrize("kind", ["RGB", "RGBA"])
def test_masks_that_an_editor_saved_in_colour_are_read_by_their_colours(folder: Path, kind: str) -> None:
    colours = np.zeros((*LABELS.shape, 3), np.uint8)
    for class_id in (1, 2):
        colours[class_id == LABELS] = colour_of(class_id)
    if kind == "RGBA":
        alpha = np.where(LABELS > 0, 255, 0).astype(np.uint8)
        colours = np.dstack([np.where(alpha[..., None] > 0, colours, 77), alpha]).astype(np.uint8)
    (folder / "masks" / "a.png").write_bytes(png(colours))
    np.testing.assert_array_equal(read_folder(folder).items[0].masks[1], LABELS == 1)


def test_a_smooth_edge_of_an_editor_is_named_with_its_place(folder: Path) -> None:
    colours = np.zeros((*LABELS.shape, 3), np.uint8)
    colours[2, 3] = (120, 80, 0)
    (folder / "masks" / "a.png").write_bytes(png(colours))
    assert "(120, 80, 0) at x 3, y 2" in problems_of(folder)["masks/a.png"]


@pytest.mark.parametrize("pixels", [(LABELS > 0) * np.uint8(255), LABELS > 0])
def test_masks_of_0_and_255_are_the_one_class(folder: Path, pixels: np.ndarray) -> None:
    (folder / "masks" / "a.png").write_bytes(png(pixels))
    found = read_folder(folder, classes=[SegmentClass(7, "crack")])
    assert found.classes == (SegmentClass(7, "crack"),)
    np.testing.assert_array_equal(found.items[0].masks[7], LABELS > 0)
    assert read_folder(folder).classes[0].class_id == 1


def test_binary_masks_may_be_lossy_and_of_any_value(folder: Path) -> None:
    (folder / "masks" / "a.png").unlink()
    large = np.kron(LABELS > 0, np.ones((16, 16))).astype(np.uint8) * 255
    (folder / "images" / "a.jpg").write_bytes(picture(1, large.shape, "JPEG"))
    (folder / "masks" / "a.jpg").write_bytes(png(large, "JPEG"))
    (folder / "masks" / "b.png").write_bytes(png(LABELS))
    first, second = read_folder(folder, is_binary=True).items
    np.testing.assert_array_equal(first.masks[1], large > 0)
    np.testing.assert_array_equal(second.masks[1], LABELS > 0)


@pytest.mark.parametrize(("kind", "suffix"), [("JPEG", ".jpg"), ("WEBP", ".webp")])
@pytest.mark.parametrize("shape", [(), (3,)])
def test_lossy_masks_show_by_themselves_whether_they_are_binary(
    folder: Path, kind: str, suffix: str, shape: tuple[int, ...]
) -> None:
    large = np.kron(LABELS > 0, np.ones((16, 16))).astype(np.uint8) * 255
    for name, seed, mask in (("a.jpg", 1, large), ("b.png", 2, np.zeros_like(large))):
        (folder / "images" / name).write_bytes(picture(seed, large.shape))
        (folder / "masks" / name).with_suffix(".png").unlink()
        grey = np.broadcast_to(mask.reshape(*mask.shape, *[1] * len(shape)), (*mask.shape, *shape))
        (folder / "masks" / name).with_suffix(suffix).write_bytes(png(np.ascontiguousarray(grey), kind))
    first, second = read_folder(folder).items
    assert list(first.masks) == [1]
    np.testing.assert_array_equal(first.masks[1], large > 0)
    assert not second.masks
    assert "save it as PNG" in problems_of(folder, is_binary=False)[f"masks/a{suffix}"]
    ids = np.kron(LABELS, np.ones((16, 16), np.uint8)) * 40
    (folder / "masks" / f"a{suffix}").write_bytes(png(ids, kind))
    assert "class ids need PNG" in problems_of(folder)[f"masks/a{suffix}"]


@pytest.mark.parametrize(
    ("break_it", "file", "why"),
    [
        (lambda f: (f / "masks" / "b.png").unlink(), "images/b.png", "has no mask"),
        (lambda f: (f / "images" / "b.png").unlink(), "masks/b.png", "has no image"),
        (lambda f: (f / "masks" / "b.png").write_bytes(label_png(LABELS.T.copy())), "masks/b.png", "is 6 x 9, its"),
        (lambda f: (f / "images" / "b.png").write_bytes(b"\x00\x7f" * 5_000_000), "images/b.png", "no JPEG, PNG"),
        (lambda f: (f / "images" / "b.png").write_bytes(picture(2)[:200]), "images/b.png", "damaged"),
        (lambda f: (f / "masks" / "b.png").write_bytes(b"text"), "masks/b.png", "no JPEG, PNG"),
        (lambda f: (f / "images" / "a.png").write_bytes(picture(3)), "a.png", "same name as a.jpg"),
        (lambda f: (f / "masks" / "a.bmp").write_bytes(png(LABELS, "BMP")), "masks/a.png", "mask of the same image"),
    ],
)
def test_what_is_wrong_is_said_of_its_file(
    folder: Path, break_it: Callable[[Path], object], file: str, why: str
) -> None:
    break_it(folder)
    assert why in problems_of(folder)[file]


def test_an_image_that_is_there_twice_is_named(folder: Path) -> None:
    (folder / "images" / "c.png").write_bytes(picture(2))
    (folder / "masks" / "c.png").write_bytes(label_png(LABELS))
    assert problems_of(folder) == {"c.png": "is the same file as b.png: an image counts once"}


def test_every_wrong_file_is_named_at_once(folder: Path) -> None:
    (folder / "images" / "b.png").write_bytes(b"")
    (folder / "masks" / "a.png").write_bytes(b"")
    assert set(problems_of(folder)) == {"images/b.png", "masks/a.png"}


def test_a_set_without_any_foreground_or_image_or_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "masks" / "a.png").write_bytes(label_png(np.zeros_like(LABELS)))
    assert "nothing to learn" in problems_of(folder)["masks"]
    for name in ("a.jpg", "b.png"):
        (folder / "images" / name).unlink()
        (folder / "masks" / name).with_suffix(".png").unlink()
    assert problems_of(folder)["images"] == "there is no image"
    assert set(problems_of(tmp_path / "absent")) == {"images", "masks"}


def test_limits_are_kept(folder: Path) -> None:
    assert "2 images; at most 1" in problems_of(folder, limits=DatasetLimits(max_images=1))["images"]
    assert "bytes in all" in problems_of(folder, limits=DatasetLimits(max_bytes=100))["images"]
    small = DatasetLimits(image=ImageLimits(max_pixels=50))
    assert {"images/a.jpg", "masks/b.png"} <= set(problems_of(folder, limits=small))
