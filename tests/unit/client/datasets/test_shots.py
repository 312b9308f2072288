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


@pytest.mark.parametrize("num_shots", [0, 11])
def test_shots_that_are_not_there_are_refused(num_shots: int) -> None:
    with pytest.raises(InvalidInput, match="10 of 20 images show every class"):
        names(num_shots)
