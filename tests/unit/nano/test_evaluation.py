"""How the figures are made: boxes, clicks and the images they are made on."""

import csv

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="making models needs the training extra")
pytest.importorskip("segment_anything", reason="making models needs the training extra")

from vplab.training.foundation.evaluation import EvaluationSet, read_set
from vplab.training.foundation.sources import held_out_ids


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
