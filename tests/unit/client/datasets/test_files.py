import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vplab.client.datasets import Dataset, DatasetItem, PackedMasks, check_dataset, read_dataset
from vplab.client.datasets.files import dataset_files
from vplab.client.segmentation.values import SegmentClass
from vplab.errors import InvalidInput
from vplab.vision.mask_formats import mask_to_png

MASK = np.zeros((5, 7), np.bool_)
MASK[1:3, 2:6] = True
CLASSES = (SegmentClass(1, "scratch"), SegmentClass(9, "dent"))


def item(name: str, shade: int, masks: dict[int, np.ndarray] | None = None) -> DatasetItem:
    image = mask_to_png(np.arange(35).reshape(5, 7) % (shade + 2) == 0)
    return DatasetItem(name, image, (5, 7), PackedMasks({1: MASK} if masks is None else masks))


def stored(folder: Path, dataset: Dataset) -> Path:
    for path, data in dataset_files(dataset):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def test_a_data_set_survives_its_files_also_where_classes_overlap(tmp_path: Path) -> None:
    whole = Dataset(CLASSES, (item("a.png", 1, {9: MASK | MASK[::-1], 1: MASK}), item("b.tif", 2, {})))
    found = read_dataset(stored(tmp_path, whole))
    assert found.classes == CLASSES
    for before, after in zip(whole.items, found.items, strict=True):
        assert (before.file_name, before.image, before.size_hw) == (after.file_name, after.image, after.size_hw)
        assert dict(before.masks).keys() == dict(after.masks).keys()
        for class_id, mask in before.masks.items():
            np.testing.assert_array_equal(after.masks[class_id], mask)


def test_masks_have_one_bit_and_absent_classes_no_file(tmp_path: Path) -> None:
    folder = stored(tmp_path, Dataset(CLASSES, (item("a", 1), item("b", 2, {}))))
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*")) == [
        "dataset.json",
        "images/000000.png",
        "images/000001.png",
        "masks/000000_c001.png",
    ]
    with Image.open(folder / "masks" / "000000_c001.png") as mask:
        assert mask.mode == "1"


@pytest.mark.parametrize(
    ("items", "field", "why"),
    [
        ((), "images", "no image"),
        ((item("a", 1, {}),), "masks", "nothing to learn"),
        ((item("a", 1, {2: MASK}),), "a", "class 2, which is none of 1, 9"),
        ((item("a", 1, {1: MASK.T}),), "a", "mask is 5 x 7, the image 7 x 5"),
        ((item("a", 1, {1: MASK & False}),), "a", "no pixel"),
        ((item("a.png", 1), item("a.jpg", 2)), "a.jpg", "same name"),
        ((item("a", 1), item("b", 1)), "b", "same file as a"),
        ((DatasetItem("a", b"noise" * 99, (5, 7), {1: MASK}),), "a", "no JPEG"),
        ((DatasetItem("a", mask_to_png(MASK), (7, 5), {1: MASK}),), "a", "is 7 x 5, not 5 x 7"),
    ],
)
def test_what_does_not_fit_is_named(items: tuple[DatasetItem, ...], field: str, why: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_dataset(Dataset(CLASSES, items))
    assert any(v.field == field and why in v.description for v in caught.value.violations)


@pytest.mark.parametrize("classes", [(), CLASSES + CLASSES, (SegmentClass(0, "a"),), (SegmentClass(3, ""),)])
def test_classes_are_checked(classes: tuple[SegmentClass, ...]) -> None:
    with pytest.raises(InvalidInput, match="class"):
        check_dataset(Dataset(classes, (item("a", 1),)))


def test_files_that_lack_or_lie_outside_are_named(tmp_path: Path) -> None:
    folder = stored(tmp_path / "set", Dataset(CLASSES, (item("a", 1),)))
    (folder / "masks" / "000000_c001.png").write_bytes(b"text")
    with pytest.raises(InvalidInput, match=r"masks/000000_c001.png: the mask is no readable PNG"):
        read_dataset(folder)
    (folder / "images" / "000000.png").unlink()
    index = json.loads((folder / "dataset.json").read_text())
    index["images"][0]["masks"] = []
    (folder / "dataset.json").write_text(json.dumps(index))
    with pytest.raises(InvalidInput, match=r"images/000000.png cannot be read"):
        read_dataset(folder)
    index["images"][0]["image"] = "../secret"
    (folder / "dataset.json").write_text(json.dumps(index))
    with pytest.raises(InvalidInput, match="not below"):
        read_dataset(folder)
    for wrong in ("[]", "{", '{"schema": 1}', '{"schema": 2}'):
        (folder / "dataset.json").write_text(wrong)
        with pytest.raises(InvalidInput, match=r"dataset\.json"):
            read_dataset(folder)
