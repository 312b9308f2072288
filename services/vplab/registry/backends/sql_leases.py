"""Leases and remembered requests in SQL."""

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from vplab.registry.backends.sql_schema import from_micros, leases, requests, to_micros
from vplab.registry.values import Lease, RequestRecord, VersionKey


class SqlLeases:
    """Implements ``LeaseTable``."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def put(self, lease: Lease) -> None:
        expire_time = to_micros(lease.expire_time)
        is_it = leases.c.lease_id == lease.lease_id
        if self._connection.execute(update(leases).where(is_it).values(expire_time=expire_time)).rowcount == 0:
            self._connection.execute(
                insert(leases).values(
                    lease_id=lease.lease_id,
                    artifact_id=lease.version.artifact_id,
                    number=lease.version.number,
                    holder=lease.holder,
                    expire_time=expire_time,
                )
            )

    def get(self, lease_id: str) -> Lease | None:
        row = self._connection.execute(select(leases).where(leases.c.lease_id == lease_id)).one_or_none()
        return None if row is None else _lease(row)

    def remove(self, lease_id: str) -> None:
        self._connection.execute(delete(leases).where(leases.c.lease_id == lease_id))

    def live_on(self, artifact_id: str, now: datetime) -> Lease | None:
        query = select(leases).where(leases.c.artifact_id == artifact_id, leases.c.expire_time > to_micros(now))
        row = self._connection.execute(query.order_by(leases.c.expire_time.desc()).limit(1)).one_or_none()
        return None if row is None else _lease(row)

    def remove_expired(self, before: datetime) -> None:
        self._connection.execute(delete(leases).where(leases.c.expire_time <= to_micros(before)))


class SqlRequests:
    """Implements ``RequestTable``."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, request_id: str) -> RequestRecord | None:
        row = self._connection.execute(select(requests).where(requests.c.request_id == request_id)).one_or_none()
        if row is None:
            return None
        return RequestRecord(row.request_id, row.fingerprint, row.resource, from_micros(row.expire_time))

    def put(self, record: RequestRecord) -> None:
        self._connection.execute(
            insert(requests).values(
                request_id=record.request_id,
                fingerprint=record.fingerprint,
                resource=record.resource,
                expire_time=to_micros(record.expire_time),
            )
        )

    def remove(self, request_id: str) -> None:
        self._connection.execute(delete(requests).where(requests.c.request_id == request_id))

    def remove_expired(self, now: datetime) -> None:
        self._connection.execute(delete(requests).where(requests.c.expire_time <= to_micros(now)))


def _lease(row: Row[Any]) -> Lease:
    return Lease(row.lease_id, VersionKey(row.artifact_id, row.number), row.holder, from_micros(row.expire_time))
