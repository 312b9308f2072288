"""``vplab demo`` against a service that calls bright pixels the object: the figures are those of the files it wrote."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fakes.segmentation_server import FakeSegmentation
from vplab.errors import InvalidInput
from vplab.vision.label_images import read_labels

Vplab = Callable[..., Any]


def test_the_figures_are_those_of_the_files(vplab: Vplab, tmp_path: Path) -> None:
    ran = vplab("demo", "--out", "demo", "--num-images", 4, "--size", 128, "--json", "figures.json")
    assert ran.code == 0, ran.text
    figures = json.loads((tmp_path / "figures.json").read_text())
    ious = []
    for number in range(1, 4):
        found = read_labels(tmp_path / "demo" / "masks" / f"{number:02d}.png") == 1
        truth = read_labels(tmp_path / "demo" / "truth" / f"{number:02d}.png") == 1
        ious.append((found & truth).sum() / (found | truth).sum())
    assert figures["miou"] == pytest.approx(np.mean(ious))
    assert f"mIoU {figures['miou']:.3f}" in ran.out
    assert figures["num_images"] == 3
    assert 1 <= figures["num_clicks"] <= 6
    with Image.open(tmp_path / "demo" / "demo.jpg") as picture:
        assert picture.width > 800


def test_the_clicks_are_inside_what_they_mean(vplab: Vplab, segmentation: FakeSegmentation, tmp_path: Path) -> None:
    vplab("demo", "--out", "demo", "--num-images", 2, "--size", 128)
    truth = read_labels(tmp_path / "demo" / "truth" / "00.png") == 1
    points = [point for request in segmentation.predictions_asked for point in request.prompts[0].points]
    assert points
    for point in points:
        assert truth[int(point.y), int(point.x)] == (point.label == 1)


def test_equal_seeds_give_equal_images(vplab: Vplab, tmp_path: Path) -> None:
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        vplab("demo", "--out", out, "--num-images", 2, "--size", 96, "--seed", seed)
    a, b, c = ((tmp_path / name / "input" / "01.png").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_images_that_fail_are_counted_and_the_exit_code_says_so(
    vplab: Vplab, segmentation: FakeSegmentation, tmp_path: Path
) -> None:
    def refuse(data: bytes) -> None:
        if data == (tmp_path / "demo" / "input" / "02.png").read_bytes():
            raise InvalidInput("no", field="image.encoded")

    segmentation.before_segment = refuse
    ran = vplab("demo", "--out", "demo", "--num-images", 4, "--size", 96, "--json", "figures.json")
    assert ran.code == 1, ran.text
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["num_images"], figures["num_failed"]) == (2, 1)


def test_when_every_image_fails_the_demo_still_says_so(vplab: Vplab, segmentation: FakeSegmentation) -> None:
    def refuse(data: bytes) -> None:
        raise InvalidInput("no", field="image.encoded")

    segmentation.before_segment = refuse
    ran = vplab("demo", "--out", "demo", "--num-images", 3, "--size", 96)
    assert ran.code == 1, ran.text
    assert "mIoU - over 0 generated images" in ran.out


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--defect", "dragon"], 3, "defect"),
        (["--surface", "cheese"], 3, "surface"),
        (["--num-images", "1"], 2, "num-images"),
    ],
)
def test_what_cannot_be_generated_is_refused(vplab: Vplab, arguments: list[str], code: int, text: str) -> None:
    ran = vplab("demo", *arguments)
    assert ran.code == code
    assert text in ran.text
