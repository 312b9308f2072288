"""Requests that may come twice: what a request_id was used for, and what came of it."""

import hashlib
from collections.abc import Sequence
from datetime import timedelta

from vplab.registry.canonical_json import JsonValue, canonical_json
from vplab.registry.errors import RequestIdReused
from vplab.registry.ports import Clock, Transaction
from vplab.registry.values import RequestRecord


class Requests:
    """Knows for how long a request_id protects its call against repeats."""

    def __init__(self, now: Clock, *, remembered_for: timedelta) -> None:
        self._now = now
        self._remembered_for = remembered_for

    def of(self, request_id: str, method: str, content: Sequence[JsonValue]) -> "Request":
        """Return one call; ``content`` is all of it that matters, an empty ``request_id`` means it is not protected."""
        fingerprint = hashlib.sha256(canonical_json([method, *content])).hexdigest()
        return Request(request_id, fingerprint, self._now, self._remembered_for)


class Request:
    """One call under its request_id."""

    def __init__(self, request_id: str, fingerprint: str, now: Clock, remembered_for: timedelta) -> None:
        self._request_id = request_id
        self._fingerprint = fingerprint
        self._now = now
        self._remembered_for = remembered_for

    def made_before(self, tx: Transaction) -> str | None:
        """Return what the same call made earlier; None the first time. Raises RequestIdReused."""
        record = tx.requests.get(self._request_id) if self._request_id else None
        if record is None or record.expire_time <= self._now():
            return None
        if record.fingerprint != self._fingerprint:
            raise RequestIdReused(self._request_id)
        return record.resource

    def record(self, tx: Transaction, resource: str) -> None:
        """Remember in the same transaction what the call made."""
        if self._request_id:
            tx.requests.remove(self._request_id)  # an expired one, or one whose resource was collected
            expires = self._now() + self._remembered_for
            tx.requests.put(RequestRecord(self._request_id, self._fingerprint, resource, expires))
