"""Leases: promises not to collect a version before a time."""

import uuid
from dataclasses import replace
from datetime import timedelta
from typing import Final

from vplab.errors import InvalidInput
from vplab.registry.checks import MAX_HOLDER, Violations, check_text
from vplab.registry.errors import ResourceNotFound
from vplab.registry.ports import Catalog, Clock, Transaction
from vplab.registry.values import Lease, VersionKey

MIN_TTL: Final = timedelta(seconds=1)
MAX_TTL: Final = timedelta(days=7)


class Leases:
    """Use cases on leases."""

    def __init__(self, catalog: Catalog, now: Clock) -> None:
        self._catalog = catalog
        self._now = now

    def create(self, version: VersionKey, holder: str, ttl: timedelta) -> Lease:
        """Protect a version, also one of a deleted artifact. Raises ResourceNotFound, InvalidInput."""
        found = Violations()
        found.add_unless(bool(holder), "holder", "is required")
        check_text(found, holder, MAX_HOLDER, "holder")
        found.raise_if_any()
        _check_ttl(ttl)
        lease_id = uuid.uuid4().hex

        def work(tx: Transaction) -> Lease:
            if not tx.versions.digests([version]):
                raise ResourceNotFound(str(version))
            lease = Lease(lease_id, version, holder, self._now() + ttl)
            tx.leases.put(lease)
            return lease

        return self._catalog.write(work)

    def renew(self, lease_id: str, ttl: timedelta) -> Lease:
        """Let a live lease end ``ttl`` from now. Raises ResourceNotFound (also once it expired), InvalidInput."""
        _check_ttl(ttl)

        def work(tx: Transaction) -> Lease:
            lease = tx.leases.get(lease_id)
            now = self._now()
            if lease is None or lease.expire_time <= now:
                raise ResourceNotFound(f"leases/{lease_id}", "does not exist or has expired")
            renewed = replace(lease, expire_time=now + ttl)
            tx.leases.put(renewed)
            return renewed

        return self._catalog.write(work)

    def delete(self, lease_id: str) -> None:
        """End a lease; ending one that does not exist succeeds."""
        self._catalog.write(lambda tx: tx.leases.remove(lease_id))


def _check_ttl(ttl: timedelta) -> None:
    if not MIN_TTL <= ttl <= MAX_TTL:
        raise InvalidInput("must be from 1 s to 7 days", field="ttl")
