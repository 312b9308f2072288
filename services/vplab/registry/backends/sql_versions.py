"""Versions, their blobs and their lineage in SQL."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, func, insert, or_, select, update

from vplab.registry.backends.sql_schema import (
    artifacts,
    from_micros,
    to_micros,
    version_blobs,
    version_lineage,
    versions,
)
from vplab.registry.manifest import manifest_from_canonical
from vplab.registry.values import ArtifactKind, Version, VersionKey

MANY = 300
"""Parameters of one statement; SQLite takes 32,766, and a thousand lineage entries need two each."""


class SqlVersions:
    """Implements ``VersionTable``."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, key: VersionKey) -> Version | None:
        return self._one(and_(versions.c.artifact_id == key.artifact_id, versions.c.number == key.number))

    def by_digest(self, artifact_id: str, digest: str) -> Version | None:
        return self._one(and_(versions.c.artifact_id == artifact_id, versions.c.digest == digest))

    def next_number(self, artifact_id: str) -> int:
        statement = update(artifacts).where(artifacts.c.artifact_id == artifact_id)
        statement = statement.values(last_number=artifacts.c.last_number + 1)
        return int(self._connection.execute(statement.returning(artifacts.c.last_number)).scalar_one())

    def insert(self, version: Version, canonical: bytes) -> None:
        key = {"artifact_id": version.key.artifact_id, "number": version.key.number}
        self._connection.execute(
            insert(versions).values(
                **key, digest=version.digest, manifest=canonical, create_time=to_micros(version.create_time)
            )
        )
        digests = sorted({file.sha256 for file in version.manifest.files})
        self._connection.execute(insert(version_blobs), [{**key, "sha256": sha256} for sha256 in digests])
        lineage = [
            {
                **key,
                "relation": entry.relation,
                "target_artifact_id": entry.version.artifact_id,
                "target_number": entry.version.number,
            }
            for entry in version.manifest.lineage
        ]
        if lineage:
            self._connection.execute(insert(version_lineage), lineage)

    def page(self, artifact_id: str, before: int | None, limit: int, max_bytes: int) -> Sequence[Version]:
        query = select(versions.c.number, func.length(versions.c.manifest).label("size"))
        query = query.where(versions.c.artifact_id == artifact_id)
        if before is not None:
            query = query.where(versions.c.number < before)
        numbers: list[int] = []
        total = 0
        for row in self._connection.execute(query.order_by(versions.c.number.desc()).limit(limit)).all():
            total += row.size
            if numbers and total > max_bytes:
                break
            numbers.append(row.number)
        if not numbers:
            return []
        is_chosen = and_(versions.c.artifact_id == artifact_id, versions.c.number.between(numbers[-1], numbers[0]))
        rows = self._connection.execute(_select().where(is_chosen).order_by(versions.c.number.desc()))
        return [_version(row) for row in rows]

    def digests(self, keys: Collection[VersionKey]) -> Mapping[VersionKey, str]:
        if not keys:
            return {}
        ordered = sorted(keys)
        found: dict[VersionKey, str] = {}
        names = sorted({key.artifact_id for key in ordered})
        hold = select(artifacts.c.artifact_id).where(artifacts.c.artifact_id.in_(names))
        self._connection.execute(
            hold.order_by(artifacts.c.artifact_id).with_for_update(read=True, key_share=True)
        ).all()
        for start in range(0, len(ordered), MANY):
            some = ordered[start : start + MANY]
            is_one = or_(*(and_(versions.c.artifact_id == k.artifact_id, versions.c.number == k.number) for k in some))
            query = select(versions.c.artifact_id, versions.c.number, versions.c.digest).where(is_one)
            for row in self._connection.execute(query):
                found[VersionKey(row.artifact_id, row.number)] = row.digest
        return found

    def _one(self, condition: ColumnElement[bool]) -> Version | None:
        row = self._connection.execute(_select().where(condition)).one_or_none()
        return None if row is None else _version(row)


def _select() -> Any:
    return select(versions, artifacts.c.kind).join(artifacts, artifacts.c.artifact_id == versions.c.artifact_id)


def _version(row: Row[Any]) -> Version:
    return Version(
        VersionKey(row.artifact_id, row.number),
        row.digest,
        manifest_from_canonical(row.manifest),
        ArtifactKind(row.kind),
        from_micros(row.create_time),
    )
