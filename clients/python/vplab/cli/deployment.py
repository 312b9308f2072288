"""Several services on one machine, started together, watched, restarted when one dies, and stopped together."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vplab.cli.home import Home
from vplab.cli.processes import ServiceProcess
from vplab.client import AsyncClient
from vplab.client.options import Area
from vplab.errors import FailedPrecondition, Unavailable, VPLabError

START_TIMEOUT_S = 60.0
_POLL_S = 0.03
_MAX_DEATHS = 5
_DEATH_WINDOW_S = 60.0
_BACKOFF_S = (0.5, 8.0)
_WRONG_SETTING = 2  # exit code of a service whose settings are wrong: starting it again cannot help

# Which other services each one calls.
_NEEDS: dict[Area, tuple[Area, ...]] = {
    "registry": (),
    "embedding": ("registry",),
    "segmentation": ("registry", "embedding"),
    "training": ("registry", "embedding"),
}


@dataclass
class LocalDeployment:
    """The services of one home.

    Policy when a service dies: it is started again after a pause that doubles; after five deaths within a minute, or at
    once when its settings are wrong, everything is stopped and the end of its log is shown.
    """

    home: Home
    addresses: Mapping[Area, str]
    """Where each service of this deployment listens."""
    sockets: Mapping[Area, str] = field(default_factory=dict)
    """``unix:/path`` where services listen besides; they then call each other there."""
    others: Mapping[Area, str] = field(default_factory=dict)
    """Addresses of services that run elsewhere."""
    metrics_ports: Mapping[Area, int] = field(default_factory=dict)
    metrics_host: str | None = None
    logs_to_terminal: bool = False
    on_restart: Callable[[str], None] = lambda message: None
    _processes: dict[Area, ServiceProcess] = field(default_factory=dict)
    _watchers: list["asyncio.Task[None]"] = field(default_factory=list)
    _is_stopping: bool = False

    async def start(self, timeout_s: float = START_TIMEOUT_S) -> float:
        """Start every service and wait until all are healthy; return how many seconds that took.

        Raises FailedPrecondition with the end of the log when one cannot start, Unavailable when it takes too long.
        """
        self.home.create()
        began = time.monotonic()
        for area, address in self.addresses.items():
            self._processes[area] = self._process(area, address)
            await self._processes[area].start()
        async with AsyncClient(**self.addresses) as client:  # type: ignore[arg-type]
            waits = [asyncio.create_task(self._until_serving(client, area, timeout_s)) for area in self.addresses]
            try:
                await asyncio.gather(*waits)
            finally:
                for wait in waits:
                    wait.cancel()
        self._watchers = [asyncio.create_task(self._keep_alive(area)) for area in self.addresses]
        return time.monotonic() - began

    async def watch(self) -> None:
        """Restart services that die; return only by raising FailedPrecondition when one cannot be kept alive."""
        done, _ = await asyncio.wait(self._watchers, return_when=asyncio.FIRST_COMPLETED)
        for watcher in done:
            watcher.result()

    async def stop(self) -> None:
        """Drain and stop everything: those that call others first."""
        self._is_stopping = True
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        for area in ("training", "segmentation", "embedding", "registry"):
            process = self._processes.get(area)
            if process is not None:
                await process.stop()

    def pids(self) -> dict[Area, int]:
        """Return the process of each service."""
        return {area: process.pid for area, process in self._processes.items() if process.pid is not None}

    def _process(self, area: Area, address: str) -> ServiceProcess:
        known = {**self.others, **self.addresses, **self.sockets}
        environment = {f"VPLAB_{need.upper()}_ADDRESS": known[need] for need in _NEEDS[area] if need in known}
        environment |= self.home.data_variables()
        environment[f"VPLAB_{area.upper()}_LISTEN"] = address
        if area in self.sockets:
            environment[f"VPLAB_{area.upper()}_UNIX_SOCKET"] = self.sockets[area].removeprefix("unix:")
        if area in self.metrics_ports:
            environment[f"VPLAB_{area.upper()}_METRICS_PORT"] = str(self.metrics_ports[area])
        if self.metrics_host is not None:
            environment["VPLAB_METRICS_HOST"] = self.metrics_host
        log = None if self.logs_to_terminal else self.home.logs / f"{area}.log"
        return ServiceProcess(area, address, environment, log)

    async def _until_serving(self, client: AsyncClient, area: Area, timeout_s: float) -> None:
        replica, process = client.replica(area), self._processes[area]
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    if process.exit_code is not None:
                        raise _failed(process)
                    if await _accepts(self.addresses[area]):
                        with contextlib.suppress(VPLabError):
                            if (await replica.health(timeout_s=2)).get("") == "serving":
                                return
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            tail = process.log_tail()
            message = f"the {area} service was not ready within {timeout_s:g} s" + (f"\n{tail}" if tail else "")
            raise Unavailable(message, metadata={"service": area}) from None

    async def _keep_alive(self, area: Area) -> None:
        process, deaths, pause_s = self._processes[area], list[float](), _BACKOFF_S[0]
        while True:
            code = await process.wait()
            now = time.monotonic()
            deaths = [death for death in deaths if now - death < _DEATH_WINDOW_S] + [now]
            if code == _WRONG_SETTING or len(deaths) >= _MAX_DEATHS:
                raise _failed(process)
            pause_s = min(pause_s * 2, _BACKOFF_S[1]) if len(deaths) > 1 else _BACKOFF_S[0]
            self.on_restart(f"the {area} service ended with code {code}; starting it again in {pause_s:g} s")
            await asyncio.sleep(pause_s)
            await process.start()


async def _accepts(address: str) -> bool:
    """Say whether anybody listens: a first gRPC attempt that fails would delay the next by its backoff."""
    try:
        if address.startswith("unix:"):
            _, writer = await asyncio.open_unix_connection(Path(address.removeprefix("unix:")))
        else:
            host, _, port = address.rpartition(":")
            host = host.strip("[]")
            _, writer = await asyncio.open_connection("127.0.0.1" if host == "0.0.0.0" else host, int(port))
    except OSError:
        return False
    writer.close()
    return True


def _failed(process: ServiceProcess) -> FailedPrecondition:
    tail = process.log_tail()
    where = f"; the end of {process.log}:\n{tail}" if tail else ""
    return FailedPrecondition(f"the {process.area} service ended with code {process.exit_code}{where}")


def needed_by(areas: Sequence[Area]) -> tuple[Area, ...]:
    """Return the services that must run for these to work, in the order to start them."""
    wanted = set(areas)
    for area in areas:
        wanted.update(_NEEDS[area])
    return tuple(area for area in _NEEDS if area in wanted)
