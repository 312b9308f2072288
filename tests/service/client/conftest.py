"""A real registry for the client to talk to."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fakes.registry_process import RegistryProcess, registry_config
from vplab.client import AsyncClient, ClientOptions
from vplab.runtime.server import RunningServer


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[RunningServer]:
    async with RegistryProcess(registry_config(tmp_path / "registry")).running() as server:
        yield server


@pytest.fixture
async def client(registry: RunningServer) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(registry=registry.address, options=ClientOptions()) as client:
        yield client
