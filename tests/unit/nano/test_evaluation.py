"""How the figures are made: boxes, clicks and the images they are made on."""

import csv

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="making models needs the training extra")
pytest.importorskip("segment_anything", reason="making models needs the training extra")

from vplab.training.foundation.evaluation import EvaluationSet, iou, next_click, read_set, tight_box
from vplab.training.foundation.sources import held_out_ids


def disc(centre_xy, radius, size=40):
    y, x = np.mgrid[:size, :size]
    return np.hypot(x - centre_xy[0], y - centre_xy[1]) <= radius


def test_the_first_click_is_the_middle_of_the_object():
    point, label = next_click(np.zeros((40, 40), bool), disc((12, 25), 8))
    assert label == 1
    assert np.abs(point - (12, 25)).max() <= 1


def test_the_next_click_goes_to_the_largest_error_of_either_kind():
    target, predicted = disc((10, 10), 6), disc((10, 10), 6) | disc((30, 28), 5)
    point, label = next_click(predicted, target)
    assert label == 0
    assert np.abs(point - (30, 28)).max() <= 1


def test_an_object_cut_by_the_border_is_clicked_inside_it():
    point, label = next_click(np.zeros((40, 40), bool), np.arange(40)[None, :] + np.zeros((40, 1)) < 6)
    assert label == 1
    assert 1 <= point[0] <= 4


def test_iou_and_box_of_a_known_pair():
    a, b = np.zeros((10, 12), bool), np.zeros((10, 12), bool)
    a[2:6, 3:9] = True
    b[2:6, 6:12] = True
    assert iou(a, b) == pytest.approx(12 / 36)
    assert tight_box(a).tolist() == [3, 2, 9, 6]


def test_a_natural_set_is_measured_on_held_out_images_only(tmp_path):
    held_out = sorted(held_out_ids("ecssd"))[:3]
    ids = [*held_out, "000"]
    for part in ("images", "masks"):
        (tmp_path / "ecssd" / part).mkdir(parents=True)
    with (tmp_path / "ecssd" / "filelist.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "mask_values"])
        writer.writerows([i, "0 255"] for i in ids)
    for index, name in enumerate(ids):
        mask = np.zeros((20, 30), np.uint8)
        mask[:5, : index + 1] = 255
        cv2.imwrite(str(tmp_path / "ecssd" / "images" / f"{name}.jpg"), np.zeros((20, 30, 3), np.uint8))
        cv2.imwrite(str(tmp_path / "ecssd" / "masks" / f"{name}.png"), mask)
    areas = [int(target.sum()) for _, target in read_set(tmp_path, EvaluationSet("e", "ecssd", 255, True), 10)]
    assert areas == [5, 10, 15]
