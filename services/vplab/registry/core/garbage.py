"""Garbage collection: what nothing names any more goes, and only after a grace period.

Safe beside publishing: a blob is first marked, under a lock that a publish takes too, and from then on no version can
name it; its bytes go afterwards, under a lock that an upload of the same bytes waits for. A collection that dies in
between leaves marked blobs, which the next one, or an upload, picks up.
"""

from datetime import timedelta
from typing import Final

from vplab.registry.ports import BlobStore, Catalog, Clock, StagedUploads, Transaction
from vplab.registry.values import BlobRecord, BlobState, GarbageReport

BATCH: Final = 200
CLOCK_SKEW: Final = timedelta(minutes=1)
"""Replicas' clocks may differ by this much: a lease holds collection off for so much longer."""
MIN_STORING: Final = timedelta(hours=1)
"""A blob that is being stored is left alone for at least this long, whatever the grace period."""


class Garbage:
    """The collection's use case."""

    def __init__(
        self,
        catalog: Catalog,
        store: BlobStore,
        uploads: StagedUploads,
        now: Clock,
        *,
        grace: timedelta,
        history: timedelta | None,
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._uploads = uploads
        self._now = now
        self._grace = grace
        self._history = history

    def collect(self, *, validate_only: bool = False) -> GarbageReport:
        """Remove artifacts past their expiry, and blobs and uploads that nothing named for the grace period.

        With ``validate_only`` nothing is removed and the report says what would be.
        """
        now = self._now()
        if validate_only:
            artifact_ids = self._catalog.read(self._collectable)
            blobs = self._unnamed()
        else:
            artifact_ids = self._catalog.write(self._remove_artifacts)
            self._catalog.write(self._forget)
            blobs = self._remove_blobs()
        staged = self._uploads.remove_older(now - self._grace, dry_run=validate_only)
        return GarbageReport(
            artifact_ids, tuple(blob.sha256 for blob in blobs), sum(blob.size_bytes for blob in blobs) + staged
        )

    def _collectable(self, tx: Transaction) -> tuple[str, ...]:
        now = self._now()
        expired = tx.artifacts.expired(now)
        if not expired:
            return ()
        needed = tx.artifacts.needed(now - CLOCK_SKEW)
        return tuple(artifact_id for artifact_id in expired if artifact_id not in needed)

    def _remove_artifacts(self, tx: Transaction) -> tuple[str, ...]:
        collectable = self._collectable(tx)
        for artifact_id in collectable:
            # From now on nothing names these blobs, so that their grace period begins.
            tx.blobs.touch_of_artifact(artifact_id, self._now())
            tx.artifacts.remove(artifact_id)
        return collectable

    def _forget(self, tx: Transaction) -> None:
        now = self._now()
        tx.leases.remove_expired(now - CLOCK_SKEW)
        tx.requests.remove_expired(now)
        if self._history is not None:
            tx.aliases.forget_changes(now - self._history)

    def _unnamed(self) -> list[BlobRecord]:
        found: list[BlobRecord] = []
        while batch := self._catalog.read(lambda tx: self._candidates(tx, found, lock=False)):
            found.extend(batch)
        return found

    def _candidates(self, tx: Transaction, seen: list[BlobRecord], *, lock: bool) -> list[BlobRecord]:
        now = self._now()
        storing_before = now - max(self._grace, MIN_STORING)
        after = seen[-1].sha256 if seen else ""
        return list(tx.blobs.unnamed(now - self._grace, storing_before, after, BATCH, lock=lock))

    def _remove_blobs(self) -> list[BlobRecord]:
        seen: list[BlobRecord] = []
        removed: list[BlobRecord] = []
        while batch := self._catalog.write(lambda tx: self._mark(tx, seen)):
            seen.extend(batch)
            for blob in batch:
                if self._catalog.write(lambda tx, sha256=blob.sha256: self._remove(tx, sha256)):  # type: ignore[misc]
                    removed.append(blob)
        return removed

    def _mark(self, tx: Transaction, seen: list[BlobRecord]) -> list[BlobRecord]:
        batch = self._candidates(tx, seen, lock=True)
        for blob in batch:
            # Asked again now that the lock is held: a publish may have named it before it let the lock go.
            if not tx.blobs.is_named(blob.sha256):
                tx.blobs.set_state(blob.sha256, BlobState.DELETING)
        return batch

    def _remove(self, tx: Transaction, sha256: str) -> bool:
        record = tx.blobs.get([sha256], lock=True).get(sha256)
        if record is None or record.state is not BlobState.DELETING:
            return False
        # Bytes first: if this stops in between, the record stays marked and is picked up again.
        self._store.delete(sha256)
        tx.blobs.remove(sha256)
        return True
