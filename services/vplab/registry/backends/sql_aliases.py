"""Aliases, their history and its revisions in SQL."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, and_, delete, func, insert, or_, select, update

from vplab.registry.backends.sql_schema import alias_changes, aliases, artifacts, counters, from_micros, to_micros
from vplab.registry.values import Alias, AliasChange, AliasKey


class SqlAliases:
    """Implements ``AliasTable``."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def next_revision(self) -> int:
        # The update holds the row until the transaction ends: the next one to assign waits, so revisions are committed
        # in their order, and a rolled-back one is given again.
        statement = update(counters).where(counters.c.name == "alias_revision").values(value=counters.c.value + 1)
        return int(self._connection.execute(statement.returning(counters.c.value)).scalar_one())

    def latest_revision(self) -> int:
        return self._counter("alias_revision")

    def oldest_revision(self) -> int:
        return self._counter("oldest_revision")

    def get(self, key: AliasKey) -> Alias | None:
        query = select(aliases).where(aliases.c.artifact_id == key.artifact_id, aliases.c.alias == key.alias)
        row = self._connection.execute(query).one_or_none()
        return None if row is None else _alias(row)

    def put(self, alias: Alias) -> None:
        is_it = and_(aliases.c.artifact_id == alias.key.artifact_id, aliases.c.alias == alias.key.alias)
        values = {
            "number": alias.number,
            "version_digest": alias.version_digest,
            "revision": alias.revision,
            "update_time": to_micros(alias.update_time),
        }
        if self._connection.execute(update(aliases).where(is_it).values(**values)).rowcount == 0:
            key = {"artifact_id": alias.key.artifact_id, "alias": alias.key.alias}
            self._connection.execute(insert(aliases).values(**key, **values))

    def of_artifact(self, artifact_id: str) -> Sequence[Alias]:
        query = select(aliases).where(aliases.c.artifact_id == artifact_id).order_by(aliases.c.alias)
        return [_alias(row) for row in self._connection.execute(query)]

    def page(self, artifact_id: str | None, after: AliasKey | None, limit: int) -> Sequence[Alias]:
        query = select(aliases).join(artifacts, artifacts.c.artifact_id == aliases.c.artifact_id)
        query = query.where(artifacts.c.delete_time.is_(None))
        if artifact_id is not None:
            query = query.where(aliases.c.artifact_id == artifact_id)
        if after is not None:
            same = and_(aliases.c.artifact_id == after.artifact_id, aliases.c.alias > after.alias)
            query = query.where(or_(aliases.c.artifact_id > after.artifact_id, same))
        query = query.order_by(aliases.c.artifact_id, aliases.c.alias).limit(limit)
        return [_alias(row) for row in self._connection.execute(query)]

    def append(self, change: AliasChange) -> None:
        self._connection.execute(
            insert(alias_changes).values(
                revision=change.revision,
                artifact_id=change.key.artifact_id,
                alias=change.key.alias,
                number=change.number,
                version_digest=change.version_digest,
                previous_number=change.previous_number,
                reason=change.reason,
                actor=change.actor,
                change_time=to_micros(change.change_time),
            )
        )

    def changes_between(self, after: int, up_to: int, artifact_id: str | None, limit: int) -> Sequence[AliasChange]:
        query = select(alias_changes).where(alias_changes.c.revision > after, alias_changes.c.revision <= up_to)
        if artifact_id is not None:
            query = query.where(alias_changes.c.artifact_id == artifact_id)
        return [_change(row) for row in self._connection.execute(query.order_by(alias_changes.c.revision).limit(limit))]

    def changes_of(self, key: AliasKey, before: int | None, limit: int) -> Sequence[AliasChange]:
        query = select(alias_changes)
        query = query.where(alias_changes.c.artifact_id == key.artifact_id, alias_changes.c.alias == key.alias)
        if before is not None:
            query = query.where(alias_changes.c.revision < before)
        query = query.order_by(alias_changes.c.revision.desc()).limit(limit)
        return [_change(row) for row in self._connection.execute(query)]

    def has_named(self, key: AliasKey, number: int) -> bool:
        is_it = and_(alias_changes.c.artifact_id == key.artifact_id, alias_changes.c.alias == key.alias)
        # The first change that is kept may tell of one before it that is not.
        named = or_(alias_changes.c.number == number, alias_changes.c.previous_number == number)
        return (
            self._connection.execute(select(alias_changes.c.revision).where(is_it, named).limit(1)).first() is not None
        )

    def forget_changes(self, before: datetime) -> None:
        is_old = alias_changes.c.change_time < to_micros(before)
        # Clocks of replicas may differ, so the newest old revision decides, and all below it go together.
        newest = self._connection.execute(select(func.max(alias_changes.c.revision)).where(is_old)).scalar()
        if newest is None:
            return
        self._connection.execute(delete(alias_changes).where(alias_changes.c.revision <= newest))
        self._connection.execute(update(counters).where(counters.c.name == "oldest_revision").values(value=newest))

    def _counter(self, name: str) -> int:
        return int(self._connection.execute(select(counters.c.value).where(counters.c.name == name)).scalar_one())


def _alias(row: Row[Any]) -> Alias:
    key = AliasKey(row.artifact_id, row.alias)
    return Alias(key, row.number, row.version_digest, row.revision, from_micros(row.update_time))


def _change(row: Row[Any]) -> AliasChange:
    return AliasChange(
        row.revision,
        AliasKey(row.artifact_id, row.alias),
        row.number,
        row.version_digest,
        row.previous_number,
        row.reason,
        row.actor,
        from_micros(row.change_time),
    )
