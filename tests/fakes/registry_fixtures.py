"""Fixtures for tests of the registry, imported by a folder's conftest. Servers start when first asked for."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.postgres_server import PostgresServer, running_postgres
from fakes.registry_stores import FakeClock, Stores, Templates, opened_registry
from fakes.s3_server import S3Server, running_s3
from vplab.registry.core.registry import Registry


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    with running_s3() as server:
        yield server


@pytest.fixture(scope="session")
def registry_templates(tmp_path_factory: pytest.TempPathFactory) -> Templates:
    return Templates(tmp_path_factory.mktemp("registry-templates"))


@pytest.fixture
def sqlite_stores(registry_templates: Templates, tmp_path: Path) -> Stores:
    return registry_templates.sqlite(tmp_path)


@pytest.fixture(params=["sqlite+folder", "postgresql+s3"])
def stores(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stores:
    """Stores of both kinds a registry is run with."""
    templates: Templates = request.getfixturevalue("registry_templates")
    if request.param == "sqlite+folder":
        return templates.sqlite(tmp_path)
    s3: S3Server = request.getfixturevalue("s3_server")
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return templates.postgres(tmp_path, request.getfixturevalue("postgres_server"), s3)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_stores(request: pytest.FixtureRequest, tmp_path: Path) -> Stores:
    """Both databases over a folder, for tests that do not ask where blobs are."""
    templates: Templates = request.getfixturevalue("registry_templates")
    if request.param == "sqlite":
        return templates.sqlite(tmp_path)
    return templates.postgres(tmp_path, request.getfixturevalue("postgres_server"))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def registry(stores: Stores, clock: FakeClock) -> Iterator[Registry]:
    """The registry's use cases on both kinds of stores."""
    with opened_registry(stores, clock) as opened:
        yield opened
