"""``vplab demo`` against a service that calls bright pixels the object: the figures are those of the files it wrote."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fakes.command_bench import ADAPTER, Bench
from fakes.segmentation_server import FakeSegmentation
from vplab.errors import InvalidInput, Unimplemented
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


DEMO = ("demo", "--out", "demo", "--num-images", 4, "--size", 128, "--json", "f.json")


def test_rounds_correct_pseudolabels_tune_and_test_on_other_images(bench: Bench, tmp_path: Path) -> None:
    stale = tmp_path / "demo" / "corrected" / "images" / "99.png"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"of an earlier demo")
    ran = bench.run(*DEMO, "--rounds", 2, "--shots", 2, "--steps", 7)
    assert ran.exit_code == 0, ran.output
    figures = bench.figures
    assert [item["num_corrected"] for item in figures["rounds"]] == [2, 4]
    # Three test images prompted; then two pseudolabels and three tests in each round, from the second on with adapter.
    assert bench.segmentation.adapters_asked == [*[""] * 5, *[ADAPTER] * 8]
    assert [request.dataset for request in bench.training.requests] == [
        "artifacts/demo-corrected/versions/1",
        "artifacts/demo-corrected/versions/2",
    ]
    (first, second) = bench.training.requests
    assert (first.options.num_steps, first.promote_alias, first.promote_only_if_better) == (7, "production", True)
    assert first.prompt_set == second.prompt_set == figures["prompt_set"]["name"]
    corrected = {path.name for path in (tmp_path / "demo" / "corrected" / "images").iterdir()}
    assert corrected == {"04.png", "05.png", "06.png", "07.png"}
    for path in (tmp_path / "demo" / "corrected" / "masks").iterdir():
        assert path.read_bytes() == (tmp_path / "demo" / "truth" / path.name).read_bytes()
    for number, item in enumerate(figures["rounds"], start=1):
        assert item["miou"] == pytest.approx(measured(tmp_path / "demo", f"round{number}/test", range(1, 4)))
        pool = range(2 + 2 * number, 4 + 2 * number)
        assert item["pseudolabel_miou"] == pytest.approx(
            measured(tmp_path / "demo", f"round{number}/pseudolabels", pool)
        )
        assert f"mIoU {item['miou']:.3f} with {ADAPTER}" in ran.stdout
    with Image.open(tmp_path / "demo" / "before_after.jpg") as picture:
        assert picture.width > 4 * 200


def measured(out: Path, folder: str, numbers: range) -> float:
    ious = []
    for number in numbers:
        found = read_labels(out / folder / "masks" / f"{number:02d}.png") == 1
        truth = read_labels(out / "truth" / f"{number:02d}.png") == 1
        ious.append((found & truth).sum() / (found | truth).sum())
    return float(np.mean(ious))


def test_without_a_trainer_the_demo_says_what_the_rest_needs(bench: Bench, tmp_path: Path) -> None:
    bench.training.refuses = Unimplemented("torch is not installed")
    ran = bench.run(*DEMO)
    assert ran.exit_code == 0, ran.output
    assert (bench.figures["rounds"], bench.figures["num_images"]) == ([], 3)
    assert "tuning was left out: torch is not installed" in ran.stdout
    assert not (tmp_path / "demo" / "before_after.jpg").exists()


def test_rounds_can_be_left_out(bench: Bench) -> None:
    ran = bench.run(*DEMO, "--rounds", 0)
    assert ran.exit_code == 0, ran.output
    assert not bench.training.requests
    assert "left out" not in ran.stdout


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
