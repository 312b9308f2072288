"""A client that blocks, for verbs that compute for long in the main thread, where Ctrl-C reaches them."""

import asyncio
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from types import FrameType

from vplab.cli.connection import Where, client_options, connected
from vplab.client import Client
from vplab.client.options import Area, Priority


@contextmanager
def waiting_client(where: Where, needs: Sequence[Area], priority: Priority | None = None) -> Iterator[Client]:
    """Give a client as ``connected`` does; the services are started and stopped by a thread that lives as long.

    priority: of its calls, where they are less urgent than their methods.
    Raises what ``connected`` raises.
    """
    ready: Future[dict[Area, str]] = Future()
    loop = asyncio.new_event_loop()
    leave = asyncio.Event()

    async def hold() -> None:
        async with connected(where, needs) as client:
            ready.set_result(dict(client.addresses))
            await leave.wait()

    task = loop.create_task(hold())

    def run() -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(task)
        except BaseException as error:
            if not ready.done():
                ready.set_exception(error)
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    thread = threading.Thread(target=run, name="vplab-services")
    thread.start()
    try:
        with Client(**ready.result(), options=client_options(priority)) as client:  # type: ignore[arg-type]
            yield client
    finally:
        if not loop.is_closed():
            # Before they are ready, starting them must be given up; afterwards they are stopped in order.
            loop.call_soon_threadsafe(leave.set if ready.done() else task.cancel)
        thread.join()


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM stop the main thread as Ctrl-C does, so that it cleans up."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
