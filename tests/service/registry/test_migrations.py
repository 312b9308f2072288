from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from fakes.postgres_server import PostgresServer
from vplab.errors import FailedPrecondition, InvalidInput, Unavailable
from vplab.registry.backends.sql_catalog import SqlCatalog
from vplab.registry.backends.sql_migrations import SCRIPTS, current_revision, migrate
from vplab.registry.backends.sql_schema import HEAD_REVISION, metadata
from vplab.runtime.database import open_engine


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'empty.db'}"
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return server.url(server.create_database())


def test_head_in_the_code_is_the_newest_migration() -> None:
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    assert ScriptDirectory.from_config(config).get_current_head() == HEAD_REVISION


def test_migrations_lead_to_the_tables_of_the_code(empty_url: str) -> None:
    engine = open_engine(empty_url)
    assert current_revision(engine) is None
    migrate(engine)
    migrate(engine)
    assert current_revision(engine) == HEAD_REVISION
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_replicas_that_start_together_migrate_once(empty_url: str) -> None:
    engines = [open_engine(empty_url) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(migrate, engines))
    with engines[0].connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM alembic_version")).scalar() == 1
        assert connection.execute(text("SELECT count(*) FROM counters")).scalar() == 2
    for engine in engines:
        engine.dispose()


def test_database_of_a_newer_release_is_refused(empty_url: str) -> None:
    engine = open_engine(empty_url)
    migrate(engine)
    with engine.execution_options(vplab_writes=True).begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(FailedPrecondition, match="newer"):
        migrate(engine)
    assert current_revision(engine) == "9999"
    engine.dispose()


def test_database_that_is_away_is_unavailable(tmp_path: Path) -> None:
    away = SqlCatalog(open_engine("postgresql://nobody@127.0.0.1:1/none"))
    with pytest.raises(Unavailable) as refusal:
        away.read(lambda tx: tx.aliases.latest_revision())
    assert refusal.value.metadata == {"service": "database"}
    with pytest.raises(Unavailable):
        migrate(open_engine("postgresql://nobody@127.0.0.1:1/none"))


@pytest.mark.parametrize("url", ["", "mysql://host/db", "sqlite://", "sqlite:///:memory:", "postgresql://host:port/x"])
def test_unsupported_database_is_named(url: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        open_engine(url)
    assert refusal.value.violations[0].field == "database_url"
