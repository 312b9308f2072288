"""``vplab bench`` as a command, against services without models: its files, its refusals, and what it leaves."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from fakes.segmentation_server import FakeSegmentation
from vplab.cli.main import app
from vplab.errors import NotFound, Unimplemented

Vplab = Callable[..., Any]
SHORT = ("--seconds", "0.3", "--warm-up", "0.1", "--images", "2", "--image-size", "96", "--processes", "1")


def report(tmp_path: Path) -> Any:
    return json.loads((tmp_path / "out" / "bench.json").read_text())


def test_clicks_become_a_report_a_table_and_a_plot(
    vplab: Vplab, tmp_path: Path, segmentation: FakeSegmentation
) -> None:
    ran = vplab("bench", "--out", "out", "--concurrency", "1,3", "--rate", "20", *SHORT, "--json", "figures.json")
    assert ran.code == 0, ran.text
    found = report(tmp_path)
    assert found == json.loads((tmp_path / "figures.json").read_text())
    assert found["is_complete"]
    assert [row["num_callers"] for row in found["sweep"]] == [1, 3]
    assert [row["rate_per_s"] for row in found["arrivals"]] == [20]
    for row in (*found["sweep"], *found["arrivals"]):
        assert row["num_ok"] == row["num_calls"] > 0
        assert 0 < row["latency_s"]["p50"] <= row["latency_s"]["p95"] <= row["latency_s"]["p99"]
        assert row["generator"]["num_processes"] == 1
    assert found["machine"]
    assert found["commit"]
    assert "| callers | per second |" in ran.out
    assert "| callers | per second |" in (tmp_path / "out" / "bench.md").read_text()
    with Image.open(tmp_path / "out" / "bench.png") as image:
        assert image.width > 400
    clicks = segmentation.predictions_asked
    assert {bool(click.image.encoded) for click in clicks[:2]} == {True}, "images are embedded first"
    assert {bool(click.image.digest) for click in clicks[2:]} == {True}, "then they are named"
    assert len({click.prompts[0].points[0].x for click in clicks}) > 3


def test_clicks_can_send_their_image_and_ask_for_several_objects(
    vplab: Vplab, tmp_path: Path, segmentation: FakeSegmentation
) -> None:
    ran = vplab("bench", "--out", "out", "--work", "click-image", "--objects", "3", "--concurrency", "1", *SHORT)
    assert ran.code == 0, ran.text
    measured = segmentation.predictions_asked[2:]
    assert all(click.image.encoded and len(click.prompts) == 3 for click in measured)


def test_adapters_are_named_in_turn(vplab: Vplab, tmp_path: Path, segmentation: FakeSegmentation) -> None:
    ran = vplab("bench", "--out", "out", "--adapters", "one,two", "--concurrency", "1", *SHORT)
    assert ran.code == 0, ran.text
    asked = [click.models.adapter for click in segmentation.predictions_asked]
    assert asked[:2] == ["artifacts/one", "artifacts/two"], "both are loaded before the clock runs"
    assert asked[2:4] == ["", ""], "then the images are embedded"
    assert asked[4:8] == ["artifacts/one", "artifacts/two"] * 2


def test_an_adapter_that_does_not_exist_is_named_before_anything_is_measured(
    vplab: Vplab, tmp_path: Path, segmentation: FakeSegmentation
) -> None:
    def look_up() -> None:
        if segmentation.predictions_asked[-1].models.adapter:
            raise NotFound("there is no artifacts/lost")

    segmentation.before_predict = look_up
    ran = vplab("bench", "--out", "out", "--adapters", "lost", "--concurrency", "1", *SHORT)
    assert ran.code == 5, ran.text
    assert "--adapters: there is no artifacts/lost" in ran.err
    assert len(segmentation.predictions_asked) == 1
    assert report(tmp_path)["sweep"] == []


def test_images_that_are_segmented_are_new_in_every_call(
    vplab: Vplab, tmp_path: Path, segmentation: FakeSegmentation
) -> None:
    seen: list[bytes] = []
    segmentation.before_segment = seen.append
    ran = vplab("bench", "--out", "out", "--work", "segment", "--concurrency", "2", *SHORT)
    assert ran.code == 0, ran.text
    assert len(seen) == len(set(seen)) > 2
    assert report(tmp_path)["sweep"][0]["answers_say_s"]["num_answers"] > 0
    left = [name for name in segmentation.prompt_sets if name.startswith("bench-")]
    assert left, "the service without a registry keeps it"
    assert f"artifacts/{left[0]} could not be deleted" in ran.err


def test_clicks_are_measured_beside_segmentation_in_bulk(
    vplab: Vplab, tmp_path: Path, segmentation: FakeSegmentation
) -> None:
    adapters = ("--adapters", "one,two", "--beside-rate", "20")
    ran = vplab("bench", "--out", "out", "--beside", "segment", "--pairs", "1", *adapters, *SHORT)
    assert ran.code == 0, ran.text
    idle, busy = report(tmp_path)["beside"]
    assert "bulk" not in idle
    assert busy["bulk"]["kind"] == "segment"
    assert busy["bulk"]["images_per_s"] > 0
    assert busy["bulk"]["lasted"]
    assert report(tmp_path)["p95_beside_ratio"] > 0
    assert set(segmentation.adapters_asked) == {"artifacts/one", "artifacts/two"}
    clicks = [click for click in segmentation.predictions_asked if click.image.digest]
    assert {click.models.adapter for click in clicks} == {"artifacts/one", "artifacts/two"}


def test_calls_that_fail_are_counted_by_code(vplab: Vplab, tmp_path: Path, segmentation: FakeSegmentation) -> None:
    def refuse() -> None:
        if len(segmentation.predictions_asked) > 10:
            raise Unimplemented("no more today")

    segmentation.before_predict = refuse
    ran = vplab("bench", "--out", "out", "--concurrency", "1", *SHORT)
    assert ran.code == 1
    (row,) = report(tmp_path)["sweep"]
    assert row["errors"] == {"UNIMPLEMENTED": row["num_calls"] - row["num_ok"]}
    assert "UNIMPLEMENTED" in ran.out


def test_ctrl_c_keeps_what_was_measured(vplab: Vplab, tmp_path: Path, segmentation: FakeSegmentation) -> None:
    def interrupt() -> None:
        if len(segmentation.predictions_asked) == 200:
            os.kill(os.getpid(), signal.SIGINT)

    segmentation.before_predict = interrupt
    short = (*SHORT[2:], "--seconds", "60")
    ran = vplab("bench", "--out", "out", "--concurrency", "2", "--rate", "5", *short)
    assert ran.code == 130, ran.text
    found = report(tmp_path)
    assert not found["is_complete"]
    assert found["sweep"][0]["is_cut"]
    assert found["sweep"][0]["num_ok"] > 10
    assert found["arrivals"] == []
    assert "what was measured is kept" in ran.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--work", "dig"), "--work: 'dig' is none of click, click-image, embed, segment"),
        (("--concurrency", "0,4"), "--concurrency: '0,4' is no list of numbers from 1"),
        (("--concurrency", "many"), "--concurrency"),
        (("--concurrency", ","), "--concurrency: ',' is no list of numbers"),
        (("--concurrency", "", "--rate", "5"), "--concurrency: '' is no list of numbers"),
        (("--rate", ","), "--rate: ',' is no list of rates"),
        (("--rate", "-2"), "--rate: '-2' is no list of rates above 0"),
        (("--beside", "tea"), "--beside: 'tea' is none of precompute, stream, segment"),
        (("--growth", "objects,beards"), "--growth: 'beards' is none of"),
        (("--growth", ","), "--growth: takes all, or some of"),
        (("--work", "embed", "--adapters", "4"), "--work embed would not use it"),
        (("--work", "embed", "--objects", "4"), "--objects: goes with --work click or --work click-image or --beside"),
        (("--work", "embed", "--beside", "precompute"), "--work: goes with"),
        (("--beside", "precompute", "--growth", "objects", "--work", "click"), "--growth objects would not use it"),
        (
            ("--prompt-set", "parts"),
            "--prompt-set: goes with --work segment or --beside segment; --work click would not",
        ),
        (("--work", "segment", "--prompt-set", "parts", "--segmenter", "mine"), "a prompt set has its segmenter"),
        (("--encoder", "mine"), "--encoder: goes with --work embed or"),
        (("--pairs", "2"), "--pairs: goes with --beside precompute"),
        (("--beside-rate", "2", "--concurrency", "1"), "--beside-rate: goes with --beside precompute"),
        (("--growth", "objects", "--adapters", "2"), "--growth objects would not use it"),
        (("--adapters", "0"), "--adapters: takes a number above 0, or names"),
        (("--adapters", ","), "--adapters: takes a number above 0, or names"),
        (("--metrics", "nowhere"), "--metrics: nowhere is no page of Prometheus series"),
    ],
)
def test_options_that_are_wrong_are_named(vplab: Vplab, arguments: tuple[str, ...], said: str) -> None:
    ran = vplab("bench", "--out", "out", *arguments, *SHORT)
    assert ran.code == 3, ran.text
    assert said in ran.err


def test_metrics_of_services_of_its_own_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = CliRunner().invoke(app, ["bench", "--out", "out", "--metrics", "http://127.0.0.1:9/metrics", *SHORT])
    assert ran.exit_code == 3
    assert "--metrics: goes with the address of a service" in ran.stderr
    assert not (tmp_path / "out").exists()


def test_the_first_line_says_which_services_are_measured(vplab: Vplab, tmp_path: Path) -> None:
    ran = vplab("bench", "--out", "out", "--concurrency", "1", *SHORT)
    assert ran.err.splitlines()[0].startswith("measuring the services at 127.0.0.1:")
    assert report(tmp_path)["measured"] in ran.err


def test_a_service_that_is_not_there_is_named(vplab: Vplab, tmp_path: Path) -> None:
    ran = vplab("bench", "--out", "out", "--work", "embed", *SHORT)
    assert ran.code == 7, ran.text
    assert not report(tmp_path)["is_complete"]


def test_metrics_that_cannot_be_read_are_said_before_anything_is_measured(vplab: Vplab, tmp_path: Path) -> None:
    ran = vplab("bench", "--out", "out", "--metrics", "http://127.0.0.1:9/metrics", *SHORT)
    assert ran.code == 4, ran.text
    assert "cannot read http://127.0.0.1:9/metrics" in ran.err
    assert report(tmp_path)["sweep"] == []


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_measured(
    vplab: Vplab, tmp_path: Path, segmentation: FakeSegmentation
) -> None:
    (tmp_path / "out").write_text("a file")
    ran = vplab("bench", "--out", "out", *SHORT)
    assert ran.code != 0
    assert "cannot write" in ran.err
    assert segmentation.predictions_asked == []
