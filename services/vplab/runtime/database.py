"""How every service opens its database, SQLite or PostgreSQL, through SQLAlchemy.

An engine made here gives transactions that see what was committed before them and that survive a power failure. One
that writes is begun with ``engine.execution_options(vplab_writes=True)``.
"""

import random
import sqlite3
import time
from pathlib import Path
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError

from vplab.errors import InvalidInput

BUSY_TIMEOUT_MS: Final = 15_000
"""How long SQLite waits for another process's write; a write takes milliseconds, a slow disk's fsync some hundred."""
POSTGRES_OPTIONS: Final = "-c lock_timeout=15s -c statement_timeout=60s -c idle_in_transaction_session_timeout=120s"


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
        _enter_wal(connection)
        # FULL: in WAL mode NORMAL may lose the last commits with the power, and with them a version already announced.
        for pragma in ("synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("vplab_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _enter_wal(connection: sqlite3.Connection) -> None:
    """Switch a database to write-ahead logging; of an existing one that is a look at its header.

    The switch takes an exclusive lock without asking the busy handler, since two connections that both wait with a
    shared lock would wait for ever. Processes that open a new database together thus collide at once, and ask again.
    """
    give_up_s = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL").close()
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > give_up_s:
                raise
        time.sleep(random.uniform(0.001, 0.02))


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
