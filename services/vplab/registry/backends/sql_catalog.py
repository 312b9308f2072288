"""The catalogue in SQLite or PostgreSQL, through SQLAlchemy."""

import random
import time
from collections.abc import Callable
from typing import Final, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, DisconnectionError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

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
