"""A real PostgreSQL for tests: the installed binaries, a fresh cluster in a temporary folder, a free port."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

SUPERUSER = "vplab"


def binaries() -> Path | None:
    """Return the folder with initdb and postgres: that of ``pg_config``, else the newest of Debian's."""
    found = [Path("/usr/lib/postgresql")]
    if (config := shutil.which("pg_config")) is not None:
        bindir = subprocess.run([config, "--bindir"], capture_output=True, text=True, check=True).stdout.strip()
        found = [Path(bindir), *found]
    candidates = [folder for root in found for folder in (root, *sorted(root.glob("*/bin"), reverse=True))]
    return next((folder for folder in candidates if (folder / "initdb").exists()), None)


class PostgresServer:
    """A running server."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._made = 0

    def url(self, database: str) -> str:
        return f"postgresql://{SUPERUSER}@127.0.0.1:{self.port}/{database}"

    def create_database(self) -> str:
        """Create a database and return its name."""
        self._made += 1
        name = f"vplab_{self._made}"
        self.execute(f"CREATE DATABASE {name}")
        return name

    def execute(self, statement: str) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement.encode())


@contextmanager
def running_postgres() -> Iterator[PostgresServer]:
    """Start a server for as long as the context lasts; skip the test, or fail it with CI=true, without binaries."""
    folder = binaries()
    if folder is None:
        reason = "no PostgreSQL server binaries (Debian: apt install postgresql)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="vplab-pg-", ignore_cleanup_errors=True) as data:
        # The server refuses to run as root.
        account = _unprivileged() if os.geteuid() == 0 else None
        if account is not None:
            os.chown(data, account.pw_uid, account.pw_gid)
        who = {} if account is None else {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        initdb = [folder / "initdb", "-D", data, "-U", SUPERUSER, "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "-N"]
        subprocess.run(initdb, check=True, capture_output=True, cwd="/", **who)
        port = _free_port()
        options = [f"port={port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={data}", "fsync=off"]
        options += ["full_page_writes=off", "max_connections=300", "shared_buffers=32MB", "log_min_messages=fatal"]
        flags = [part for option in options for part in ("-c", option)]
        log = Path(data, "log")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [folder / "postgres", "-D", data, *flags], stdout=output, stderr=output, cwd="/", **who
            )
        try:
            server = PostgresServer(port)
            _wait_until_it_answers(server, process, log)
            yield server
        finally:
            process.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown
            process.wait(30)


def _unprivileged() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_it_answers(server: PostgresServer, process: "subprocess.Popen[bytes]", log: Path) -> None:
    give_up = time.monotonic() + 60
    while True:
        try:
            server.execute("SELECT 1")
            return
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > give_up:
                raise RuntimeError(f"PostgreSQL did not start:\n{log.read_text()}") from None
            time.sleep(0.05)
