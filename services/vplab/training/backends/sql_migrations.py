"""Bring the job queue's database to the newest schema, once, however many replicas start at the same time."""

from pathlib import Path
from typing import Final

from sqlalchemy import Connection, Engine, text

from vplab.errors import FailedPrecondition
from vplab.training.backends.sql_schema import HEAD_REVISION, VERSION_TABLE

SCRIPTS: Final = Path(__file__).parent.parent / "migrations"
LOCK_KEY: Final = 0x7670_6C61_6274  # "vplabt" as a number: another one than the registry's


def migrate(engine: Engine) -> None:
    """Upgrade the schema where it is older than the code.

    Raises FailedPrecondition if it is newer, and SQLAlchemy's errors for a database that cannot be used.
    """
    if current_revision(engine) == HEAD_REVISION:
        return
    with engine.execution_options(vplab_writes=True).begin() as connection:
        # SQLite: the write transaction is the lock. PostgreSQL: an advisory lock that ends with the transaction, so
        # that it also works behind a connection pooler. In both the whole upgrade happens or none of it.
        if connection.dialect.name == "postgresql":
            connection.execute(text("SET LOCAL lock_timeout = '120s'"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK_KEY})
        _upgrade(connection)


def current_revision(engine: Engine) -> str | None:
    """Return the revision the database is at; None for an empty one."""
    with engine.connect() as connection:
        if not engine.dialect.has_table(connection, VERSION_TABLE):
            return None
        return connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()


def _upgrade(connection: Connection) -> None:
    # Loaded here because most starts find the schema current, and alembic costs a third of a second.
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, ScriptDirectory.from_config(config).get_current_head() or "head")
    except CommandError as error:
        raise FailedPrecondition(
            f"the database's schema is not one this version of VP Lab knows ({error}); was it written by a newer one?"
        ) from error
