"""What the registry needs from outside: a transactional catalogue, a blob store, staged uploads, a clock.

Every method blocks and may be called from any thread. Besides the errors named, each may raise StoreUnavailable, and
each that writes StorageFull.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Protocol, TypeVar

from vplab.registry.values import (
    Alias,
    AliasChange,
    AliasKey,
    Artifact,
    ArtifactKind,
    BlobRecord,
    BlobState,
    Lease,
    RequestRecord,
    Version,
    VersionKey,
)

T = TypeVar("T")

Clock = Callable[[], datetime]
"""The present time, aware, UTC."""


class BlobStore(Protocol):
    """Whole blobs by digest; one is either there entirely or not at all."""

    def store(self, staged: Path, sha256: str) -> None:
        """Make a staged file, whose digest is verified, readable under it; durable on return. Storing again is fine."""

    def size_bytes(self, sha256: str) -> int | None:
        """Return the stored size; None when there is nothing."""

    def read(self, sha256: str, offset_bytes: int) -> Iterator[bytes]:
        """Yield the bytes from an offset in pieces of at most 1 MiB. Raises ResourceNotFound."""

    def delete(self, sha256: str) -> None:
        """Remove a blob; removing one that is not there succeeds."""


class StagedUpload(Protocol):
    """One upload in progress, owned by its caller until it is finished, kept or discarded."""

    @property
    def size_bytes(self) -> int:
        """Bytes written so far, those of earlier attempts included."""

    def write(self, chunk: bytes) -> None:
        """Append."""

    def finish(self) -> tuple[Path, str]:
        """Return the file and the sha256 of all its bytes."""

    def keep(self) -> None:
        """Give it up, so that a later upload can go on from here."""

    def discard(self) -> None:
        """Remove it; does nothing once its file was stored."""


class StagedUploads(Protocol):
    """Where uploads wait until they are whole and verified."""

    def begin(self, sha256: str, offset_bytes: int) -> StagedUpload:
        """Start anew at 0, or go on with a kept upload. Raises WrongOffset unless the offset is where one stopped."""

    def kept_bytes(self, sha256: str) -> int:
        """Return where an upload can go on; 0 when nothing is kept."""

    def free_bytes(self) -> int:
        """Return how many bytes the disk still takes."""

    def remove_older(self, before: datetime, *, dry_run: bool) -> int:
        """Remove kept uploads untouched since ``before``; return their bytes."""


class ArtifactTable(Protocol):
    """Artifacts with their labels."""

    def get(self, artifact_id: str, *, lock: bool = False) -> Artifact | None:
        """Return one; with ``lock`` nobody else changes or removes it before this transaction ends."""

    def insert(self, artifact: Artifact) -> None:
        """Add one that is not there."""

    def update(self, artifact: Artifact) -> None:
        """Write its times and its change count; the rest never changes."""

    def remove(self, artifact_id: str) -> None:
        """Remove it with its versions, aliases and leases."""

    def page(
        self, kind: ArtifactKind | None, labels: Mapping[str, str], show_deleted: bool, after: str, limit: int
    ) -> Sequence[Artifact]:
        """Return those after an id, in the order of their ids."""

    def expired(self, now: datetime) -> Sequence[str]:
        """Return and lock the ids whose expire_time has come."""

    def needed(self, now: datetime) -> Collection[str]:
        """Return the ids of artifacts that live or are leased, and what their versions need, transitively."""


class VersionTable(Protocol):
    """Versions and their links to blobs and to each other."""

    def get(self, key: VersionKey) -> Version | None:
        """Return one, also of a deleted artifact."""

    def by_digest(self, artifact_id: str, digest: str) -> Version | None:
        """Return the version with this manifest."""

    def next_number(self, artifact_id: str) -> int:
        """Assign the next number; it is given back if the transaction fails."""

    def insert(self, version: Version, canonical: bytes) -> None:
        """Add one, its canonical manifest, and what it names."""

    def page(self, artifact_id: str, before: int | None, limit: int, max_bytes: int) -> Sequence[Version]:
        """Return those below a number, newest first; at least one, and no more once manifests exceed ``max_bytes``."""

    def digests(self, keys: Collection[VersionKey]) -> Mapping[VersionKey, str]:
        """Return the digests of those that exist, and keep them from removal until this transaction ends."""


class AliasTable(Protocol):
    """Aliases, their history, and the revisions that order it."""

    def next_revision(self) -> int:
        """Assign the next revision and hold all other assignments until this transaction ends, so that revisions become
        visible in their order and without gaps."""

    def latest_revision(self) -> int:
        """Return the newest committed revision; 0 before the first."""

    def oldest_revision(self) -> int:
        """Return the revision from which on the history is whole; watching from it is possible."""

    def get(self, key: AliasKey) -> Alias | None:
        """Return an alias, also of a deleted artifact."""

    def put(self, alias: Alias) -> None:
        """Add it or move it."""

    def of_artifact(self, artifact_id: str) -> Sequence[Alias]:
        """Return all of one artifact, also a deleted one's."""

    def page(self, artifact_id: str | None, after: AliasKey | None, limit: int) -> Sequence[Alias]:
        """Return those of living artifacts, by artifact and alias."""

    def append(self, change: AliasChange) -> None:
        """Add to the history."""

    def changes_between(self, after: int, up_to: int, artifact_id: str | None, limit: int) -> Sequence[AliasChange]:
        """Return changes with ``after < revision <= up_to``, oldest first."""

    def changes_of(self, key: AliasKey, before: int | None, limit: int) -> Sequence[AliasChange]:
        """Return one alias's changes below a revision, newest first."""

    def has_named(self, key: AliasKey, number: int) -> bool:
        """Return whether an alias named that version at any time that its history still tells of."""

    def forget_changes(self, before: datetime) -> None:
        """Remove older changes and move ``oldest_revision`` with them."""


class BlobTable(Protocol):
    """What is known of each blob."""

    def get(self, digests: Collection[str], *, lock: bool = False) -> Mapping[str, BlobRecord]:
        """Return those known; with ``lock`` nobody else changes their state before this transaction ends."""

    def put(self, record: BlobRecord) -> None:
        """Add or replace."""

    def set_state(self, sha256: str, state: BlobState) -> None:
        """Change the state only."""

    def touch(self, digests: Collection[str], now: datetime) -> None:
        """Let their grace period begin anew."""

    def touch_of_artifact(self, artifact_id: str, now: datetime) -> None:
        """Touch all that an artifact's versions name."""

    def unnamed(
        self, before: datetime, storing_before: datetime, after: str, limit: int, *, lock: bool
    ) -> Sequence[BlobRecord]:
        """Return blobs past a digest, in their order, that no version names: untouched since ``before``
        (``storing_before`` for those being stored), or already being deleted. With ``lock``, as in ``get``, those that
        others hold are left out."""

    def is_named(self, sha256: str) -> bool:
        """Say whether a version names it."""

    def remove(self, sha256: str) -> None:
        """Forget it; no version may name it."""


class LeaseTable(Protocol):
    """Leases on versions."""

    def put(self, lease: Lease) -> None:
        """Add it or move its expiry."""

    def get(self, lease_id: str) -> Lease | None:
        """Return one, expired or not."""

    def remove(self, lease_id: str) -> None:
        """End it, if it is there."""

    def live_on(self, artifact_id: str, now: datetime) -> Lease | None:
        """Return the longest live lease on an artifact's versions."""

    def remove_expired(self, before: datetime) -> None:
        """Forget those that ended before."""


class RequestTable(Protocol):
    """Which request_id made what."""

    def get(self, request_id: str) -> RequestRecord | None:
        """Return one, expired or not."""

    def put(self, record: RequestRecord) -> None:
        """Insert; a concurrent insert of the same id makes the whole transaction run again."""

    def remove(self, request_id: str) -> None:
        """Forget it, if it is there."""

    def remove_expired(self, now: datetime) -> None:
        """Forget those that expired."""


class Transaction(Protocol):
    """The tables as one transaction sees them."""

    artifacts: ArtifactTable
    versions: VersionTable
    aliases: AliasTable
    blobs: BlobTable
    leases: LeaseTable
    requests: RequestTable


class Catalog(Protocol):
    """Transactions that happen entirely or not at all."""

    def read(self, work: Callable[[Transaction], T]) -> T:
        """Run work that only reads."""

    def write(self, work: Callable[[Transaction], T]) -> T:
        """Run work and commit; it runs again when it collided with another transaction, so it has no other effects."""
