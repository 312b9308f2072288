"""Runs a service as a process: settings, logs, the loop, and an exit code an operator can rely on.

0 after an orderly stop, 1 if the service failed, 2 if a setting is wrong.
"""

import asyncio
import logging
import os
import sys
from collections.abc import Awaitable, Callable
from typing import NoReturn

import structlog

from vplab.runtime.device_queue import open_queues
from vplab.runtime.logs import configure_logging
from vplab.runtime.server import StartError
from vplab.runtime.settings import Settings, SettingsError, load_settings, unknown_variables

_log = structlog.get_logger(__name__)


def run_service(
    service: str,
    config_type: type[Settings],
    start: Callable[[Settings], Awaitable[None]],
    *,
    switch_interval_s: float | None = None,
) -> NoReturn:
    """Read the settings, run ``start`` until it returns, and exit. The last call of a ``__main__``.

    switch_interval_s: how long a thread may hold the interpreter while another waits for it; None is Python's own 5 ms.
    """
    if switch_interval_s is not None:
        sys.setswitchinterval(switch_interval_s)
    try:
        config = load_settings(config_type)
    except SettingsError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    configure_logging(service=service, level=config.log_level, format=config.log_format)
    for sentence in unknown_variables(config_type):
        _log.warning(sentence)
    code = _run(start, config)
    if any(queue.is_alive for queue in open_queues()):
        # A computation that does not end cannot be interrupted; leaving Python in the usual way would wait for it, or
        # take the library it is in away from under it.
        _log.warning("left while a computation was still running")
        logging.shutdown()
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes uvloop's loop, on which a call costs less, and None for asyncio's own where there is none."""
    if sys.platform == "win32":
        return None
    import uvloop

    return uvloop.new_event_loop


def _run(start: Callable[[Settings], Awaitable[None]], config: Settings) -> int:
    async def main() -> None:
        await start(config)

    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(main())
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    except StartError as error:
        _log.error(str(error))
        return 1
    except Exception:
        _log.exception("the service failed")
        return 1
    return 0
