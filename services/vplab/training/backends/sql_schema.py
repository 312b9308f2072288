"""The tables of the job queue. A change here comes with a migration in ``migrations/versions`` and a new
``HEAD_REVISION``. Their names begin with ``training_``, so that the queue may share a database with the registry.

Times are microseconds since 1970 in UTC: exact, and the same in SQLite, which has no time type, and PostgreSQL.
"""

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

HEAD_REVISION: Final = "0001"
"""The newest migration, so that a start need not load the migrations to see that nothing is to be done."""
VERSION_TABLE: Final = "training_schema"
"""Where the schema's revision is kept."""

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite numbers rows by itself only in a column of this very type.
_Number = BigInteger().with_variant(Integer, "sqlite")

jobs = Table(
    "training_jobs",
    metadata,
    Column("number", _Number, primary_key=True, autoincrement=True),
    Column("job_id", String(32), nullable=False, unique=True),
    Column("kind", String(16), nullable=False),
    Column("request_id", String(36), nullable=False, unique=True),
    Column("fingerprint", String(64), nullable=False),
    Column("plan", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("stage", String(16), nullable=False),
    Column("committed", Boolean, nullable=False),
    Column("result", Text),
    Column("message", Text, nullable=False),
    Column("create_time", BigInteger, nullable=False),
    Column("start_time", BigInteger),
    Column("end_time", BigInteger),
    # The lease: who works on the job, until when, and the number that fences off those who did before.
    Column("owner", Text, nullable=False),
    Column("token", BigInteger, nullable=False),
    Column("due_time", BigInteger, nullable=False),
    Column("num_claims", Integer, nullable=False),
    Column("last_event", BigInteger, nullable=False),
    Index(None, "state", "number"),
    sqlite_autoincrement=True,
)

events = Table(
    "training_events",
    metadata,
    Column("job", _Number, ForeignKey("training_jobs.number", ondelete="CASCADE"), primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("state", String(16), nullable=False),
    Column("event", Text, nullable=False),
)

checkpoints = Table(
    "training_checkpoints",
    metadata,
    Column("job", _Number, ForeignKey("training_jobs.number", ondelete="CASCADE"), primary_key=True),
    Column("step", Integer, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("data", LargeBinary, nullable=False),
)
