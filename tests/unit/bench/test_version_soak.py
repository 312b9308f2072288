"""The soak of versions: what its samples mean, and that it samples what the services load."""

import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("version_soak")


def samples(minutes: float, mib: Sequence[float]) -> list[dict[str, float]]:
    times = np.linspace(1, 60 * minutes, len(mib))
    return [{"seconds": float(time), "host_mib": float(value)} for time, value in zip(times, mib, strict=True)]


def test_memory_that_grows_in_the_second_half_is_not_flat(soak: ModuleType) -> None:
    found = soak.verdict(samples(60, np.linspace(400, 420, 1000)))
    assert found["host_mib"]["per_thousand"] == pytest.approx(20, rel=0.01)
    assert found["is_flat"] is False


def test_memory_that_grew_at_the_start_and_has_spikes_is_flat(soak: ModuleType) -> None:
    mib = np.full(1000, 500.0) + np.random.default_rng(0).normal(0, 2, 1000)
    mib[:300] = np.linspace(300, 500, 300)
    mib[600::50] += 200
    found = soak.verdict(samples(60, mib))
    assert abs(found["host_mib"]["per_thousand"]) < 2
    assert found["is_flat"] is True
    assert found["host_mib"]["peaks"] == [pytest.approx(500, abs=10), pytest.approx(700, abs=10)]
    assert found["host_mib"]["median"] == pytest.approx(500, abs=1)


def test_loads_that_others_hold_up_do_not_count_for_more(soak: ModuleType) -> None:
    level = np.where(np.arange(1000) % 2, 500.0, 520.0)
    rows = samples(60, level)
    for index, row in enumerate(rows[900:]):  # the last tenth takes as long as all before
        row["seconds"] = 3600 + 36.0 * index
        row["host_mib"] = 520.0
    assert soak.verdict(rows)["is_flat"] is True


def test_a_leak_on_the_device_alone_is_a_leak(soak: ModuleType) -> None:
    rows = [{**row, "device_mib": 1000 + row["seconds"] / 60} for row in samples(60, [400.0] * 100)]
    assert soak.verdict(rows)["is_flat"] is False


def test_a_few_minutes_say_nothing(soak: ModuleType) -> None:
    assert soak.verdict(samples(5, np.linspace(400, 500, 100)))["is_flat"] is None
    assert soak.verdict(samples(60, [400.0]))["is_flat"] is None


def test_samples_of_a_run_that_was_killed_are_judged(
    soak: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    head = {"commit": "abc", "onnxruntime": "1", "machine": "m", "device": "the CPU"}
    lines = [json.dumps(line) for line in (head, *samples(60, [400.0] * 50))]
    (tmp_path / "version_soak.jsonl").write_text("\n".join([*lines, lines[-1][:10]]))
    monkeypatch.setattr(sys, "argv", ["version_soak.py", "--out", str(tmp_path), "--judge"])
    soak.main()
    assert "| of the process | 400 MiB | 400 and 400 MiB | +0.0 MiB | 8 MiB | yes |" in capsys.readouterr().out
    assert json.loads((tmp_path / "version_soak.json").read_text())["is_flat"] is True


def test_every_kind_that_is_served_takes_its_turn(
    soak: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[Any]] = {}
    answer = soak.answer

    def watch(served: Any, *others: Any) -> None:
        for kind in ("encoder", "segmenter", "adapter", "bank"):
            found = seen.setdefault(kind, [])
            if not found or found[-1] is not getattr(served, kind):
                found.append(getattr(served, kind))
        answer(served, *others)

    monkeypatch.setattr(soak, "answer", watch)
    monkeypatch.setattr(soak, "BATCHES", (1,))
    turns = soak.serving(soak.OnnxSettings(intra_op_threads=1), tmp_path)
    assert [next(turns) for _ in range(4)] == ["encoder", "segmenter", "adapter", "bank"]
    turns.close()
    assert {kind: len(versions) for kind, versions in seen.items()} == dict.fromkeys(seen, 2)


def test_a_line_is_written_for_every_turn(soak: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "samples.jsonl"
    seen = []

    def turns(*_: Any) -> Any:
        yield "encoder"
        seen.append(len(path.read_text().splitlines()))
        yield "bank"
        raise KeyboardInterrupt

    monkeypatch.setattr(soak, "serving", turns)
    soak.measure(path, 60)
    assert seen == [2], "the first is there before the second is measured"
    head, rows = soak.read(path)
    assert head["onnxruntime"]
    assert [row["loaded"] for row in rows] == ["encoder", "bank"]
    assert all(row["host_mib"] > 10 for row in rows)
