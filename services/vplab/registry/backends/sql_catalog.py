"""The catalogue in SQLite or PostgreSQL, through SQLAlchemy."""

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    DisconnectionError,
    IntegrityError,
    InterfaceError,
    OperationalError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout

from vplab.errors import InvalidInput
from vplab.registry.backends.sql_aliases import SqlAliases
from vplab.registry.backends.sql_artifacts import SqlArtifacts
from vplab.registry.backends.sql_blobs import SqlBlobs
from vplab.registry.backends.sql_leases import SqlLeases, SqlRequests
from vplab.registry.backends.sql_versions import SqlVersions
from vplab.registry.errors import StorageFull, StoreUnavailable
from vplab.registry.ports import (
    AliasTable,
    ArtifactTable,
    BlobTable,
    LeaseTable,
    RequestTable,
    Transaction,
    VersionTable,
)

T = TypeVar("T")

ATTEMPTS: Final = 10
GIVE_UP_S: Final = 20.0
"""How long colliding transactions are repeated; each attempt that waits for a lock may take most of it."""
BUSY_TIMEOUT_MS: Final = 15_000
"""How long SQLite waits for another process's write; a write takes milliseconds, a slow disk's fsync some hundred."""
POSTGRES_OPTIONS: Final = "-c lock_timeout=15s -c statement_timeout=60s -c idle_in_transaction_session_timeout=120s"
COLLISIONS: Final = {"40001", "40P01", "55P03"}
"""PostgreSQL: serialization failure, deadlock, lock not available."""
FULL: Final = {"53100", "53200"}
"""PostgreSQL: disk full, out of memory."""


class SqlTransaction:
    """Implements ``Transaction`` on one connection."""

    def __init__(self, connection: Connection) -> None:
        self.artifacts: ArtifactTable = SqlArtifacts(connection)
        self.versions: VersionTable = SqlVersions(connection)
        self.aliases: AliasTable = SqlAliases(connection)
        self.blobs: BlobTable = SqlBlobs(connection)
        self.leases: LeaseTable = SqlLeases(connection)
        self.requests: RequestTable = SqlRequests(connection)


class SqlCatalog:
    """Implements ``Catalog``."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._writer = engine.execution_options(vplab_writes=True)

    def read(self, work: Callable[[Transaction], T]) -> T:
        return self._attempt(self._engine, work)

    def write(self, work: Callable[[Transaction], T]) -> T:
        return self._attempt(self._writer, work)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def _attempt(self, engine: Engine, work: Callable[[Transaction], T]) -> T:
        give_up = time.monotonic() + GIVE_UP_S
        for attempt in range(ATTEMPTS):
            try:
                with engine.begin() as connection:
                    return work(SqlTransaction(connection))
            except (DBAPIError, DisconnectionError, PoolTimeout) as error:
                is_last = attempt + 1 == ATTEMPTS or time.monotonic() > give_up
                if is_last or not _may_succeed_again(error):
                    raise translated(error) from error
            time.sleep(random.uniform(0.0, min(0.01 * 2**attempt, 1.0)))
        raise AssertionError("unreachable")


def open_engine(database_url: str, *, connections: int = 16) -> Engine:
    """Open a database: ``sqlite:///path`` or ``postgresql://user@host/name``. Raises InvalidInput for another kind."""
    try:
        url = make_url(database_url)
    except (ArgumentError, ValueError) as error:
        raise InvalidInput("is not a database URL", field="database_url") from error
    if url.get_backend_name() == "sqlite":
        return _open_sqlite(url, connections)
    if url.get_backend_name() == "postgresql":
        return _open_postgres(url, connections)
    raise InvalidInput(f"{url.get_backend_name()} is not supported; use sqlite or postgresql", field="database_url")


def _open_sqlite(url: URL, connections: int) -> Engine:
    if not url.database or url.database == ":memory:":
        raise InvalidInput("names no file", field="database_url")
    Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    # Transactions are begun below, as BEGIN IMMEDIATE for writers: a transaction that first reads and then writes would
    # else fail at once when another one wrote in between, whatever the busy timeout.
    engine = create_engine(
        url,
        pool_size=connections,
        connect_args={"check_same_thread": False, "isolation_level": None, "timeout": BUSY_TIMEOUT_MS / 1000},
    )

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _: Any) -> None:
        # FULL: in WAL mode NORMAL may lose the last commits with the power, and with them a version already announced.
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("vplab_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _open_postgres(url: URL, connections: int) -> Engine:
    return create_engine(
        url.set(drivername="postgresql+psycopg"),
        pool_size=connections,
        max_overflow=0,
        pool_timeout=30,
        pool_pre_ping=True,
        # Every statement sees what was committed before it: the code takes locks first and looks afterwards.
        isolation_level="READ COMMITTED",
        connect_args={"connect_timeout": 5, "options": POSTGRES_OPTIONS},
    )


def _sqlstate(error: BaseException) -> str:
    return getattr(getattr(error, "orig", None), "sqlstate", None) or ""


def _may_succeed_again(error: Exception) -> bool:
    """A collision with another transaction, or a connection that broke before the commit."""
    if isinstance(error, IntegrityError) or _sqlstate(error) in COLLISIONS:
        return True
    return isinstance(error, OperationalError) and "database is locked" in str(error.orig)


def translated(error: Exception) -> Exception:
    """Return what a database's failure means to a caller; itself if it is a fault of ours."""
    text = str(getattr(error, "orig", error)).lower()
    if _sqlstate(error) in FULL or "database or disk is full" in text:
        return StorageFull("the database's disk takes no more")
    if isinstance(error, (OperationalError, InterfaceError, DisconnectionError, PoolTimeout)):
        return StoreUnavailable("database", "does not answer")
    return error
