"""Getting a client for a verb: to the addresses that were named, to a deployment of this home, or to one of its own."""

import asyncio
import os
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from vplab.cli.deployment import LocalDeployment, needed_by
from vplab.cli.home import Deployment, Home, default_home
from vplab.cli.missing_aliases import told_with_versions
from vplab.cli.terminal import messages
from vplab.client import AsyncClient, ClientOptions
from vplab.client.file_locks import FileLock
from vplab.client.options import Area, Priority, resolve_addresses
from vplab.errors import InvalidInput, NotFound, Unavailable, VPLabError

_JOIN_TIMEOUT_S = 90.0
_POLL_S = 0.1


@dataclass(frozen=True)
class Where:
    """Where the services are, as the command line says."""

    home: Home = field(default_factory=default_home)
    address: str | None = None
    """One address for all."""
    addresses: dict[Area, str | None] = field(default_factory=dict)
    metrics_ports: Mapping[Area, int] = field(default_factory=dict)
    """Where services that are started here expose their metrics; those not in it expose none."""

    def named(self) -> dict[Area, str]:
        """Return every address that was given on the command line or in the environment."""
        return resolve_addresses(self.addresses, self.address)


@asynccontextmanager
async def connected(
    where: Where, needs: Sequence[Area], priority: Priority | None = None
) -> AsyncIterator[AsyncClient]:
    """Give a client whose ``needs`` are reachable, starting services if no address was named.

    priority: of its calls, where they are less urgent than their methods.
    Raises InvalidInput when only some of the addresses are known, Unavailable when services cannot be had in time,
    FailedPrecondition when they cannot be started. A NotFound of the caller's leaves with advice on missing aliases.
    """
    async with _reached(where, needs, priority) as client:
        try:
            yield client
        except NotFound as error:
            told = await told_with_versions(client, error)
            if told is error:
                raise
            raise told from error


@asynccontextmanager
async def _reached(where: Where, needs: Sequence[Area], priority: Priority | None) -> AsyncIterator[AsyncClient]:
    named, options = where.named(), client_options(priority)
    if named:
        missing = [area for area in needs if area not in named]
        if missing:
            flags = " and ".join(f"--{area}" for area in missing)
            raise InvalidInput(
                f"an address is needed: {flags}, or VPLAB_{missing[0].upper()}_ADDRESS", field=missing[0]
            )
        async with AsyncClient(**named, options=options) as client:  # type: ignore[arg-type]
            yield client
        return
    where.home.create()
    async with (
        _local_addresses(where, needed_by(needs)) as addresses,
        AsyncClient(**addresses, options=options) as client,  # type: ignore[arg-type]
    ):
        yield client


def client_options(priority: Priority | None = None) -> ClientOptions:
    """Return what the environment says of a client, for calls of a priority."""
    return replace(ClientOptions.from_environment(), priority=priority)


@asynccontextmanager
async def deployed(deployment: LocalDeployment) -> AsyncIterator[float]:
    """Run a deployment while the context lasts and announce it in its home; gives the seconds it took to start.

    The caller holds the home's deployment lock.
    """
    started_s = 0.0
    try:
        started_s = await deployment.start()
        deployment.home.announce(
            Deployment(os.getpid(), uuid.uuid4().hex, dict(deployment.addresses), dict(deployment.sockets))
        )
        yield started_s
    finally:
        deployment.home.withdraw()
        await asyncio.shield(deployment.stop())


@asynccontextmanager
async def _local_addresses(where: Where, areas: Sequence[Area]) -> AsyncIterator[dict[Area, str]]:
    home = where.home
    give_up = time.monotonic() + _JOIN_TIMEOUT_S
    told = False
    with FileLock(home.deployment_lock) as lock:
        while not lock.try_acquire(exclusive=True):
            async with _joined(home, areas) as addresses:
                if addresses is not None:
                    yield addresses
                    return
            if time.monotonic() > give_up:
                raise Unavailable(f"another vplab command uses {home.root} and its services cannot be joined")
            if not told and time.monotonic() > give_up - _JOIN_TIMEOUT_S + 2:
                messages.print(f"waiting for another vplab command that uses {home.root}", style="dim")
                told = True
            await asyncio.sleep(_POLL_S)
        folder = Path(tempfile.mkdtemp(prefix="vplab-"))
        try:
            own = {area: _own_address(folder, area) for area in areas}
            deployment = LocalDeployment(home, own, metrics_ports=where.metrics_ports)
            with messages.status("starting the services"):
                running = deployed(deployment)
                await running.__aenter__()
            try:
                yield dict(deployment.addresses)
            finally:
                home.withdraw()
                await _until_unused(home)
                await running.__aexit__(None, None, None)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def _joined(home: Home, areas: Sequence[Area]) -> AsyncIterator[dict[Area, str] | None]:
    """Give the addresses of the home's running deployment and keep its owner from stopping it meanwhile."""
    found = home.running()
    if found is None or not all(area in found.addresses for area in areas):
        yield None
        return
    with FileLock(home.users_lock) as use:
        # The owner withdraws its announcement before it waits for the users: seen both ways round, it still serves.
        if not use.try_acquire(exclusive=False) or home.running() != found:
            yield None
            return
        async with AsyncClient(**found.nearest) as client:  # type: ignore[arg-type]
            try:
                for area in areas:
                    await client.replica(area).health(timeout_s=5)
            except VPLabError:
                yield None
                return
        yield found.nearest


async def _until_unused(home: Home) -> None:
    with FileLock(home.users_lock) as users:
        if not users.try_acquire(exclusive=True):
            messages.print("waiting for another vplab command that uses these services", style="dim")
            await users.acquire(exclusive=True)


def _own_address(folder: Path, area: Area) -> str:
    if os.name == "posix":
        return f"unix:{folder / area}.sock"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"
