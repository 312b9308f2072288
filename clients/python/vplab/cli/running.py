"""Running a verb: its event loop, its signals, and how its errors end the process."""

import asyncio
import signal
import sys
import traceback
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import typer

from vplab.cli.exit_codes import ExitCode, exit_code_of
from vplab.cli.terminal import describe, messages
from vplab.errors import VPLabError

P = ParamSpec("P")
Result = TypeVar("Result")

debug = False
"""Whether errors come with their traceback; set by ``--debug``."""


def verb(function: Callable[P, ExitCode | None]) -> Callable[P, None]:
    """Turn a function into a verb: its result is the exit code, and its errors are one clear line."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            code = function(*args, **kwargs) or ExitCode.OK
        except VPLabError as error:
            code = exit_code_of(error)
            _report(describe(error))
        except KeyboardInterrupt:
            code = ExitCode.INTERRUPTED
            messages.print("interrupted", style="yellow")
        except BrokenPipeError:
            sys.stderr.close()  # whoever read our output has left; there is nobody to tell
            code = ExitCode.OK
        raise typer.Exit(code)

    return run


def run_async(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a verb's coroutine; SIGTERM stops it as Ctrl-C does, so that it cleans up. Raises KeyboardInterrupt."""

    async def main() -> Result:
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        try:
            loop.add_signal_handler(signal.SIGTERM, task.cancel)
        except NotImplementedError:  # Windows
            return await work
        return await work

    try:
        return asyncio.run(main())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


def _report(text: str) -> None:
    messages.print("error:", style="bold red", end=" ")
    messages.print(text, markup=False)
    if debug:
        traceback.print_exc()
