"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def byte_ordered(length: int) -> sa.String:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "alias_changes",
        sa.Column("revision", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("artifact_id", byte_ordered(63), nullable=False),
        sa.Column("alias", byte_ordered(63), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=True),
        sa.Column("version_digest", sa.String(length=64), nullable=False),
        sa.Column("previous_number", sa.BigInteger(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("change_time", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("revision", name=op.f("pk_alias_changes")),
    )
    op.create_index(
        op.f("ix_alias_changes_artifact_id_alias_revision"),
        "alias_changes",
        ["artifact_id", "alias", "revision"],
        unique=False,
    )
    op.create_table(
        "artifacts",
        sa.Column("artifact_id", byte_ordered(63), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("display_name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.Column("delete_time", sa.BigInteger(), nullable=True),
        sa.Column("expire_time", sa.BigInteger(), nullable=True),
        sa.Column("change", sa.BigInteger(), nullable=False),
        sa.Column("last_number", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("artifact_id", name=op.f("pk_artifacts")),
    )
    op.create_index(op.f("ix_artifacts_expire_time"), "artifacts", ["expire_time"], unique=False)
    op.create_table(
        "blobs",
        sa.Column("sha256", byte_ordered(64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("touch_time", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_blobs")),
    )
    op.create_index(op.f("ix_blobs_touch_time"), "blobs", ["touch_time"], unique=False)
    op.create_table(
        "counters",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_counters")),
    )
    op.create_table(
        "requests",
        sa.Column("request_id", sa.String(length=36), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("resource", sa.Text(), nullable=False),
        sa.Column("expire_time", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("request_id", name=op.f("pk_requests")),
    )
    op.create_index(op.f("ix_requests_expire_time"), "requests", ["expire_time"], unique=False)
    op.create_table(
        "artifact_labels",
        sa.Column("artifact_id", byte_ordered(63), nullable=False),
        sa.Column("key", byte_ordered(63), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["artifact_id"], ["artifacts.artifact_id"], name=op.f("fk_artifact_labels_artifact_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("artifact_id", "key", name=op.f("pk_artifact_labels")),
    )
    op.create_index(op.f("ix_artifact_labels_key_value"), "artifact_labels", ["key", "value"], unique=False)
    op.create_table(
        "versions",
        sa.Column("artifact_id", byte_ordered(63), nullable=False),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("manifest", sa.LargeBinary(), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["artifact_id"], ["artifacts.artifact_id"], name=op.f("fk_versions_artifact_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("artifact_id", "number", name=op.f("pk_versions")),
        sa.UniqueConstraint("artifact_id", "digest", name=op.f("uq_versions_artifact_id_digest")),
    )
    op.create_table(
        "aliases",
        sa.Column("artifact_id", byte_ordered(63), nullable=False),
        sa.Column("alias", byte_ordered(63), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("version_digest", sa.String(length=64), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("update_time", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["artifact_id", "number"],
            ["versions.artifact_id", "versions.number"],
            name=op.f("fk_aliases_artifact_id_number"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("artifact_id", "alias", name=op.f("pk_aliases")),
    )
    op.create_table(
        "leases",
        sa.Column("lease_id", sa.String(length=64), nullable=False),
        sa.Column("artifact_id", byte_ordered(63), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("expire_time", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["artifact_id", "number"],
            ["versions.artifact_id", "versions.number"],
            name=op.f("fk_leases_artifact_id_number"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("lease_id", name=op.f("pk_leases")),
    )
    op.create_index(op.f("ix_leases_artifact_id_expire_time"), "leases", ["artifact_id", "expire_time"], unique=False)
    op.create_index(op.f("ix_leases_expire_time"), "leases", ["expire_time"], unique=False)
    op.create_table(
        "version_blobs",
        sa.Column("artifact_id", byte_ordered(63), nullable=False),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("sha256", byte_ordered(64), nullable=False),
        sa.ForeignKeyConstraint(
            ["artifact_id", "number"],
            ["versions.artifact_id", "versions.number"],
            name=op.f("fk_version_blobs_artifact_id_number"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(["sha256"], ["blobs.sha256"], name=op.f("fk_version_blobs_sha256")),
        sa.PrimaryKeyConstraint("artifact_id", "number", "sha256", name=op.f("pk_version_blobs")),
    )
    op.create_index(op.f("ix_version_blobs_sha256"), "version_blobs", ["sha256"], unique=False)
    op.create_table(
        "version_lineage",
        sa.Column("artifact_id", byte_ordered(63), nullable=False),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("relation", byte_ordered(63), nullable=False),
        sa.Column("target_artifact_id", byte_ordered(63), nullable=False),
        sa.Column("target_number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.ForeignKeyConstraint(
            ["artifact_id", "number"],
            ["versions.artifact_id", "versions.number"],
            name=op.f("fk_version_lineage_artifact_id_number"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint(
            "artifact_id", "number", "relation", "target_artifact_id", "target_number", name=op.f("pk_version_lineage")
        ),
    )
    op.create_index(
        op.f("ix_version_lineage_target_artifact_id"), "version_lineage", ["target_artifact_id"], unique=False
    )
    counters = sa.table("counters", sa.column("name", sa.String), sa.column("value", sa.BigInteger))
    op.bulk_insert(counters, [{"name": "alias_revision", "value": 0}, {"name": "oldest_revision", "value": 0}])
