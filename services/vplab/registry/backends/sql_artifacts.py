"""Artifacts and their labels in SQL."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, and_, delete, exists, insert, or_, select, update

from vplab.registry.backends.sql_schema import (
    artifact_labels,
    artifacts,
    from_micros,
    leases,
    to_micros,
    version_lineage,
)
from vplab.registry.values import PROVENANCE_RELATIONS, Artifact, ArtifactKind


class SqlArtifacts:
    """Implements ``ArtifactTable``."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, artifact_id: str, *, lock: bool = False) -> Artifact | None:
        query = select(artifacts).where(artifacts.c.artifact_id == artifact_id)
        if lock:
            # Not against those who only need the artifact to stay, such as a publish that names it in its lineage.
            query = query.with_for_update(key_share=True)
        row = self._connection.execute(query).one_or_none()
        return None if row is None else self._with_labels([row])[0]

    def insert(self, artifact: Artifact) -> None:
        self._connection.execute(
            insert(artifacts).values(
                artifact_id=artifact.artifact_id,
                kind=artifact.kind.value,
                display_name=artifact.display_name,
                description=artifact.description,
                create_time=to_micros(artifact.create_time),
                change=artifact.change,
                last_number=0,
            )
        )
        rows = [{"artifact_id": artifact.artifact_id, "key": k, "value": v} for k, v in artifact.labels.items()]
        if rows:
            self._connection.execute(insert(artifact_labels), rows)

    def update(self, artifact: Artifact) -> None:
        self._connection.execute(
            update(artifacts)
            .where(artifacts.c.artifact_id == artifact.artifact_id)
            .values(
                delete_time=None if artifact.delete_time is None else to_micros(artifact.delete_time),
                expire_time=None if artifact.expire_time is None else to_micros(artifact.expire_time),
                change=artifact.change,
            )
        )

    def remove(self, artifact_id: str) -> None:
        self._connection.execute(delete(artifacts).where(artifacts.c.artifact_id == artifact_id))

    def page(
        self, kind: ArtifactKind | None, labels: Mapping[str, str], show_deleted: bool, after: str, limit: int
    ) -> Sequence[Artifact]:
        query = select(artifacts).where(artifacts.c.artifact_id > after)
        if kind is not None:
            query = query.where(artifacts.c.kind == kind.value)
        if not show_deleted:
            query = query.where(artifacts.c.delete_time.is_(None))
        for key, value in labels.items():
            of_artifact = artifact_labels.c.artifact_id == artifacts.c.artifact_id
            is_label = and_(of_artifact, artifact_labels.c.key == key, artifact_labels.c.value == value)
            query = query.where(exists().where(is_label))
        return self._with_labels(self._connection.execute(query.order_by(artifacts.c.artifact_id).limit(limit)).all())

    def expired(self, now: datetime) -> Sequence[str]:
        query = select(artifacts.c.artifact_id).where(artifacts.c.expire_time <= to_micros(now))
        return self._connection.execute(query.order_by(artifacts.c.artifact_id).with_for_update()).scalars().all()

    def needed(self, now: datetime) -> Collection[str]:
        is_leased = exists().where(
            leases.c.artifact_id == artifacts.c.artifact_id, leases.c.expire_time > to_micros(now)
        )
        is_expired = artifacts.c.expire_time.is_not(None) & (artifacts.c.expire_time <= to_micros(now))
        query = select(artifacts.c.artifact_id).where(or_(~is_expired, is_leased))
        found = set(self._connection.execute(query).scalars())
        edges = select(version_lineage.c.artifact_id, version_lineage.c.target_artifact_id).distinct()
        targets: dict[str, set[str]] = defaultdict(set)
        for source, target in self._connection.execute(
            edges.where(version_lineage.c.relation.not_in(PROVENANCE_RELATIONS))
        ):
            targets[source].add(target)
        frontier = list(found)
        while frontier:
            reached = targets[frontier.pop()] - found
            found |= reached
            frontier.extend(reached)
        return found

    def _with_labels(self, rows: Sequence[Row[Any]]) -> list[Artifact]:
        labels: dict[str, dict[str, str]] = defaultdict(dict)
        query = select(artifact_labels).where(artifact_labels.c.artifact_id.in_([row.artifact_id for row in rows]))
        for label in self._connection.execute(query.order_by(artifact_labels.c.key)):
            labels[label.artifact_id][label.key] = label.value
        return [_artifact(row, labels[row.artifact_id]) for row in rows]


def _artifact(row: Row[Any], labels: Mapping[str, str]) -> Artifact:
    return Artifact(
        row.artifact_id,
        ArtifactKind(row.kind),
        row.display_name,
        row.description,
        labels,
        from_micros(row.create_time),
        None if row.delete_time is None else from_micros(row.delete_time),
        None if row.expire_time is None else from_micros(row.expire_time),
        row.change,
    )
