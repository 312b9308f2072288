"""COCO files against pycocotools, and against what other tools make of ours."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from vplab.client.datasets import Dataset, DatasetItem, PackedMasks, read_coco, read_folder, write_coco, write_folder
from vplab.client.segmentation.values import SegmentClass
from vplab.errors import FailedPrecondition, InvalidInput
from vplab.vision.mask_formats import mask_to_png

CLASSES = (SegmentClass(3, "scratch"), SegmentClass(5, "dent"))
SIZE_HW = (30, 40)


def blobs(seed: int) -> np.ndarray:
    """Pieces with holes, touching corners and the image's edge."""
    coarse = np.random.default_rng(seed).random((6, 8)) > 0.45
    return np.kron(coarse, np.ones((5, 5), bool))


def dataset() -> Dataset:
    items = []
    for index, masks in enumerate([{3: blobs(1), 5: blobs(2)}, {3: blobs(3)}, {}]):
        image = mask_to_png(blobs(9 + index))
        items.append(DatasetItem(f"line/{index}.png", image, SIZE_HW, PackedMasks(masks)))
    return Dataset(CLASSES, tuple(items))


def decoded(path: Path) -> dict[str, dict[int, np.ndarray]]:
    """What pycocotools reads: file name to category id to mask."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(path)
    found: dict[str, dict[int, np.ndarray]] = {}
    for image in coco.dataset["images"]:
        masks = found.setdefault(image["file_name"], {})
        for annotation in coco.imgToAnns[image["id"]]:
            mask = coco.annToMask(annotation).astype(bool)
            assert (mask.sum(), list(_box(mask))) == (annotation["area"], annotation["bbox"])
            masks[annotation["category_id"]] = mask | masks.get(annotation["category_id"], np.False_)
    return found


def _box(mask: np.ndarray) -> tuple[int, ...]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1


def test_an_image_that_was_cut_off_is_named(tmp_path: Path) -> None:
    path = write_coco(dataset(), tmp_path)
    noise = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (*SIZE_HW, 3), np.uint8)).save(noise, "PNG")
    (tmp_path / "images" / "line__1.png").write_bytes(noise.getvalue()[: len(noise.getvalue()) // 2])
    with pytest.raises(InvalidInput) as caught:
        read_coco(path)
    assert [(v.field, "cut off" in v.description) for v in caught.value.violations] == [("line__1.png", True)]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_pycocotools_reads_the_masks_that_were_written(tmp_path: Path) -> None:
    whole = dataset()
    found = decoded(write_coco(whole, tmp_path))
    assert list(found) == ["line__0.png", "line__1.png", "line__2.png"]
    for item, masks in zip(whole.items, found.values(), strict=True):
        assert masks.keys() == item.masks.keys()
        for class_id, mask in item.masks.items():
            np.testing.assert_array_equal(masks[class_id], mask)


def test_what_was_exported_comes_back(tmp_path: Path) -> None:
    whole = dataset()
    found = read_coco(write_coco(whole, tmp_path))
    assert found.classes == CLASSES
    for before, after in zip(whole.items, found.items, strict=True):
        assert (before.image, before.size_hw, dict(before.masks).keys()) == (
            after.image,
            after.size_hw,
            dict(after.masks).keys(),
        )
        for class_id, mask in before.masks.items():
            np.testing.assert_array_equal(after.masks[class_id], mask)


def test_a_folder_comes_back_too_unless_classes_overlap(tmp_path: Path) -> None:
    overlapping = dataset()
    with pytest.raises(InvalidInput, match="classes overlap on line/0"):
        write_folder(overlapping, tmp_path / "a")
    plain = Dataset(CLASSES, overlapping.items[1:])
    write_folder(plain, tmp_path / "b")
    found = read_folder(tmp_path / "b")
    assert found.classes == CLASSES
    np.testing.assert_array_equal(found.items[0].masks[3], plain.items[0].masks[3])
    with pytest.raises(FailedPrecondition, match="exists"):
        write_folder(plain, tmp_path / "b")


@pytest.fixture
def exported(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    path = write_coco(dataset(), tmp_path)
    return path, json.loads(path.read_text())


def rewritten(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_categories_that_count_from_zero_become_classes_from_one(exported: tuple[Path, dict[str, Any]]) -> None:
    path, content = exported
    for part, key in (("categories", "id"), ("annotations", "category_id")):
        for entry in content[part]:
            entry[key] = {3: 0, 5: 1}[entry[key]]
    found = read_coco(rewritten(path, content))
    assert found.classes == (SegmentClass(1, "scratch"), SegmentClass(2, "dent"))
    np.testing.assert_array_equal(found.items[0].masks[2], dataset().items[0].masks[5])


def test_named_classes_are_found_by_name(exported: tuple[Path, dict[str, Any]]) -> None:
    path, _ = exported
    wanted = [SegmentClass(1, "dent"), SegmentClass(2, "scratch")]
    found = read_coco(path, classes=wanted)
    np.testing.assert_array_equal(found.items[0].masks[1], dataset().items[0].masks[5])
    with pytest.raises(InvalidInput, match="'dent' is none of the classes scratch"):
        read_coco(path, classes=[SegmentClass(1, "scratch")])


@pytest.mark.parametrize("name", ["upload/1/0a1b2c3d-line__0.png", "..\\..\\data\\line__0.png", "/data/line__0.png"])
def test_images_are_found_where_other_tools_put_them(exported: tuple[Path, dict[str, Any]], name: str) -> None:
    path, content = exported
    content["images"][0]["file_name"] = name
    assert read_coco(rewritten(path, content)).items[0].file_name == "line__0.png"


@pytest.mark.parametrize(
    ("change", "field", "why"),
    [
        (lambda c: c["annotations"][4].update(segmentation=[]), "annotations[4]", "a box alone is no mask"),
        (lambda c: c["annotations"][4].pop("segmentation"), "annotations[4]", "a box alone is no mask"),
        (lambda c: c["annotations"][4].update(segmentation=[[1, 2, 3]]), "annotations[4]", "at least 3 corners"),
        (lambda c: c["annotations"][4].update(segmentation={"size": [1, 1], "counts": [1]}), "annotations[4]", "size"),
        (lambda c: c["annotations"][4].update(image_id=99), "annotations[4]", "no image 99"),
        (lambda c: c["annotations"][4].update(category_id=99), "annotations[4]", "no category 99"),
        (lambda c: c["annotations"].insert(4, "text"), "annotations[4]", "is no annotation"),
        (lambda c: c["images"][1].update(height=31), "line__1.png", "is 40 x 30, its annotations are for 40 x 31"),
        (lambda c: c["images"][1].update(file_name="gone.png"), "images[1]", "there is no file gone.png"),
        (lambda c: c["images"][1].update(id=1), "images[1]", "there twice"),
        (lambda c: c["images"][1].pop("id"), "images[1]", "is no image"),
        (lambda c: c["categories"][1].pop("name"), "categories", "lacks its id or name"),
        (lambda c: c.pop("annotations"), "annotations.json", "needs the lists"),
        (lambda c: c["annotations"].clear(), "masks", "nothing to learn"),
    ],
)
def test_what_is_wrong_is_named(exported: tuple[Path, dict[str, Any]], change: Any, field: str, why: str) -> None:
    path, content = exported
    change(content)
    with pytest.raises(InvalidInput) as caught:
        read_coco(rewritten(path, content))
    assert any(v.field == field and why in v.description for v in caught.value.violations)


def test_tolerance_saves_corners_and_keeps_nearly_all(tmp_path: Path) -> None:
    y, x = np.mgrid[:100, :120]
    disc = (x - 50) ** 2 + (y - 50) ** 2 < 40**2
    whole = Dataset(CLASSES[:1], (DatasetItem("a.png", mask_to_png(disc), (100, 120), PackedMasks({3: disc})),))
    exact, simple = (write_coco(whole, tmp_path / str(t), tolerance_px=t) for t in (0.0, 1.0))
    assert simple.stat().st_size < exact.stat().st_size / 3
    found = read_coco(simple).items[0].masks[3]
    assert (found & disc).sum() / (found | disc).sum() > 0.95
