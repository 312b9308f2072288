"""Generator processes as they are: started, measured, stopped, and seen to die."""

import multiprocessing
import os
import signal
import threading

import psutil
import pytest

from fakes.bench_targets import AnsweringTarget
from vplab.bench.generators import Generators, _main
from vplab.bench.load import Step
from vplab.bench.requests import UNIQUE, Requests
from vplab.bench.samples import OK
from vplab.cli.waiting_client import interruptible
from vplab.errors import Internal, Unavailable

REQUESTS = Requests([b"a" + UNIQUE])


def test_callers_are_shared_among_processes() -> None:
    with Generators(AnsweringTarget(wait_s=0.01), REQUESTS, num_processes=2) as generators:
        parts, is_whole = generators.run(Step(num_callers=3, duration_s=0.5, warm_up_s=0.1))
        again, _ = generators.run(Step(num_callers=2, duration_s=0.2, warm_up_s=0))
    assert is_whole
    assert [set(part.codes) for part in (*parts, *again)] == [{OK}] * 4
    assert all(part.cpu_s > 0 for part in parts)
    bodies = [answer for part in (*parts, *again) for answer in part.answers]
    assert len(set(bodies)) == len(bodies), "no two calls are equal, in whatever process or step"


def test_an_open_loop_shares_its_rate() -> None:
    with Generators(AnsweringTarget(), REQUESTS, num_processes=2) as generators:
        parts, _ = generators.run(Step(num_callers=0, duration_s=1.0, warm_up_s=0, rate_per_s=200))
    assert all(50 < len(part.codes) < 150 for part in parts)


def test_an_interrupt_ends_a_step_and_keeps_what_was_measured() -> None:
    with Generators(AnsweringTarget(wait_s=0.01), REQUESTS) as generators:
        threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
        (part,), is_whole = generators.run(Step(num_callers=1, duration_s=60, warm_up_s=0))
        assert not is_whole
        assert part.codes
        assert part.window_s < 30
        (later,), is_whole = generators.run(Step(num_callers=1, duration_s=0.2, warm_up_s=0))
        assert is_whole
        assert later.codes


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_generators_start_is_heard_when_they_have_what_they_read(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    start = Generators._start

    def start_and_signal(self: Generators, rank: int) -> None:
        os.kill(os.getpid(), number)
        start(self, rank)
        psutil.Process(self._processes[-1].pid).send_signal(number)  # as a group that is told to end

    monkeypatch.setattr(Generators, "_start", start_and_signal)
    with interruptible(), pytest.raises(KeyboardInterrupt), Generators(AnsweringTarget(), REQUESTS, 2):
        pytest.fail("the signal was lost")
    assert multiprocessing.active_children() == []
    assert "Traceback" not in capfd.readouterr().err


def test_a_step_can_go_on_beside_other_work() -> None:
    with Generators(AnsweringTarget(), REQUESTS) as generators:
        generators.begin(Step(num_callers=1, duration_s=60, warm_up_s=0))
        (part,), had_ended = generators.stop()
        assert not had_ended
        assert part.window_s < 30


def test_a_generator_that_cannot_connect_says_why() -> None:
    with pytest.raises(Internal, match="no way"), Generators(AnsweringTarget(breaks=True), REQUESTS):
        pass


def test_a_generator_whose_parent_has_left_ends_silently(capfd: pytest.CaptureFixture[str]) -> None:
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    ours.close()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        _main(theirs, AnsweringTarget(breaks=True), REQUESTS, 0, 1)
    finally:
        for number, action in before.items():
            signal.signal(number, action)
    assert capfd.readouterr().err == ""


def test_a_generator_that_dies_is_noticed() -> None:
    with pytest.raises(Unavailable, match="ended"), Generators(AnsweringTarget(dies=True), REQUESTS):
        pass
