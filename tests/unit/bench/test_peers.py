"""The comparison with other servers: its goals, its messages, and that the work behind every server is one."""

import argparse
import asyncio
import importlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import psutil
import pytest

from fakes.vplab_command import wait_for
from vplab.bench.pictures import make_pictures
from vplab.bench.ports import CallFailed

PEERS = Path(__file__).parents[2] / "bench" / "peers"
Load = Callable[[str], ModuleType]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    monkeypatch.syspath_prepend(str(PEERS))
    return importlib.import_module


def row(server: str, rate: float, p99: float = 0.1, *, number: int = 0, slot: int = 1, threads: int = 0) -> Any:
    return {
        "server": server, "work": "click", "concurrency": threads or slot, "round": number, "slot": slot,
        "throughput_per_s": rate, "latency_s": {"p50": p99 / 2, "p99": p99}, "cpu_s_per_item": 0.01, "errors": {},
        "form": "2 threads x 1",
    }  # fmt: skip


def goals(load: Load, rows: list[Any]) -> str:
    return str(load("report").goals_table({"rows": rows, "beside": []}))


def test_a_share_is_taken_within_its_minute(load: Load) -> None:
    """The machine was twice as fast in the second round, for everybody."""
    rows = [row("bare loop", 100), row("vplab", 95), row("bare loop", 200, number=1), row("vplab", 190, number=1)]
    assert "| clicks at saturation: at least 90% of the bare loop's throughput | 95.0% | yes |" in goals(load, rows)


def test_a_share_that_falls_short_does_not_read_as_if_it_were_met(load: Load) -> None:
    assert "| 89.9% | no |" in goals(load, [row("bare loop", 10_000), row("vplab", 8_999)])


def test_a_service_is_held_against_the_best_form_of_the_bare_loop(load: Load) -> None:
    bare = [row("bare loop", rate, slot=slot, threads=rate // 50) for slot in (1, 8) for rate in (50, 100)]
    rows = [*bare, row("vplab", 60), row("vplab", 80, slot=8)]
    assert "| 80.0% | no |" in goals(load, rows)


def test_what_a_click_alone_takes_longer_is_measured_against_the_loop_with_one_thread(load: Load) -> None:
    bare = [row("bare loop", 50, 0.020), row("bare loop", 90, 0.100, threads=2)]
    rows = [*bare, row("vplab", 40, 0.030), row("bare loop", 50, 0.001, slot=2, threads=1)]
    assert "over the bare loop's p50 | 5.0 ms | no |" in goals(load, rows)


def test_being_ahead_means_throughput_and_p99_at_every_concurrency(load: Load) -> None:
    ahead = [row("vplab", 50, 0.1), row("vplab", 60, 0.2, slot=2)]
    peer = [row("litserve", 40, 0.2), row("litserve", 50, 0.1, slot=2)]
    found = goals(load, [*ahead, *peer])
    assert (
        "ahead of litserve in throughput and p99 at every concurrency | ahead in 3 of 4, behind in click x2 p99 | no |"
        in found
    )
    peer[1]["latency_s"]["p99"] = 0.3
    found = goals(load, [*ahead, *peer])
    assert "ahead of litserve in throughput and p99 at every concurrency | everywhere | yes |" in found
    peer[0] |= {"throughput_per_s": 0.0, "latency_s": {"p50": None, "p99": None}}
    assert "| everywhere | yes |" in goals(load, [*ahead, *peer]), "a peer that never answers is behind"
    ahead[0] |= {"throughput_per_s": 0.0, "latency_s": {"p50": None, "p99": None}}
    assert "behind in click x1 throughput, click x1 p99" in goals(load, [ahead[0], row("litserve", 40)])


@pytest.mark.parametrize(
    ("ahead", "rounds", "word"),
    [
        (9, 9, "ahead"),
        (8, 9, "ahead"),
        (7, 9, "level"),
        (5, 9, "level"),
        (1, 9, "behind"),
        (3, 3, "ahead"),
        (2, 3, "level"),
    ],
)
def test_who_is_ahead_is_said_where_the_rounds_tell(load: Load, ahead: int, rounds: int, word: str) -> None:
    rows = [
        row(server, rate, number=number)
        for number in range(rounds)
        for server, rate in (("vplab", 10 + 5 * (number < ahead)), ("litserve", 12))
    ]
    report = load("report")
    assert report.verdict(report.standings(rows, "litserve")["click x1 throughput"]) == word
    assert f"{word} |" in report.standings_table(rows).splitlines()[4]


def test_our_services_without_their_disk_have_a_goal_and_are_no_peer(load: Load) -> None:
    rows = [row("bare loop", 100), row("vplab", 90), row("vplab-without-disk", 96)]
    found = goals(load, [{**one, "work": "embed"} for one in rows])
    assert "embedded images at saturation: at least 95% of the bare loop's throughput | 90.0% | no |" in found
    assert "as the bare loop and the peers keep theirs | 96.0% | yes |" in found
    assert "ahead of" not in found
    assert load("report").standings_table(rows) == ""


def test_equal_servers_are_level(load: Load) -> None:
    rows = [row(server, 10, number=number) for number in range(9) for server in ("vplab", "litserve")]
    assert "level in 2 of 2 | no |" in goals(load, rows)


def test_the_bare_loop_measures_whenever_it_is_asked(load: Load) -> None:
    run = load("run")
    arguments = argparse.Namespace(seconds=0.2, warm_up=0.0, images=1, side=64)
    with run.BareLoop.running("click", (1, 1), arguments) as loop:
        first, second = loop.measure("click"), loop.measure("click")
    assert first["throughput_per_s"] > 0
    assert second["throughput_per_s"] > 0
    assert (first["form"], first["server"], loop.process.returncode) == ("1 threads x 1", "bare loop", 0)


def test_what_was_not_measured_has_no_goal(load: Load) -> None:
    assert goals(load, [row("bare loop", 10)]) == ""


def test_the_work_gives_the_same_masks_in_batches_and_alone_and_from_another_process_folder(
    load: Load, tmp_path: Path
) -> None:
    work = load("work")
    pictures = make_pictures(3, 128, num_points=2)
    first = work.Work(intra_op_threads=1, store=tmp_path)
    digests = first.embed([picture.data for picture in pictures])
    clicks = [work.Click(digest, *picture.points_xy[0]) for digest, picture in zip(digests, pictures, strict=True)]
    together = first.click(clicks)
    other = work.Work(intra_op_threads=1, store=tmp_path)  # as a second worker process, which embedded nothing
    for click, mask in zip(clicks, together, strict=True):
        (alone,) = other.click([click])
        assert alone.iou(mask) > 0.99
        assert work.Mask.from_bytes(alone.to_bytes()).iou(alone) == 1.0
        assert work.Click.from_bytes(click.to_bytes()).digest == click.digest
    with pytest.raises(KeyError):
        work.Work(intra_op_threads=1).click(clicks)


def test_concurrencies_are_measured_together_where_every_server_has_the_same_form(load: Load) -> None:
    form = load("servers").Form
    alone, batched = form(1, 2), form(2, 1, 4)
    best = {"vplab": dict.fromkeys((1, 4, 8), form()), "litserve": {1: alone, 4: batched, 8: alone}}
    assert load("run").alike(best, (1, 4, 8)) == [
        ([1, 8], {"vplab": form(), "litserve": alone}),
        ([4], {"vplab": form(), "litserve": batched}),
    ]


def test_a_peer_is_tried_with_and_without_batches_on_one_worker_and_on_many(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    forms = importlib.reload(load("servers")).PEER_FORMS
    assert [(form.workers, form.intra_op, form.batch) for form in forms] == [
        (2, 1, 1), (2, 1, 4), (1, 2, 1), (1, 2, 4),
    ]  # fmt: skip


def test_each_concurrency_gets_the_form_that_answered_most_calls_there(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = load("run")
    rates = {(1, 1): 50.0, (1, 2): 90.0, (4, 1): 60.0, (4, 2): 70.0}  # by batch and workers, at 8 callers

    class Trial:
        def __init__(self, form: Any) -> None:
            self._form = form

        def measure(self, concurrency: int, seconds: float, warm_up_s: float) -> Any:
            assert concurrency > 1 or self._form.batch == 1, "nobody alone waits for a batch"
            rate = rates[self._form.batch, self._form.workers] if concurrency > 1 else 10.0 / self._form.workers
            return {**row("litserve", rate), "form": str(self._form), "generator": {"busiest_share": 0.1}}

    @contextmanager
    def serving(self: Any, name: str, form: Any, work: str) -> Iterator[Trial]:
        yield Trial(form)

    forms = [run.Form(workers, 3 - workers, batch) for workers in (1, 2) for batch in (1, 4)]
    monkeypatch.setattr(run.SERVERS["litserve"], "forms", forms)
    monkeypatch.setattr(run.Comparison, "_serving", serving)
    comparison = object.__new__(run.Comparison)
    comparison._arguments = argparse.Namespace(concurrency=[1, 8], probe_seconds=1.0, warm_up=0.0)
    comparison._report = {"trials": []}
    found = comparison._best_forms("litserve", "click")
    assert {c: (form.workers, form.batch) for c, form in found.items()} == {1: (1, 1), 8: (2, 1)}
    assert len(comparison._report["trials"]) == 6


def test_the_table_says_form_concurrencies_and_rounds(load: Load) -> None:
    rows = [row("litserve", 40, slot=8), row("vplab", 50, slot=4), row("bare loop", 60, slot=4, threads=2)]
    lines = load("report").servers_table(rows, "click").splitlines()[4:]
    assert [line.split(" | ")[0:3] for line in lines] == [
        ["| bare loop", "2 threads x 1", "2"], ["| vplab", "2 threads x 1", "4"], ["| litserve", "2 threads x 1", "8"],
    ]  # fmt: skip


def test_parts_of_different_runs_say_each_how_it_was_measured(load: Load) -> None:
    def made(commit: str, rounds: int) -> Any:
        settings = {"images": 8, "side": 512, "seconds": 4.0, "rounds": rounds}
        return {"machine": "m", "commit": commit, "settings": settings}

    report = {"made": {"servers": made("a", 3), "beside": made("b", 9), "growth": made("a", 3)}}
    alike = load("report").made_by(report, ("servers", "growth"))
    assert alike.startswith("m, commit a. ")
    assert "medians of 3 rounds" in alike
    servers, beside = load("report").made_by(report, ("servers", "beside")).split("\n\n")
    assert servers.startswith("The servers: m, commit a. ")
    assert "medians of 3 rounds" in servers
    assert beside.startswith("Clicks beside a precompute job: m, commit b. ")
    assert "medians of 9 rounds" in beside


def test_an_even_number_of_rounds_has_no_median_that_was_measured(load: Load) -> None:
    assert load("run").odd("3") == 3
    for text in ("2", "0", "-1"):
        with pytest.raises(argparse.ArgumentTypeError):
            load("run").odd(text)


def test_masks_of_other_sizes_do_not_agree(load: Load) -> None:
    mask = load("work").Mask
    runs = np.array([4], np.uint32)
    assert mask((2, 2), runs, 0.5).iou(mask((1, 4), runs, 0.5)) == 0.0
    assert mask((2, 2), runs, 0.5).iou(mask((2, 2), runs, 0.5)) == 1.0


def test_an_inference_message_is_what_the_protocol_says(load: Load) -> None:
    messages = load("infer_messages")
    request = messages._REQUEST.FromString(messages.infer_request("click", b"\x00\xff"))
    assert request.model_name == "click"
    (tensor,) = request.inputs
    assert (tensor.datatype, list(tensor.shape), list(tensor.contents.bytes_contents)) == (
        "BYTES",
        [1, 1],
        [b"\x00\xff"],
    )
    typed = messages._RESPONSE(outputs=[tensor]).SerializeToString()
    assert messages.infer_answer(typed) == b"\x00\xff"
    raw = messages._RESPONSE(raw_output_contents=[(3).to_bytes(4, "little") + b"abc"]).SerializeToString()
    assert messages.infer_answer(raw) == b"abc"


@asynccontextmanager
async def http_server(answers: list[bytes]) -> AsyncIterator[tuple[int, list[bytes]]]:
    """Answer requests with prepared bytes, then hang up; gives the port and the bodies that came."""
    bodies: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while answers:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                break
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            bodies.append(await reader.readexactly(length))
            writer.write(answers.pop(0))
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], bodies


async def test_http_answers_are_read_whole_and_connections_kept(load: Load) -> None:
    answers = [
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nde\r\n1\r\nf\r\n0\r\n\r\n",
        b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n",
    ]
    async with http_server(answers) as (port, bodies):
        connection = await load("http_calls").HttpCalls(port, "/click", "text/plain").open()
        assert await connection.send(b"one", 5) == b"abc"
        assert await connection.send(b"two", 5) == b"def"
        with pytest.raises(CallFailed, match="HTTP_503"):
            await connection.send(b"three", 5)
        with pytest.raises(CallFailed):
            await connection.send(b"four", 5)  # the server hung up
        await connection.close()
    assert bodies == [b"one", b"two", b"three"]


async def test_a_server_that_never_answers_is_a_missed_deadline(load: Load) -> None:
    never = asyncio.Event()

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await never.wait()
        writer.close()

    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        connection = await load("http_calls").HttpCalls(port, "/", "text/plain").open()
        with pytest.raises(CallFailed, match="DEADLINE_EXCEEDED"):
            await connection.send(b"", 0.2)
        never.set()


def test_servers_that_are_not_measured_stand_still(load: Load) -> None:
    nested = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'while True: pass'])"
    with psutil.Popen([sys.executable, "-c", nested], start_new_session=True) as server:
        try:
            wait_for(lambda: bool(server.children()))
            (polling,) = server.children()
            with load("servers").suspended([server]):
                wait_for(lambda: {server.status(), polling.status()} == {psutil.STATUS_STOPPED})
            wait_for(lambda: psutil.STATUS_STOPPED not in {server.status(), polling.status()})
        finally:
            os.killpg(server.pid, signal.SIGKILL)
