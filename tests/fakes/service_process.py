"""A service as a real process on a socket in a folder, to be killed at bad moments."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vplab.client import AsyncClient
from vplab.client.options import Area
from vplab.errors import VPLabError


def socket_address(folder: Path, area: Area) -> str:
    """Return where a service's process in a folder listens."""
    return f"unix:{folder}/{area[0]}.sock"  # one letter: a socket's path has room for about a hundred


@contextmanager
def service_process(area: Area, folder: Path, variables: dict[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
    """Run ``python -m vplab.AREA`` with settings by their names behind ``VPLAB_AREA_``; it is dead at the end."""
    settings = {"LISTEN": socket_address(folder, area), **variables}
    environment = os.environ | {f"VPLAB_{area.upper()}_{name}": value for name, value in settings.items()}
    Path(socket_address(folder, area).removeprefix("unix:")).unlink(missing_ok=True)
    with (folder / f"{area}.log").open("ab") as log:
        process = subprocess.Popen([sys.executable, "-m", f"vplab.{area}"], env=environment, stdout=log, stderr=log)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(10)


async def answering(client: AsyncClient, area: Area, process: "subprocess.Popen[bytes]") -> None:
    """Wait until a process serves."""
    for _ in range(6000):
        assert process.poll() is None, "the service ended by itself"
        try:
            if (await client.replica(area).health(timeout_s=1))[""] == "serving":
                return
        except VPLabError:
            await asyncio.sleep(0.05)
    raise AssertionError("the service does not answer")
