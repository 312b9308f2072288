"""Bring a service's database to the newest schema, once, however many replicas start at the same time."""

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, Engine, text

from vplab.errors import FailedPrecondition


@dataclass(frozen=True)
class Migrations:
    """The alembic scripts of one service."""

    scripts: Path
    """Folder of ``env.py`` and ``versions``."""
    head_revision: str
    """The newest revision."""
    lock_key: int
    """Of PostgreSQL's advisory lock; another one for each service, since they may share a database."""
    version_table: str = "alembic_version"

    def migrate(self, engine: Engine) -> None:
        """Upgrade the schema where it is older than the code.

        Raises FailedPrecondition if it is newer, and SQLAlchemy's errors for a database that cannot be used.
        """
        if self.current_revision(engine) == self.head_revision:
            return
        with engine.execution_options(vplab_writes=True).begin() as connection:
            # SQLite: the write transaction is the lock. PostgreSQL: an advisory lock that ends with the transaction,
            # so that it also works behind a connection pooler. In both the whole upgrade happens or none of it.
            if connection.dialect.name == "postgresql":
                connection.execute(text("SET LOCAL lock_timeout = '120s'"))
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": self.lock_key})
            self._upgrade(connection)

    def current_revision(self, engine: Engine) -> str | None:
        """Return the revision the database is at; None for an empty one."""
        with engine.connect() as connection:
            if not engine.dialect.has_table(connection, self.version_table):
                return None
            return connection.execute(text(f"SELECT version_num FROM {self.version_table}")).scalar()

    def _upgrade(self, connection: Connection) -> None:
        # Loaded here because most starts find the schema current, and alembic costs a third of a second.
        from alembic import command
        from alembic.config import Config
        from alembic.script import ScriptDirectory
        from alembic.util import CommandError

        config = Config()
        config.set_main_option("script_location", str(self.scripts).replace("%", "%%"))
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, ScriptDirectory.from_config(config).get_current_head() or "head")
        except CommandError as error:
            raise FailedPrecondition(
                f"the database's schema is not one this version of VP Lab knows ({error}); "
                "was it written by a newer one?"
            ) from error
