"""A client that blocks while its services live in another thread."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from vplab.cli.connection import Where
from vplab.cli.home import Home
from vplab.cli.waiting_client import interruptible, waiting_client
from vplab.errors import FailedPrecondition, InvalidInput


def where(tmp_path: Path, **addresses: str) -> Where:
    return Where(Home(tmp_path / "home"), addresses=dict(addresses))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def no_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("VPLAB_")]:
        monkeypatch.delenv(name)


def num_threads() -> int:
    return sum(thread.name == "vplab-services" for thread in threading.enumerate())


def test_named_addresses_are_used_and_the_thread_ends_with_the_block(tmp_path: Path) -> None:
    named = where(tmp_path, segmentation="127.0.0.1:9", registry="127.0.0.1:9")
    with waiting_client(named, ("segmentation", "registry")) as client:
        assert num_threads() == 1
    assert num_threads() == 0
    with pytest.raises(FailedPrecondition, match="the client is closed"):
        client.registry.get_version("artifacts/a/versions/1")


def test_what_stands_in_the_way_of_services_is_raised_here(tmp_path: Path) -> None:
    half_named = where(tmp_path, segmentation="127.0.0.1:9")
    with pytest.raises(InvalidInput, match="--registry"), waiting_client(half_named, ("segmentation", "registry")):
        pass
    assert num_threads() == 0


def test_an_error_of_the_block_ends_the_thread(tmp_path: Path) -> None:
    named = where(tmp_path, segmentation="127.0.0.1:9")
    with pytest.raises(KeyError), waiting_client(named, ("segmentation",)):
        raise KeyError("something")
    assert num_threads() == 0


def test_a_termination_stops_the_main_thread_as_ctrl_c_does() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def work() -> None:
        with interruptible():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert signal.getsignal(signal.SIGTERM) == before
