"""Counting what lines allocate: temporaries, threads, coroutines, and what is left out."""

import asyncio
import importlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "bench"
MIB = 1 << 20
SUBJECT = """
import asyncio

def freed_at_once():
    return len(bytes(bytearray(1 << 20)))

def kept():
    small = bytes(1000)
    return bytearray(2 << 20)

def calls():
    found = kept()
    return len(found), len(bytes(3 << 20))

async def waits():
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return bytearray(4 << 20)
"""


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module


@pytest.fixture
def subject(tmp_path: Path) -> Any:
    path = tmp_path / "subject.py"
    path.write_text(SUBJECT)
    found = ModuleType("subject")
    exec(compile(SUBJECT, str(path), "exec"), found.__dict__)
    return found


@pytest.fixture
def allocations(load: Any, tmp_path: Path) -> Iterator[Any]:
    before, before_threads = sys.gettrace(), threading.gettrace()
    with load("allocations").Allocations([tmp_path]) as found:
        yield found
    sys.settrace(before)
    if before_threads is not None:
        threading.settrace(before_threads)


def by_function(seen: Any) -> dict[str, float]:
    return {function: round(num_bytes / MIB, 1) for (_, _, function), num_bytes in seen.by_site.items()}


def test_a_copy_that_is_gone_when_its_line_ends_is_seen(allocations: Any, subject: Any) -> None:
    with allocations.recording() as seen:
        subject.freed_at_once()
    ((site, num_bytes),) = seen.by_site.items()
    assert site[1:] == (5, "freed_at_once")
    assert num_bytes == pytest.approx(2 * MIB, rel=0.01)
    assert seen.peak == pytest.approx(2 * MIB, rel=0.01)


def test_a_caller_is_charged_for_its_own_lines_only_and_small_pieces_for_nobody(allocations: Any, subject: Any) -> None:
    with allocations.recording() as seen:
        subject.calls()
    assert by_function(seen) == {"kept": 2.0, "calls": 3.0}
    assert seen.peak == pytest.approx(5 * MIB, rel=0.01)


def test_other_threads_and_coroutines_are_seen_and_other_code_is_outside(allocations: Any, subject: Any) -> None:
    async def main() -> None:
        kept = await subject.waits()
        bytearray(8 * MIB)
        assert kept
        await asyncio.sleep(0)

    with allocations.recording() as seen:
        thread = threading.Thread(target=subject.kept)
        thread.start()
        thread.join()
        asyncio.run(main())
    assert by_function(seen) == {"kept": 2.0, "waits": 4.0, "gRPC and asyncio": 8.0}


def test_nothing_is_noted_between_recordings(allocations: Any, subject: Any) -> None:
    with allocations.recording() as first:
        pass
    subject.kept()
    with allocations.recording() as second:
        pass
    assert first.by_site == second.by_site == {}


def test_what_few_calls_allocate_is_not_of_a_call(load: Any) -> None:
    copies, seen = load("copies"), load("allocations").Seen
    file = str(copies.LOOKED_AT[0] / "vision" / "masks.py")
    always, once = (file, 10, "resize"), (file, 20, "grow")
    found = copies.medians([seen({always: 100}, 1), seen({always: 300, once: 900}, 5), seen({always: 200}, 3)])
    assert found["allocated_bytes"] == 200
    assert found["peak_bytes"] == 3
    assert found["sites"] == [{"file": "vplab/vision/masks.py", "line": 10, "function": "resize", "bytes": 200}]


def test_the_tables_name_ratios_and_lines(load: Any) -> None:
    site = {"file": "vplab/vision/masks.py", "line": 10, "function": "resize", "bytes": 2 * MIB}
    outside = {"file": "", "line": 0, "function": "gRPC and asyncio", "bytes": MIB}
    row = {
        "call": "a click", "input_bytes": MIB, "output_bytes": MIB // 2, "picture_bytes": 3 * MIB,
        "allocated_bytes": 3 * MIB, "peak_bytes": 2 * MIB, "sites": [site, outside],
    }  # fmt: skip
    made = {"machine": "m", "python": "3", "onnxruntime": "1", "commit": "abc"}
    tables = load("copies").tables_of({"rows": [row], "side": 1024, "calls": 5, **made})
    assert "| a click | 1.00 MiB | 0.50 MiB | 3.00 MiB | 2.0 x | 1.0 x | 2.00 MiB |" in tables
    assert "| a click | 2.00 MiB | 0.7 x | `vplab/vision/masks.py:10`, resize |" in tables
    assert "| a click | 1.00 MiB | 0.3 x | gRPC and asyncio |" in tables
