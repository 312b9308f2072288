"""The registry's failures, each a kind of ``vplab.errors`` with the metadata its reason documents."""

from vplab.errors import (
    Aborted,
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidInput,
    NotFound,
    OutOfRange,
    ResourceExhausted,
    Unavailable,
)


class ResourceNotFound(NotFound):
    """No resource has that name, or it was deleted."""

    def __init__(self, name: str, detail: str = "does not exist") -> None:
        super().__init__(f"{name} {detail}", metadata={"name": name})


class ArtifactExists(AlreadyExists):
    """The artifact's name is taken."""

    def __init__(self, name: str, *, is_deleted: bool) -> None:
        hint = "exists but is deleted; undelete it or choose another name" if is_deleted else "exists already"
        super().__init__(f"{name} {hint}", metadata={"name": name})


class RequestIdReused(AlreadyExists):
    """The request_id belongs to a different request."""

    default_reason = "REQUEST_ID_REUSED"

    def __init__(self, request_id: str) -> None:
        super().__init__(
            f"request_id {request_id} was used for a different request", metadata={"request_id": request_id}
        )


class EtagMismatch(Aborted):
    """The resource changed since it was read."""

    def __init__(self, name: str, current: str) -> None:
        now = f"its etag is {current}" if current else "it does not exist"
        super().__init__(f"{name} is not what the etag says: {now}", metadata={"name": name, "etag": current})


class BlobMissing(FailedPrecondition):
    """A manifest names a blob that is not stored."""

    default_reason = "BLOB_MISSING"

    def __init__(self, digest: str, path: str) -> None:
        super().__init__(f"blob {digest} of file {path!r} is not stored; upload it first", metadata={"digest": digest})


class ParityFailed(FailedPrecondition):
    """A version's own report says that its graph does not match what it was made from."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} did not pass its parity report, so no alias may point at it", metadata={"name": name})


class ParityMissing(FailedPrecondition):
    """A version's graph was never compared with what it was made from, as far as its manifest says."""

    def __init__(self, name: str, kind: str, metric: str) -> None:
        super().__init__(
            f"{name} has no parity report: its manifest lacks the metric {metric}, which production needs of every "
            f"{kind}. Import or tune it with VP Lab, or compare its graph yourself and publish it with {metric} = 1; "
            "until then another alias may name it",
            metadata={"name": name, "missing": f"metrics[{metric}]"},
        )


class ArtifactInUse(FailedPrecondition):
    """A live lease holds the artifact."""

    default_reason = "RESOURCE_IN_USE"

    def __init__(self, name: str, holder: str) -> None:
        super().__init__(f"{name} is leased by {holder}", metadata={"name": name, "holder": holder})


class UploadMismatch(InvalidInput):
    """The uploaded bytes are not what the header announced."""

    def __init__(self, what: str, expected: str, actual: str, *, field: str) -> None:
        super().__init__(
            f"the upload has {what} {actual}, announced was {expected}",
            field=field,
            reason="DIGEST_MISMATCH",
            metadata={"expected": expected, "actual": actual},
        )


class BlobDamaged(DataLoss):
    """The stored bytes no longer match their digest or size."""

    def __init__(self, expected: str, actual: str) -> None:
        super().__init__(
            f"the stored bytes of blob {expected} are damaged: {actual}",
            metadata={"expected": expected, "actual": actual},
        )


class WrongOffset(OutOfRange):
    """An offset lies past the end, or an upload does not continue where it stopped."""

    def __init__(self, message: str, expected: int) -> None:
        super().__init__(message, metadata={"offset": str(expected)})


class RevisionExpired(OutOfRange):
    """A watch asked for revisions that are not kept."""

    default_reason = "REVISION_EXPIRED"

    def __init__(self, revision: int, oldest: int, latest: int) -> None:
        super().__init__(
            f"changes after revision {revision} are not kept (the history reaches from {oldest} to {latest}); list the"
            " aliases and watch from the revision of that list",
            metadata={"oldest_revision": str(oldest)},
        )


class ChunkTooLarge(ResourceExhausted):
    """One message carries more than the documented limit."""

    default_reason = "MESSAGE_TOO_LARGE"

    def __init__(self, actual: int, limit: int) -> None:
        super().__init__(f"a chunk holds {actual} bytes, the limit is {limit}", metadata={"limit": str(limit)})


class StorageFull(ResourceExhausted):
    """The disk, bucket or database takes no more."""

    default_reason = "STORAGE_FULL"


class StoreUnavailable(Unavailable):
    """The database or the object store cannot answer now."""

    def __init__(self, service: str, detail: str) -> None:
        super().__init__(f"{service}: {detail}", metadata={"service": service}, retry_after_s=1.0)
