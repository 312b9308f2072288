import numpy as np
import pytest

from vplab.client.datasets import Dataset, DatasetItem, PackedMasks, choose_shots
from vplab.client.segmentation.values import SegmentClass
from vplab.errors import InvalidInput

CLASSES = (SegmentClass(1, "scratch"), SegmentClass(2, "dent"))


def dataset() -> Dataset:
    items = []
    for index in range(20):
        masks = {1: np.ones((8, 8), bool)}
        if index % 2:
            masks[2] = np.ones((8, 8), bool)
        elif index % 4:
            masks[2] = np.eye(8, dtype=bool)  # eight pixels are a speck
        items.append(DatasetItem(f"{index}.png", b"", (8, 8), PackedMasks(masks)))
    return Dataset(CLASSES, tuple(items))


def names(num_shots: int, seed: int = 0) -> list[str]:
    return [item.file_name for item in choose_shots(dataset(), num_shots, seed).items]


def test_shots_show_every_class_and_more_shots_contain_fewer() -> None:
    assert all(int(name.removesuffix(".png")) % 2 for name in names(10))
    assert names(5)[:3] == names(3)
    assert names(5) == names(5)
    assert names(5) != names(5, seed=1)


def test_images_with_some_classes_come_when_those_with_all_are_used_up() -> None:
    assert [int(name.removesuffix(".png")) % 2 for name in names(20)] == [1] * 10 + [0] * 10


@pytest.mark.parametrize("num_shots", [0, 21])
def test_shots_that_are_not_there_are_refused(num_shots: int) -> None:
    with pytest.raises(InvalidInput, match="20 of 20 images show a class"):
        names(num_shots)


def apart(*shown: tuple[int, ...]) -> Dataset:
    """A data set of three classes whose images show these."""
    classes = (*CLASSES, SegmentClass(3, "stain"))
    items = [
        DatasetItem(f"{index}.png", b"", (8, 8), PackedMasks({c: np.ones((8, 8), bool) for c in ids}))
        for index, ids in enumerate(shown)
    ]
    return Dataset(classes, tuple(items))


def test_classes_on_different_images_are_all_covered() -> None:
    parts = apart(*[(1,)] * 6, *[(2,)] * 4, *[(3,)] * 2, ())
    for seed in range(5):
        first = choose_shots(parts, 3, seed).items
        assert sorted(c for item in first for c in item.masks) == [1, 2, 3]
        assert choose_shots(parts, 5, seed).items[:3] == first
    assert len({choose_shots(parts, 3, seed).items for seed in range(5)}) > 1
    with pytest.raises(InvalidInput, match="2 shots cannot show all 3 classes"):
        choose_shots(parts, 2)


def test_the_fewest_images_cover() -> None:
    assert [sorted(i.masks) for i in choose_shots(apart((1,), (2,), (1, 2), (3,), (1,)), 2).items] == [[1, 2], [3]]


def test_a_class_on_no_image_is_named() -> None:
    with pytest.raises(InvalidInput, match="32 pixels of stain"):
        choose_shots(apart((1,), (2,)), 2)
