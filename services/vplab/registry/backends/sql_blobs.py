"""What is known of blobs, in SQL."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, and_, delete, exists, insert, or_, select, update

from vplab.registry.backends.sql_schema import blobs, from_micros, to_micros, version_blobs
from vplab.registry.values import BlobRecord, BlobState

MANY = 5000
"""Digests of one statement; SQLite takes 32,766 parameters."""


class SqlBlobs:
    """Implements ``BlobTable``."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, digests: Collection[str], *, lock: bool = False) -> Mapping[str, BlobRecord]:
        found: dict[str, BlobRecord] = {}
        # Always in the order of the digests, so that two transactions never wait for each other.
        ordered = sorted(digests)
        for start in range(0, len(ordered), MANY):
            query = select(blobs).where(blobs.c.sha256.in_(ordered[start : start + MANY])).order_by(blobs.c.sha256)
            for row in self._connection.execute(query.with_for_update() if lock else query):
                found[row.sha256] = _record(row)
        return found

    def put(self, record: BlobRecord) -> None:
        values = {
            "size_bytes": record.size_bytes,
            "state": record.state.value,
            "touch_time": to_micros(record.touch_time),
        }
        known = self._connection.execute(update(blobs).where(blobs.c.sha256 == record.sha256).values(**values))
        if known.rowcount == 0:
            self._connection.execute(insert(blobs).values(sha256=record.sha256, **values))

    def set_state(self, sha256: str, state: BlobState) -> None:
        self._connection.execute(update(blobs).where(blobs.c.sha256 == sha256).values(state=state.value))

    def touch(self, digests: Collection[str], now: datetime) -> None:
        is_one = blobs.c.sha256.in_(sorted(digests))
        self._connection.execute(update(blobs).where(is_one).values(touch_time=to_micros(now)))

    def touch_of_artifact(self, artifact_id: str, now: datetime) -> None:
        named = select(version_blobs.c.sha256).where(version_blobs.c.artifact_id == artifact_id)
        self._connection.execute(update(blobs).where(blobs.c.sha256.in_(named)).values(touch_time=to_micros(now)))

    def unnamed(
        self, before: datetime, storing_before: datetime, after: str, limit: int, *, lock: bool
    ) -> Sequence[BlobRecord]:
        settled = (BlobState.STORED.value, BlobState.DAMAGED.value)
        is_old = and_(blobs.c.state.in_(settled), blobs.c.touch_time <= to_micros(before))
        is_stuck = and_(blobs.c.state == BlobState.STORING.value, blobs.c.touch_time <= to_micros(storing_before))
        is_named = exists().where(version_blobs.c.sha256 == blobs.c.sha256)
        query = select(blobs).where(or_(blobs.c.state == BlobState.DELETING.value, is_old, is_stuck), ~is_named)
        query = query.where(blobs.c.sha256 > after).order_by(blobs.c.sha256).limit(limit)
        rows = self._connection.execute(query.with_for_update(skip_locked=True, of=blobs) if lock else query)
        return [_record(row) for row in rows]

    def is_named(self, sha256: str) -> bool:
        return self._connection.execute(select(exists().where(version_blobs.c.sha256 == sha256))).scalar_one()

    def remove(self, sha256: str) -> None:
        self._connection.execute(delete(blobs).where(blobs.c.sha256 == sha256))


def _record(row: Row[Any]) -> BlobRecord:
    return BlobRecord(row.sha256, row.size_bytes, BlobState(row.state), from_micros(row.touch_time))
