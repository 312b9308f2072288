"""``vplab dataset`` against a real registry: what goes in comes out, and what is wrong is named."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fakes.registry_process import registry_in_a_thread
from vplab.cli.main import app
from vplab.client.datasets import read_coco, read_folder
from vplab.vision.label_images import label_png, read_labels

Run = Callable[..., Any]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    monkeypatch.chdir(tmp_path)
    with registry_in_a_thread(tmp_path / "registry") as address:

        def run(*arguments: object) -> Any:
            before = ["--home", str(tmp_path / "home"), "--registry", address]
            result = CliRunner().invoke(app, [*before, *map(str, arguments)])
            assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
            return result

        yield run


@pytest.fixture
def result(tmp_path: Path) -> Path:
    """A folder as ``vplab segment`` writes it: three images, the last without a defect."""
    root = tmp_path / "My Parts 2"
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for number in range(3):
        pixels = np.full((30, 40), 60 + number, np.uint8)
        labels = np.zeros((30, 40), np.uint8)
        if number < 2:
            labels[5:15, 4 : 20 + number] = 1
            labels[20:25, 4:20] = 2
        Image.fromarray(pixels).save(root / "images" / f"part_{number}.png")
        (root / "masks" / f"part_{number}.png").write_bytes(label_png(labels))
    (root / "classes.csv").write_text("class_id,class\n1,scratch\n2,dent\n", encoding="utf-8")
    return root


def figures(tmp_path: Path) -> Any:
    return json.loads((tmp_path / "f.json").read_text())


def test_what_was_pushed_is_listed_shown_and_exported(run: Run, result: Path, tmp_path: Path) -> None:
    pushed = run("dataset", "push", result, "--json", "f.json")
    assert pushed.exit_code == 0, pushed.output
    assert figures(tmp_path)["version"] == "artifacts/my-parts-2/versions/1"
    assert "3 images; 1 scratch on 2, 2 dent on 2" in pushed.stdout
    listed = run("dataset", "list").stdout.splitlines()[-1].split()
    assert listed[:3] == ["my-parts-2", "1", "3"]
    shown = run("dataset", "show", "my-parts-2", "--json", "f.json")
    assert shown.exit_code == 0, shown.output
    assert figures(tmp_path)["images"][0]["area_shares"] == {"1": round(160 / 1200, 6), "2": round(80 / 1200, 6)}
    assert "13.33%" in shown.stdout
    exported = run("dataset", "export", "my-parts-2@1", "--out", "again")
    assert exported.exit_code == 0, exported.output
    np.testing.assert_array_equal(
        read_labels(tmp_path / "again" / "masks" / "part_1.png"), read_labels(result / "masks" / "part_1.png")
    )
    assert read_folder(tmp_path / "again").classes == read_folder(result).classes


def test_the_same_folder_is_the_same_version_and_a_correction_a_new_one(run: Run, result: Path, tmp_path: Path) -> None:
    run("dataset", "push", result, "--name", "parts")
    run("dataset", "push", result, "--name", "parts", "--json", "f.json")
    assert figures(tmp_path)["version"] == "artifacts/parts/versions/1"
    labels = read_labels(result / "masks" / "part_0.png").copy()
    labels[0, 0] = 1
    (result / "masks" / "part_0.png").unlink()  # as segment leaves it, images may be hard links; masks are not
    (result / "masks" / "part_0.png").write_bytes(label_png(labels))
    run("dataset", "push", result, "--name", "parts", "--json", "f.json")
    assert figures(tmp_path)["version"] == "artifacts/parts/versions/2"


@pytest.mark.parametrize("layout", ["file", "folder", "cvat"])
def test_coco_goes_out_and_comes_back(run: Run, result: Path, tmp_path: Path, layout: str) -> None:
    run("dataset", "push", result, "--name", "parts")
    assert run("dataset", "export", "parts", "--out", "coco", "--coco").exit_code == 0
    source = tmp_path / "coco"
    if layout == "file":
        source = source / "annotations.json"
    if layout == "cvat":
        (source / "annotations").mkdir()
        os.replace(source / "annotations.json", source / "annotations" / "instances_default.json")
    pushed = run("dataset", "push", source, "--name", "parts", "--json", "f.json")
    assert pushed.exit_code == 0, pushed.output
    assert figures(tmp_path)["version"] == "artifacts/parts/versions/1"  # nothing was lost on the way


def test_tolerance_simplifies(run: Run, result: Path, tmp_path: Path) -> None:
    run("dataset", "push", result, "--name", "parts")
    assert run("dataset", "export", "parts", "--out", "coco", "--coco", "--tolerance", 1).exit_code == 0
    assert len(read_coco(tmp_path / "coco" / "annotations.json").items) == 3


def test_every_wrong_file_is_on_a_line_and_nothing_is_published(run: Run, result: Path) -> None:
    (result / "masks" / "part_0.png").write_bytes(label_png(np.ones((4, 4), np.uint8)))
    (result / "masks" / "part_1.png").write_bytes(b"text")
    (result / "images" / "part_9.png").write_bytes(b"")
    refused = run("dataset", "push", result, "--name", "parts")
    assert refused.exit_code == 3
    assert "images/part_9.png: has no mask" in refused.stderr
    (result / "images" / "part_9.png").unlink()
    refused = run("dataset", "push", result, "--name", "parts")
    lines = refused.stderr.splitlines()
    assert lines[0] == "masks/part_0.png: is 4 x 4, its image images/part_0.png 40 x 30"
    assert lines[1].startswith("masks/part_1.png: ")
    assert "2 things are wrong" in lines[-1]
    assert run("dataset", "show", "parts").exit_code == 5


def test_classes_can_be_named_and_checked_without_publishing(run: Run, result: Path, tmp_path: Path) -> None:
    checked = run("dataset", "push", result, "--check-only", "--class", "1=crack", "--class", "2=hole")
    assert (checked.exit_code, "1 crack on 2, 2 hole on 2" in checked.stdout) == (0, True)
    unknown = run("dataset", "push", result, "--check-only", "--class", "1=crack")
    assert unknown.exit_code == 3
    assert "holds class 2; the classes are 1" in unknown.stderr
    assert run("dataset", "push", result, "--class", "crack").exit_code == 3
    run("dataset", "list", "--json", "f.json")
    assert figures(tmp_path) == {"datasets": []}


def test_a_folder_of_pseudolabels_is_exported_without_being_published(run: Run, result: Path, tmp_path: Path) -> None:
    exported = run("dataset", "export", result, "--out", "coco", "--coco", "--json", "f.json")
    assert exported.exit_code == 0, exported.output
    assert figures(tmp_path)["folder"] == str(result)
    found, there = read_coco(tmp_path / "coco" / "annotations.json"), read_folder(result)
    assert found.classes == there.classes
    for mine, theirs in zip(found.items, there.items, strict=True):
        assert mine.image == theirs.image
        for class_id, mask in theirs.masks.items():
            np.testing.assert_array_equal(mine.masks[class_id], mask)
    run("dataset", "list", "--json", "f.json")
    assert figures(tmp_path) == {"datasets": []}


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (["push", "My Parts 2", "--images", "elsewhere"], "--images"),
        (["push", "coco", "--binary"], "--binary"),
        (["push", "coco", "--class-ids"], "--class-ids"),
        (["export", "My Parts 2", "--out", "x", "--tolerance", "1"], "--tolerance"),
    ],
)
def test_options_that_would_be_ignored_are_refused(run: Run, result: Path, arguments: list[str], flag: str) -> None:
    assert run("dataset", "export", result, "--out", "coco", "--coco").exit_code == 0
    ran = run("dataset", *arguments)
    assert (ran.exit_code, f"{flag} says nothing here: " in ran.stderr) == (3, True), ran.stderr


def test_a_name_that_cannot_be_one_is_told_by_its_flag(run: Run, result: Path) -> None:
    ran = run("dataset", "push", result, "--name", "My Parts")
    assert (ran.exit_code, "--name: " in ran.stderr) == (3, True), ran.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["push", "absent"], 3, "absent does not exist"),
        (["show", "absent"], 5, "absent"),
        (["export", "absent", "--out", "x"], 5, "absent"),
        (["push", "."], 3, "is no folder; a data set is images/NAME"),
    ],
)
def test_what_is_not_there_is_said(run: Run, arguments: list[str], code: int, text: str) -> None:
    ran = run("dataset", *arguments)
    assert ran.exit_code == code
    assert text in ran.output
