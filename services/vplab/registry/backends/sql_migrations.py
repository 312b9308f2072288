"""The schema of the registry's database."""

from pathlib import Path
from typing import Final

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from vplab.registry.backends.sql_catalog import translated
from vplab.registry.backends.sql_schema import HEAD_REVISION
from vplab.runtime.migrations import Migrations

SCRIPTS: Final = Path(__file__).parent.parent / "migrations"
LOCK_KEY: Final = 0x76706C6162  # "vplab" as a number

_MIGRATIONS: Final = Migrations(SCRIPTS, HEAD_REVISION, LOCK_KEY)
current_revision = _MIGRATIONS.current_revision


def migrate(engine: Engine) -> None:
    """Upgrade the schema where it is older than the code.

    Raises FailedPrecondition if it is newer, StoreUnavailable, StorageFull.
    """
    try:
        _MIGRATIONS.migrate(engine)
    except DBAPIError as error:
        raise translated(error) from error
