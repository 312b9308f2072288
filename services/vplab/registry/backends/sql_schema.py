"""The catalogue's tables. A change here comes with a migration in ``migrations/versions`` and a new ``HEAD_REVISION``.

Times are microseconds since 1970 in UTC: exact, and the same in SQLite, which has no time type, and PostgreSQL.
"""

from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

HEAD_REVISION: Final = "0001"
"""The newest migration, so that a start need not load the migrations to see that nothing is to be done."""

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)


def to_micros(time: datetime) -> int:
    return (time - EPOCH) // MICROSECOND


def from_micros(micros: int) -> datetime:
    return EPOCH + micros * MICROSECOND


def byte_ordered(length: int) -> String:
    """Text that sorts by its bytes in every database, whatever the locale of its server."""
    return String(length).with_variant(String(length, collation="C"), "postgresql")


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _id(name: str, *, key: bool = True) -> Column[str]:
    return Column(name, byte_ordered(63), primary_key=key, nullable=False)


artifacts = Table(
    "artifacts",
    metadata,
    _id("artifact_id"),
    Column("kind", String(16), nullable=False),
    Column("display_name", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("create_time", BigInteger, nullable=False),
    Column("delete_time", BigInteger),
    Column("expire_time", BigInteger, index=True),
    Column("change", BigInteger, nullable=False),
    Column("last_number", BigInteger, nullable=False),
)

artifact_labels = Table(
    "artifact_labels",
    metadata,
    _id("artifact_id"),
    Column("key", byte_ordered(63), primary_key=True),
    Column("value", Text, nullable=False),
    ForeignKeyConstraint(["artifact_id"], ["artifacts.artifact_id"], ondelete="CASCADE"),
    Index(None, "key", "value"),
)

versions = Table(
    "versions",
    metadata,
    _id("artifact_id"),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("digest", String(64), nullable=False),
    Column("manifest", LargeBinary, nullable=False),
    Column("create_time", BigInteger, nullable=False),
    ForeignKeyConstraint(["artifact_id"], ["artifacts.artifact_id"], ondelete="CASCADE"),
    UniqueConstraint("artifact_id", "digest"),
)

blobs = Table(
    "blobs",
    metadata,
    Column("sha256", byte_ordered(64), primary_key=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("state", String(16), nullable=False),
    Column("touch_time", BigInteger, nullable=False, index=True),
)

version_blobs = Table(
    "version_blobs",
    metadata,
    _id("artifact_id"),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("sha256", byte_ordered(64), ForeignKey("blobs.sha256"), primary_key=True, index=True),
    ForeignKeyConstraint(["artifact_id", "number"], ["versions.artifact_id", "versions.number"], ondelete="CASCADE"),
)

version_lineage = Table(
    "version_lineage",
    metadata,
    _id("artifact_id"),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("relation", byte_ordered(63), primary_key=True),
    Column("target_artifact_id", byte_ordered(63), primary_key=True, index=True),
    Column("target_number", BigInteger, primary_key=True, autoincrement=False),
    ForeignKeyConstraint(["artifact_id", "number"], ["versions.artifact_id", "versions.number"], ondelete="CASCADE"),
)

aliases = Table(
    "aliases",
    metadata,
    _id("artifact_id"),
    _id("alias"),
    Column("number", BigInteger, nullable=False),
    Column("version_digest", String(64), nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("update_time", BigInteger, nullable=False),
    ForeignKeyConstraint(["artifact_id", "number"], ["versions.artifact_id", "versions.number"], ondelete="CASCADE"),
)

# No foreign key: the history outlives the artifact.
alias_changes = Table(
    "alias_changes",
    metadata,
    Column("revision", BigInteger, primary_key=True, autoincrement=False),
    _id("artifact_id", key=False),
    _id("alias", key=False),
    Column("number", BigInteger),
    Column("version_digest", String(64), nullable=False),
    Column("previous_number", BigInteger),
    Column("reason", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("change_time", BigInteger, nullable=False),
    Index(None, "artifact_id", "alias", "revision"),
)

leases = Table(
    "leases",
    metadata,
    Column("lease_id", String(64), primary_key=True),
    _id("artifact_id", key=False),
    Column("number", BigInteger, nullable=False),
    Column("holder", Text, nullable=False),
    Column("expire_time", BigInteger, nullable=False, index=True),
    ForeignKeyConstraint(["artifact_id", "number"], ["versions.artifact_id", "versions.number"], ondelete="CASCADE"),
    Index(None, "artifact_id", "expire_time"),
)

requests = Table(
    "requests",
    metadata,
    Column("request_id", String(36), primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    Column("resource", Text, nullable=False),
    Column("expire_time", BigInteger, nullable=False, index=True),
)

# One row each for "alias_revision" (the latest given) and "oldest_revision" (from which on the history is whole).
counters = Table(
    "counters",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", BigInteger, nullable=False),
)
