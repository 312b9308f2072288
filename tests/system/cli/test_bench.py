"""``vplab bench`` with services of its own and the models that ship."""

import json
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from fakes.vplab_command import Vplab, ended, wait_for

SHORT = ("--seconds", "1", "--warm-up", "0.2", "--images", "2", "--image-size", "128", "--processes", "1")


def report(out: Path) -> Any:
    return json.loads((out / "bench.json").read_text())


def test_a_deployment_of_its_own_is_measured_and_taken_away(vplab: Vplab, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = vplab.run("bench", "--out", out, "--adapters", 2, "--concurrency", 2, "--beside", "precompute",
                    "--pairs", 1, *SHORT, timeout_s=300)  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    found = report(out)
    assert found["is_complete"]
    (row,) = found["sweep"]
    assert row["num_ok"] > 0
    assert row["cpu_s_per_call"] > 0
    series = row["servers"]["segmentation"]["mean"]
    assert any(name.startswith("grpc_server_handling_seconds(PredictMasks") for name in series)
    assert any(name.startswith("vplab_queue_run_seconds") for name in series)
    served = {model["role"] for model in found["services"]["segmentation"]["models"]}
    assert "segmenter" in served
    idle, busy = found["beside"]
    assert (idle["is_busy"], busy["is_busy"]) == (False, True)
    assert busy["bulk"]["images_per_s"] > 0
    assert busy["bulk"]["num_failed"] == 0
    assert found["p95_beside_ratio"] > 0
    assert "| segmentation | grpc_server_handling_seconds" in (out / "bench.md").read_text()
    assert f"measuring services of its own, below {out / 'services'}" in ran.stderr
    assert "| mean ms by callers | stage | 2 |" in (out / "bench.md").read_text()
    assert "| mean ms by beside the clicks | stage | nothing | precompute |" in (out / "bench.md").read_text()
    assert sorted(path.name for path in out.iterdir()) == ["bench.json", "bench.md", "bench.png"]
    assert not vplab.home.exists(), "the user's own services are not touched"


def test_embeddings_segmentations_and_growing_costs_are_measured(vplab: Vplab, tmp_path: Path) -> None:
    short = ("--seconds", "0.2", *SHORT[2:])
    embedded = vplab.run("bench", "--out", tmp_path / "e", "--work", "embed", "--concurrency", 2, *short)
    assert embedded.returncode == 0, embedded.stderr
    assert report(tmp_path / "e")["sweep"][0]["num_ok"] > 0
    ran = vplab.run("bench", "--out", tmp_path / "s", "--work", "segment", "--concurrency", 1,
                    "--growth", "images", *short, timeout_s=300)  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    found = report(tmp_path / "s")
    stages = found["sweep"][0]["answers_say_s"]
    assert stages["total"] >= stages["match"] > 0
    assert [row["value"] for row in found["growth"] if row["axis"] == "images"] == [1, 2, 4, 8, 16]
    assert all(row["num_ok"] for row in found["growth"])
    assert "| images of one embedding call |" in ran.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_what_was_measured_and_leaves_nothing_running(
    vplab: Vplab, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "out"
    command = ("bench", "--out", out, "--concurrency", "1,2,3", "--seconds", "600", *SHORT[2:])
    with ended(vplab.start(*command)) as process:
        wait_for(lambda: (out / "services" / "logs").exists())
        # Generators are the last to start: then clicks are under way, or about to be.
        wait_for(lambda: any(is_generator(child) for child in children_of(process.pid)))
        process.send_signal(number)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    found = report(out)
    assert not found["is_complete"]
    assert len(found["sweep"]) <= 1
    assert "what was measured is kept" in err
    assert "Traceback" not in err


def children_of(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def is_generator(process: psutil.Process) -> bool:
    try:
        return "multiprocessing.spawn" in " ".join(process.cmdline())
    except psutil.Error:
        return False
