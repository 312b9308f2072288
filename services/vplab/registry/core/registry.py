"""All use cases of the registry over one catalogue and one blob store."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from vplab.registry.core.aliases import Aliases
from vplab.registry.core.artifacts import Artifacts
from vplab.registry.core.blobs import Blobs
from vplab.registry.core.garbage import Garbage
from vplab.registry.core.leases import Leases
from vplab.registry.core.requests import Requests
from vplab.registry.core.versions import Versions
from vplab.registry.ports import BlobStore, Catalog, Clock, StagedUploads


@dataclass(frozen=True)
class Retention:
    """For how long things are kept."""

    deleted_artifacts: timedelta = timedelta(days=30)
    """A soft-deleted artifact can be restored this long."""
    unnamed_blobs: timedelta = timedelta(hours=24)
    """The time an uploader has from the first blob of a version to its publication."""
    request_ids: timedelta = timedelta(hours=24)
    """A call repeated within this time returns the first answer."""
    alias_history: timedelta | None = None
    """None keeps it for ever; a registry makes few changes."""


def utc_now() -> datetime:
    """Return the present time."""
    return datetime.now(UTC)


class Registry:
    """The use cases by resource; every method blocks and may be called from any thread."""

    def __init__(
        self,
        catalog: Catalog,
        store: BlobStore,
        uploads: StagedUploads,
        retention: Retention | None = None,
        now: Clock = utc_now,
    ) -> None:
        keep = retention or Retention()
        requests = Requests(now, remembered_for=keep.request_ids)
        self.artifacts = Artifacts(catalog, requests, now, restorable_for=keep.deleted_artifacts)
        self.versions = Versions(catalog, requests, now)
        self.aliases = Aliases(catalog, now)
        self.blobs = Blobs(catalog, store, uploads, now)
        self.leases = Leases(catalog, now)
        self.garbage = Garbage(catalog, store, uploads, now, grace=keep.unnamed_blobs, history=keep.alias_history)
