"""The kinds of failure every part of VP Lab speaks in.

There is one class for each of the sixteen gRPC status codes that are not OK, so the table in ``vplab.wire.status`` is
total in both directions; nothing here knows that gRPC exists.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class FieldViolation:
    """One input field and what is wrong with it."""

    field: str
    """Path in the request, in proto spelling, such as ``prompts[2].points[0].x``."""
    description: str
    """A sentence a person can act on."""


class VPLabError(Exception):
    """A failure with a machine-readable reason.

    ``reason`` is the name of a ``vplab.api.errors.v1.ErrorReason`` value without its ``ERROR_REASON_`` prefix;
    ``metadata`` holds the identifiers that the reason's documentation names (resource names, digests, limits).
    """

    default_reason: ClassVar[str] = "UNSPECIFIED"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.metadata = dict(metadata or {})
        self.retry_after_s = retry_after_s
        """When it makes sense to try again, in seconds; ``None`` where retrying cannot help or nobody knows."""


class InvalidInput(VPLabError):
    """The request can never succeed as it stands; ``violations`` names each field at fault."""

    default_reason = "INVALID_FIELD"

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        violations: Sequence[FieldViolation] = (),
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, reason=reason, metadata=metadata)
        self.violations = tuple(violations) or ((FieldViolation(field, message),) if field else ())

    def under(self, prefix: str) -> "InvalidInput":
        """Return the same error with every field path placed below ``prefix``."""
        moved = [FieldViolation(f"{prefix}.{v.field}" if v.field else prefix, v.description) for v in self.violations]
        return InvalidInput(self.message, field=prefix, violations=moved, reason=self.reason, metadata=self.metadata)


class OutOfRange(VPLabError):
    """The input is well formed but reaches past what exists, such as an offset beyond a blob's end."""

    default_reason = "OFFSET_OUT_OF_RANGE"


class NotFound(VPLabError):
    """The named resource does not exist, or has been deleted."""

    default_reason = "RESOURCE_NOT_FOUND"


class AlreadyExists(VPLabError):
    """A resource of that name exists and differs from what was to be created."""

    default_reason = "RESOURCE_ALREADY_EXISTS"


class FailedPrecondition(VPLabError):
    """The system is not in the state the call needs; retrying without changing something cannot help."""

    default_reason = "PRECONDITION_FAILED"


class Aborted(VPLabError):
    """Somebody else changed the resource in between; read it again and retry at a higher level."""

    default_reason = "ETAG_MISMATCH"


class ResourceExhausted(VPLabError):
    """A bounded resource (queue, quota, message size) is used up."""

    default_reason = "OVERLOADED"


class Unavailable(VPLabError):
    """The service cannot answer right now; the client retries by itself."""

    default_reason = "SERVICE_UNAVAILABLE"


class DeadlineExceeded(VPLabError):
    """The deadline passed, or would pass before the work could end."""

    default_reason = "DEADLINE_EXCEEDED"


class Cancelled(VPLabError):
    """The caller, or an operator, cancelled the work."""

    default_reason = "CANCELLED"


class Unauthenticated(VPLabError):
    """The call carries no valid credentials."""

    default_reason = "CREDENTIALS_INVALID"


class PermissionDenied(VPLabError):
    """The credentials are valid but do not allow this call."""

    default_reason = "PERMISSION_DENIED"


class Unimplemented(VPLabError):
    """The server does not offer this call."""

    default_reason = "NOT_IMPLEMENTED"


class DataLoss(VPLabError):
    """Stored bytes no longer match their digest."""

    default_reason = "DIGEST_MISMATCH"


class Internal(VPLabError):
    """A fault of the service itself; the message carries an id to find in its log, never internals."""

    default_reason = "INTERNAL"


class Unknown(VPLabError):
    """A failure that named no cause, for instance from an intermediary."""

    default_reason = "UNKNOWN"
