"""``vplab segment``: results on disk, failures that are named, and a run that goes on where it stopped."""

import csv
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fakes.segmentation_server import FakeSegmentation
from vplab.errors import FailedPrecondition, ResourceExhausted, Unavailable
from vplab.vision.label_images import read_labels

Vplab = Callable[..., Any]


@pytest.fixture(autouse=True)
def taught(vplab: Vplab, folder: Path) -> None:
    assert vplab("prompt", folder / "0.png", "--point", "20,10", "--save", "bright").code == 0


def test_a_folder_becomes_label_images_beside_their_images(vplab: Vplab, folder: Path, tmp_path: Path) -> None:
    ran = vplab("segment", "bright", folder, "--out", "out", "--json", "figures.json")
    assert ran.code == 0, ran.text
    out = tmp_path / "out"
    for number in range(6):
        label = Image.open(out / "masks" / f"{number}.png")
        image = Image.open(out / "images" / f"{number}.png")
        assert label.size == image.size
        np.testing.assert_array_equal(np.asarray(label), (np.asarray(image) >= 128).astype(np.uint8))
    rows = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    assert [row["area_px"] for row in rows] == ["200", "220", "240", "0", "280", "300"]
    assert rows[3]["present"] == "0"
    with Image.open(out / "contact_sheet.jpg") as sheet:
        assert sheet.width > 600
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["num_done"], figures["num_failed"]) == (6, 0)


def test_a_folder_asks_to_wait_for_clicks(vplab: Vplab, folder: Path, segmentation: FakeSegmentation) -> None:
    assert set(segmentation.priorities_asked) == {""}, "a person taught the prompt set"
    segmentation.priorities_asked.clear()
    assert vplab("segment", "bright", folder, "--out", "out").code == 0
    assert segmentation.priorities_asked == ["batch"] * 6


def test_the_truth_gives_the_agreement(vplab: Vplab, folder: Path, tmp_path: Path) -> None:
    truth = tmp_path / "truth"
    truth.mkdir()
    for number in range(4):
        mask = np.asarray(Image.open(folder / f"{number}.png")) >= 128
        if number == 1:
            mask = mask & (np.arange(60) < 20)
        if number == 2:
            mask = np.zeros_like(mask)
        Image.fromarray((mask * 255).astype(np.uint8)).save(truth / f"{number}.png")
    ran = vplab("segment", "bright", folder, "--out", "out", "--truth", truth, "--truth-is-binary", "--json", "f.json")
    assert ran.code == 0, ran.text
    agreement = json.loads((tmp_path / "f.json").read_text())["agreement"]
    assert agreement["miou"] == pytest.approx((1 + 0.5) / 2)
    assert agreement["num_without_truth"] == 2
    assert agreement["classes"][0]["num_false_alarms"] == 1
    assert agreement["classes"][0]["num_missed"] == 0
    assert "mIoU 0.750" in ran.out


def test_images_at_fault_are_listed_and_the_others_are_done(vplab: Vplab, folder: Path, tmp_path: Path) -> None:
    (folder / "broken.jpg").write_bytes(b"no image")
    ran = vplab("segment", "bright", folder, "--out", "out")
    assert ran.code == 1
    assert "broken.jpg" in ran.out
    (failure,) = csv.DictReader((tmp_path / "out" / "failures.csv").read_text().splitlines())
    assert failure["image"] == "broken.jpg"
    assert "no image" in failure["error"]
    assert len(list((tmp_path / "out" / "masks").iterdir())) == 6


def test_a_second_run_does_only_what_is_left(
    vplab: Vplab, folder: Path, segmentation: FakeSegmentation, tmp_path: Path
) -> None:
    vplab("segment", "bright", folder, "--out", "out")
    assert segmentation.num_segmented == 6
    (tmp_path / "out" / "masks" / "2.png").unlink()
    Image.fromarray(np.full((40, 60), 255, np.uint8)).save(folder / "4.png")
    Image.fromarray(np.full((40, 60), 255, np.uint8)).save(folder / "7.png")
    ran = vplab("segment", "bright", folder, "--out", "out", "--json", "f.json")
    assert ran.code == 0, ran.text
    assert segmentation.num_segmented == 9
    assert json.loads((tmp_path / "f.json").read_text())["num_done"] == 7


def test_results_of_another_prompt_set_are_never_mixed_in(vplab: Vplab, folder: Path) -> None:
    vplab("segment", "bright", folder, "--out", "out")
    vplab("prompt", folder / "0.png", "--point", "20,10", "--save", "other")
    ran = vplab("segment", "other", folder, "--out", "out")
    assert ran.code == 3
    assert "artifacts/other/versions/1" in ran.err
    assert vplab("segment", "other", folder, "--out", "out", "--restart").code == 0


def test_a_line_that_a_kill_cut_short_is_done_again(
    vplab: Vplab, folder: Path, segmentation: FakeSegmentation, tmp_path: Path
) -> None:
    vplab("segment", "bright", folder, "--out", "out")
    journal = tmp_path / "out" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])
    assert vplab("segment", "bright", folder, "--out", "out").code == 0
    assert segmentation.num_segmented == 7
    assert len(journal.read_text().splitlines()) == 7


def test_an_overloaded_service_is_waited_for(vplab: Vplab, folder: Path, segmentation: FakeSegmentation) -> None:
    refusals = threading.Semaphore(3)

    def refuse_at_first(data: bytes) -> None:
        if refusals.acquire(blocking=False):
            raise ResourceExhausted("the queue is full", retry_after_s=0.05)

    segmentation.before_segment = refuse_at_first
    assert vplab("segment", "bright", folder, "--out", "out").code == 0
    assert segmentation.num_segmented == 6


def test_a_service_that_stays_away_stops_the_run_with_what_is_done_kept(
    vplab: Vplab, folder: Path, segmentation: FakeSegmentation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vplab.cli.folder_run._PATIENCE_S", 0.0)
    allowed = threading.Semaphore(3)

    def leave(data: bytes) -> None:
        if not allowed.acquire(blocking=False):
            raise Unavailable("gone")

    segmentation.before_segment = leave
    ran = vplab("segment", "bright", folder, "--out", "out", "--in-flight", 1)
    assert ran.code == 4
    assert len(list((tmp_path / "out" / "masks").iterdir())) == 3
    segmentation.before_segment = lambda data: None
    assert vplab("segment", "bright", folder, "--out", "out").code == 0
    assert segmentation.num_segmented == 6


def test_what_would_fail_for_every_image_stops_the_run_at_once(
    vplab: Vplab, folder: Path, segmentation: FakeSegmentation
) -> None:
    def refuse(data: bytes) -> None:
        raise FailedPrecondition("the adapter was made for another segmenter", reason="ADAPTER_BASE_MISMATCH")

    segmentation.before_segment = refuse
    ran = vplab("segment", "bright", folder, "--out", "out")
    assert ran.code == 3
    assert "another segmenter" in ran.err


def test_several_images_are_in_flight_but_no_more_than_asked(
    vplab: Vplab, folder: Path, segmentation: FakeSegmentation
) -> None:
    running, most, lock, together = 0, 0, threading.Lock(), threading.Barrier(3)

    def count(data: bytes) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait(10)
        with lock:
            running -= 1

    segmentation.before_segment = count
    assert vplab("segment", "bright", folder, "--out", "out", "--in-flight", 3).code == 0
    assert most == 3


def test_equal_stems_and_folders_get_names_of_their_own(vplab: Vplab, folder: Path, tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(folder / "0.bmp")
    (folder / "deep").mkdir()

    Image.fromarray(np.full((9, 9), 255, np.uint8)).save(folder / "deep" / "0.png")
    assert vplab("segment", "bright", folder, "--out", "out", "--recursive").code == 0
    sizes = {path.name: read_labels(path).shape for path in (tmp_path / "out" / "masks").iterdir()}
    assert sizes["0.png"] == (8, 8)
    assert sizes["0_png.png"] == (40, 60)
    assert sizes["deep__0.png"] == (9, 9)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["bright", "absent"], 3, "absent"),
        (["bright", "empty"], 3, "no image"),
        (["unknown", "images"], 5, "artifacts/unknown"),
        (["bright", "images", "--matcher", "magic"], 3, "--matcher"),
        (["bright", "images", "--truth", "absent"], 3, "--truth"),
        (["bright", "images", "--in-flight", "0"], 2, "in-flight"),
        (["bright"], 2, "images"),
    ],
)
def test_what_cannot_work_ends_with_one_clear_line(
    vplab: Vplab, folder: Path, arguments: list[str], code: int, text: str
) -> None:
    (folder.parent / "empty").mkdir()
    ran = vplab("segment", *arguments, "--out", "out")
    assert ran.code == code, ran.text
    assert text in ran.text
    assert "Traceback" not in ran.text


def test_an_output_folder_that_cannot_be_written_is_refused(vplab: Vplab, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ran = vplab("segment", "bright", folder, "--out", tmp_path / "file" / "out")
    assert ran.code == 3
    assert "--out" in ran.err
