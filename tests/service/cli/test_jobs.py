"""``vplab jobs`` against a training service that follows a script."""

from pathlib import Path
from typing import Any

import pytest

from fakes.command_bench import ADAPTER, Bench
from vplab.api.training.v1 import training_service_pb2 as pb


@pytest.fixture
def queued(bench: Bench) -> Bench:
    """Two jobs that nobody has watched yet."""
    bench.publish("parts", "dataset")
    for seed in (1, 2):
        assert bench.tune("--dataset", "parts@1", "--detach", "--seed", seed).exit_code == 0
    return bench


def listed(bench: Bench, *arguments: object) -> list[Any]:
    ran = bench.run("jobs", "list", "--json", "f.json", *arguments)
    assert ran.exit_code == 0, ran.output
    return [(job["name"], job["state"]) for job in bench.figures["jobs"]]


def test_jobs_are_listed_newest_first(queued: Bench) -> None:
    assert listed(queued) == [("tuningJobs/2", "queued"), ("tuningJobs/1", "queued")]
    assert listed(queued, "--most", 1) == [("tuningJobs/2", "queued")]
    assert queued.run("jobs", "watch", "2").exit_code == 0
    assert listed(queued) == [("tuningJobs/2", "succeeded"), ("tuningJobs/1", "queued")]
    assert listed(queued, "--active") == [("tuningJobs/1", "queued")]
    assert "e_peft" in queued.run("jobs", "list").stdout


def test_a_job_is_followed_to_its_end_and_shown(queued: Bench) -> None:
    ran = queued.run("jobs", "watch", "tuningJobs/1", "--json", "f.json")
    assert ran.exit_code == 0, ran.output
    assert "step 4 of 4: loss 0.2500  IoU 0.800" in ran.stderr
    assert "tuningJobs/1: succeeded" in ran.stdout
    assert queued.figures["adapter"]["name"] == ADAPTER
    again = queued.run("jobs", "watch", "1")  # over already
    assert (again.exit_code, "step" in again.stderr) == (0, False)
    shown = queued.run("jobs", "show", "1", "--json", "f.json")
    assert ADAPTER in shown.stdout
    assert queued.figures["metrics"]["validation_iou_after"] == 0.8


def test_a_job_that_failed_ends_the_watch_with_its_reason(queued: Bench) -> None:
    queued.training.fails_with = "out of memory"
    ran = queued.run("jobs", "watch", "1")
    assert (ran.exit_code, "failed: out of memory" in ran.stderr) == (8, True)


def test_a_job_is_cancelled(queued: Bench) -> None:
    ran = queued.run("jobs", "cancel", "1")
    assert (ran.exit_code, ran.stdout.splitlines()[0]) == (0, "tuningJobs/1: cancelled")
    assert queued.training.jobs["tuningJobs/1"].state == pb.JOB_STATE_CANCELLED
    assert listed(queued, "--active") == [("tuningJobs/2", "queued")]


@pytest.mark.parametrize("verb", ["show", "watch", "cancel"])
def test_a_job_that_is_not_there_is_said(bench: Bench, tmp_path: Path, verb: str) -> None:
    ran = bench.run("jobs", verb, "9")
    assert (ran.exit_code, "tuningJobs/9 does not exist" in ran.stderr) == (5, True)
