"""The schema of the job queue's database."""

from pathlib import Path
from typing import Final

from vplab.runtime.migrations import Migrations
from vplab.training.backends.sql_schema import HEAD_REVISION, VERSION_TABLE

SCRIPTS: Final = Path(__file__).parent.parent / "migrations"
LOCK_KEY: Final = 0x7670_6C61_6274  # "vplabt" as a number: another one than the registry's

_MIGRATIONS: Final = Migrations(SCRIPTS, HEAD_REVISION, LOCK_KEY, VERSION_TABLE)
migrate = _MIGRATIONS.migrate
current_revision = _MIGRATIONS.current_revision
