import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import text

from vplab.runtime.database import open_engine

OPEN_MANY = """
import sys
from vplab.runtime.database import open_engine
sys.stdin.readline()
for path in sys.argv[1:]:
    open_engine(f"sqlite:///{path}").connect().close()
"""


def test_processes_that_open_new_databases_together_all_get_in(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{index}.db") for index in range(40)]
    command = [sys.executable, "-c", OPEN_MANY, *paths]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        errors = list(pool.map(lambda process: process.communicate(b"go\n", timeout=120)[1], processes))
    assert [process.returncode for process in processes] == [0, 0, 0], errors
    for path in paths:
        assert sqlite3.connect(path).execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_switch_to_wal_waits_for_another_writer(tmp_path: Path) -> None:
    path = tmp_path / "held.db"
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("CREATE TABLE rows (value)")
    holder.execute("BEGIN EXCLUSIVE")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: open_engine(f"sqlite:///{path}").connect())
        with pytest.raises(TimeoutError):
            waiting.result(timeout=0.3)
        holder.execute("ROLLBACK")
        holder.close()
        with waiting.result(timeout=30) as connection:
            assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
            assert connection.execute(text("PRAGMA synchronous")).scalar() == 2  # FULL
