"""The four real services as processes on unix sockets below a folder of the test."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from vplab.cli.deployment import LocalDeployment
from vplab.cli.home import Home
from vplab.client import AsyncClient
from vplab.client.options import AREAS


@asynccontextmanager
async def local_processes(folder: Path) -> AsyncIterator[LocalDeployment]:
    """Start registry, embedding, segmentation and training with the data in ``folder`` and stop them at the end."""
    addresses = {area: f"unix:{folder}/{area}.sock" for area in AREAS}
    deployment = LocalDeployment(Home(folder / "home"), addresses)
    try:
        await deployment.start()
        yield deployment
    finally:
        await deployment.stop()


async def health_of(deployment: LocalDeployment) -> dict[str, str]:
    """Return what each service's health says of the whole server."""
    async with AsyncClient(**deployment.addresses) as client:
        return {area: (await client.replica(area).health(timeout_s=10))[""] for area in deployment.addresses}
