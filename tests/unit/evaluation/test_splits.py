"""Splits: fair to every method, and the same tomorrow."""

from pathlib import Path

import numpy as np
import pytest

from fakes.evaluation_folders import write_pair, write_squares
from vplab.client.datasets.shots import MIN_SHOT_PX
from vplab.errors import InvalidInput
from vplab.evaluation.folder import FolderOptions, LabelledFolder, read_folder
from vplab.evaluation.splits import make_splits


@pytest.fixture
def folder(tmp_path: Path) -> LabelledFolder:
    return read_folder(write_squares(tmp_path, 24), FolderOptions())


def test_no_shot_is_tested(folder: LabelledFolder) -> None:
    splits = make_splits(folder, 40, 5)
    assert len(splits.test) == 12
    for order in splits.shots.values():
        assert not set(order) & set(splits.test)


def test_every_shot_shows_the_class(folder: LabelledFolder) -> None:
    splits = make_splits(folder, 8, 2)
    for order in splits.shots.values():
        assert len(order) == splits.num_candidates > 0
        assert all(folder.area_of(name, folder.classes[0]) >= MIN_SHOT_PX for name in order)


def test_seeds_give_other_orders_of_the_same_images(folder: LabelledFolder) -> None:
    shots = make_splits(folder, 8, 3).shots
    assert len({frozenset(order) for order in shots.values()}) == 1
    assert len(set(shots.values())) == 3


def test_more_seeds_leave_the_earlier_ones_as_they_are(folder: LabelledFolder) -> None:
    few, many = make_splits(folder, 8, 2), make_splits(folder, 8, 6)
    assert few.test == many.test
    assert few.shots == {seed: many.shots[seed] for seed in (0, 1)}


def test_the_split_does_not_depend_on_the_order_of_files(folder: LabelledFolder) -> None:
    turned = LabelledFolder(
        folder.root, folder.options, folder.classes, dict(sorted(folder.images.items(), reverse=True))
    )
    assert make_splits(turned, 8, 2) == make_splits(folder, 8, 2)


def test_the_split_of_known_names_is_the_same_on_every_machine(folder: LabelledFolder) -> None:
    """The names in the order that sha256sum gives for "test" or "seed 0", a new line, and the name."""
    splits = make_splits(folder, 4, 1)
    assert splits.test == ("01", "03", "16", "23")
    assert splits.shots[0][:4] == ("11", "12", "09", "05")


def test_shots_of_several_classes_show_all_of_them(tmp_path: Path) -> None:
    for number in range(16):
        mask = np.zeros((20, 30), np.uint8)
        mask[:5] = 1
        mask[10:] = 2 if number % 2 else 0
        write_pair(tmp_path, f"{number:02d}", np.zeros((20, 30, 3), np.uint8), mask)
    folder = read_folder(tmp_path, FolderOptions())
    splits = make_splits(folder, 6, 1)
    shows_all = [int(name) % 2 == 1 for name in splits.shots[0]]
    assert sum(shows_all) > 1
    assert shows_all == sorted(shows_all, reverse=True)  # only when they are used up come those that show some
    assert splits.num_needed == 1


def test_shots_of_classes_on_different_images_cover_them(tmp_path: Path) -> None:
    for number in range(24):
        mask = np.zeros((20, 30), np.uint8)
        mask[:5] = 1 + number % 3
        write_pair(tmp_path, f"{number:02d}", np.zeros((20, 30, 3), np.uint8), mask)
    splits = make_splits(read_folder(tmp_path, FolderOptions()), 9, 4)
    assert splits.num_needed == 3
    assert [splits.has(number) for number in (0, 1, 2, 3, 5, splits.num_all)] == [True, False, False, True, True, True]
    for seed, order in splits.shots.items():
        assert {int(name) % 3 for name in order[:3]} == {0, 1, 2}
        assert splits.shots_of(seed, 0) == order[:3]
        assert len(order) == splits.num_candidates == 15


def test_a_class_that_no_tested_image_shows_is_refused(tmp_path: Path) -> None:
    for number in range(10):
        mask = np.zeros((20, 30), np.uint8)
        mask[:5] = 1
        write_pair(tmp_path, f"{number:02d}", np.zeros((20, 30, 3), np.uint8), mask)
    splits = make_splits(read_folder(tmp_path, FolderOptions()), 2, 1)
    rare = splits.shots[0][0]
    mask[10:] = 2
    write_pair(tmp_path, rare, np.zeros((20, 30, 3), np.uint8), mask)
    with pytest.raises(InvalidInput, match="class 2: raise --max-test"):
        make_splits(read_folder(tmp_path, FolderOptions()), 2, 1)
