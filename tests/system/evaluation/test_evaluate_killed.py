"""``vplab evaluate`` with the shipped models: killed at bad moments, it ends with the same figures."""

import json
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from fakes.evaluation_folders import write_inspection_set
from fakes.vplab_command import Vplab, ended, wait_for

METHODS = ("--methods", "softmatch,segmenter", "--shots", "0,2", "--seeds", "1")
NUM_TEST = 5
NUM_LINES = 3 * NUM_TEST  # two numbers of shots and the objects


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_inspection_set(tmp_path / "set", 2 * NUM_TEST)


def journal(out: Path, kind: str) -> list[dict[str, Any]]:
    path = out / "journal.jsonl"
    if not path.exists():
        return []
    whole = path.read_bytes().rpartition(b"\n")[0].splitlines()
    return [line for line in map(json.loads, whole) if line.get("kind") == kind]


def num_done(out: Path) -> int:
    return len(journal(out, "shot")) + len(journal(out, "click"))


def services_below(folder: Path) -> list[psutil.Process]:
    """The services that keep their data below a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("VPLAB_HOME", "").startswith(str(folder)) and process.is_running():
                found.append(process)
        except psutil.Error:
            continue
    return [process for process in found if process.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
def test_a_run_killed_at_several_moments_ends_with_the_figures_of_one_that_was_not(
    vplab: Vplab, tmp_path: Path, folder: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    ran = vplab.run("evaluate", folder, "--out", whole, *METHODS, timeout_s=300)
    assert ran.returncode == 0, ran.stderr
    assert num_done(whole) == NUM_LINES

    command = ("evaluate", folder, "--out", killed, *METHODS)
    for target in (1, NUM_TEST + 2, 2 * NUM_TEST + 3):
        with ended(vplab.start(*command)) as process:
            wait_for(lambda: process.poll() is not None or num_done(killed) >= target, timeout_s=120)  # noqa: B023
            process.send_signal(signal.SIGKILL)
            process.wait()
    ran = vplab.run(*command, timeout_s=300)
    assert ran.returncode == 0, ran.stderr

    # Nothing is measured twice but what was in hand when a kill came.
    assert num_done(killed) == NUM_LINES
    figures = [json.loads((out / "results.json").read_text()) for out in (whole, killed)]
    for key in ("shots", "clicks"):
        assert scores(figures[0][key]) == scores(figures[1][key])
    assert figures[0]["settings"] == figures[1]["settings"]
    assert (whole / "splits.json").read_bytes() == (killed / "splits.json").read_bytes()
    assert figures[1]["models"]["segmenter"]["name"] == "artifacts/nano-segmenter/versions/1"
    assert not (killed / "services").exists()
    wait_for(lambda: not services_below(tmp_path))


def test_an_interrupted_run_shows_what_it_has_and_stops_its_services(
    vplab: Vplab, tmp_path: Path, folder: Path
) -> None:
    out = tmp_path / "out"
    with ended(vplab.start("evaluate", folder, "--out", out, *METHODS)) as process:
        wait_for(lambda: num_done(out) >= NUM_TEST + 1, timeout_s=120)
        process.send_signal(signal.SIGINT)
        out_text, err_text = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "the same command goes on from here" in err_text
    assert "segmenter" in out_text
    figures = json.loads((out / "results.json").read_text())
    assert not figures["is_complete"]
    assert "segmenter" in figures["clicks"]
    wait_for(lambda: not services_below(tmp_path))


@pytest.mark.slow
def test_what_was_tuned_before_a_kill_is_not_tuned_again(vplab: Vplab, tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "out"
    command = ("evaluate", folder, "--out", out, "--methods", "lora,softmatch+lora", "--shots", "1", "--seeds", "1",
               "--tuning-steps", "2")  # fmt: skip
    log = out / "services" / "logs" / "training.log"
    # While the job is worked on, and when its adapter has begun to be measured.
    moments = (lambda: log.exists() and b"job_taken" in log.read_bytes(), lambda: bool(journal(out, "click")))
    for has_come in moments:
        with ended(vplab.start(*command)) as process:
            wait_for(lambda: process.poll() is not None or has_come(), timeout_s=300)  # noqa: B023
            process.send_signal(signal.SIGKILL)
            process.wait()
    created = log.read_bytes().count(b'"job_queued"')
    ran = vplab.run(*command, timeout_s=300)
    assert ran.returncode == 0, ran.stderr

    assert created == 1
    assert len({line["run_id"] for line in journal(out, "run")}) == 1
    (tuning,) = journal(out, "tuning")
    assert tuning["num_parameters"] == 144_384
    assert num_done(out) == 2 * NUM_TEST
    figures = json.loads((out / "results.json").read_text())
    assert figures["tuned"]["lora"]["1"]["num_failed"] == 0
    assert figures["shots"]["softmatch+lora"]["1"]["num_failed"] == 0
    assert "Table 1" in (out / "results.md").read_text()
    assert not (out / "services").exists()
    wait_for(lambda: not services_below(tmp_path))


def scores(figures: Any) -> Any:
    """Figures without their timings."""
    if not isinstance(figures, dict):
        return figures
    return {key: scores(value) for key, value in figures.items() if key not in ("fit_s", "image_s", "seconds")}
