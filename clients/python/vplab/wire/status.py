"""The one table between the kinds of ``vplab.errors`` and gRPC status, total in both directions.

A server turns an error into ``google.rpc.Status`` (code, message, ErrorInfo, BadRequest, RetryInfo) and its trailers; a
client turns any failed call back into the same kind, reason, violations and retry time.
"""

from collections.abc import Iterable
from typing import Final, cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from vplab import errors
from vplab.api.errors.v1.errors_pb2 import ErrorReason
from vplab.errors import FieldViolation, InvalidInput, VPLabError

DOMAIN: Final = "vplab.io"
DETAILS_KEY: Final = "grpc-status-details-bin"
PUSHBACK_KEY: Final = "grpc-retry-pushback-ms"

KIND_TO_CODE: Final[dict[type[VPLabError], grpc.StatusCode]] = {
    errors.Cancelled: grpc.StatusCode.CANCELLED,
    errors.Unknown: grpc.StatusCode.UNKNOWN,
    errors.InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.ResourceExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Aborted: grpc.StatusCode.ABORTED,
    errors.OutOfRange: grpc.StatusCode.OUT_OF_RANGE,
    errors.Unimplemented: grpc.StatusCode.UNIMPLEMENTED,
    errors.Internal: grpc.StatusCode.INTERNAL,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.DataLoss: grpc.StatusCode.DATA_LOSS,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
}
CODE_TO_KIND: Final = {code: kind for kind, code in KIND_TO_CODE.items()}

_NUMBER_TO_CODE: Final = {cast(tuple[int, str], code.value)[0]: code for code in grpc.StatusCode}
_REASON_PREFIX: Final = "ERROR_REASON_"
REASONS: Final = frozenset(name.removeprefix(_REASON_PREFIX) for name in ErrorReason.keys()) - {"UNSPECIFIED"}  # noqa: SIM118

# A peer refuses trailers above 8 KiB, and then the caller would see that refusal instead of the error. The message is
# sent twice (percent-encoded, at worst three bytes for one, and inside the details), the details as base64 (4 for 3).
_MAX_MESSAGE_BYTES: Final = 512
_MAX_VALUE_BYTES: Final = 256
_MAX_DETAILS_BYTES: Final = 3072


def code_of(error: VPLabError) -> grpc.StatusCode:
    """Return the status code of an error's kind; a bare ``VPLabError`` names no kind and is UNKNOWN."""
    for kind in type(error).__mro__:
        if kind in KIND_TO_CODE:
            return KIND_TO_CODE[kind]
    return grpc.StatusCode.UNKNOWN


def status_from_error(error: VPLabError) -> status_pb2.Status:
    """Return the status with its details; texts are cut so that the trailers stay below gRPC's 8 KiB."""
    code = code_of(error)
    status = status_pb2.Status(
        code=cast(tuple[int, str], code.value)[0], message=_cut(error.message, _MAX_MESSAGE_BYTES)
    )
    reason = error.reason if error.reason in REASONS else CODE_TO_KIND[code].default_reason
    info = error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN)
    for key, value in list(error.metadata.items())[:8]:
        info.metadata[_cut(key, 64)] = _cut(value, _MAX_VALUE_BYTES)
    status.details.add().Pack(info)
    if error.retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(max(0, round(error.retry_after_s * 1e9)))
        status.details.add().Pack(retry)
    if isinstance(error, InvalidInput) and error.violations:
        room = _MAX_DETAILS_BYTES - status.ByteSize()
        status.details.add().Pack(_bad_request(error.violations, room))
    return status


def trailers_from_error(error: VPLabError) -> tuple[tuple[str, str | bytes], ...]:
    """Return the trailing metadata of a failed call: the details, and the retry pushback of gRFC A6 when known."""
    details = (DETAILS_KEY, status_from_error(error).SerializeToString())
    if error.retry_after_s is None:
        return (details,)
    return (details, (PUSHBACK_KEY, str(max(0, round(error.retry_after_s * 1000)))))


def error_from_status(status: status_pb2.Status) -> VPLabError:
    """Return the error that a status stands for; an unknown code becomes ``Unknown``."""
    code = _NUMBER_TO_CODE.get(status.code, grpc.StatusCode.UNKNOWN)
    reason, metadata, retry_after_s = None, {}, None
    violations: list[FieldViolation] = []
    for detail in status.details:
        info, retry, bad = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo(), error_details_pb2.BadRequest()
        if detail.Unpack(info):
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
        elif detail.Unpack(bad):
            violations += [FieldViolation(v.field, v.description) for v in bad.field_violations]
    return _make(code, status.message, reason, metadata, retry_after_s, violations)


def error_from_call(
    code: grpc.StatusCode, message: str | None, trailers: Iterable[tuple[str, str | bytes]] | None
) -> VPLabError:
    """Return the error of a failed call, from its details where the peer sent them, else from code and message alone.

    A call can fail without reaching a server of ours (no connection, local deadline, a proxy): its reason is then the
    kind's default one.
    """
    values = {key: value for key, value in trailers or ()}
    packed = values.get(DETAILS_KEY)
    if isinstance(packed, bytes):
        try:
            status = status_pb2.Status.FromString(packed)
        except DecodeError:
            status = None
        # gRPC's own code wins: details of another code come from something between the two ends.
        if status is not None and _NUMBER_TO_CODE.get(status.code) is code:
            return error_from_status(status)
    reason = None
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "message larger than max" in (message or ""):
        reason = "MESSAGE_TOO_LARGE"  # gRPC core refuses such messages itself, before any code of ours
    return _make(code, message or code.name, reason, {}, _pushback_s(values.get(PUSHBACK_KEY)), [])


def _make(
    code: grpc.StatusCode,
    message: str,
    reason: str | None,
    metadata: dict[str, str],
    retry_after_s: float | None,
    violations: list[FieldViolation],
) -> VPLabError:
    kind = CODE_TO_KIND.get(code, errors.Unknown)
    if kind is InvalidInput:
        return InvalidInput(message, violations=violations, reason=reason, metadata=metadata)
    return kind(message, reason=reason, metadata=metadata, retry_after_s=retry_after_s)


def _bad_request(violations: tuple[FieldViolation, ...], room_bytes: int) -> error_details_pb2.BadRequest:
    bad = error_details_pb2.BadRequest()
    for violation in violations:
        bad.field_violations.add(
            field=_cut(violation.field, _MAX_VALUE_BYTES), description=_cut(violation.description, _MAX_VALUE_BYTES)
        )
        if bad.ByteSize() > room_bytes and len(bad.field_violations) > 1:
            del bad.field_violations[-1]
            break
    return bad


def _pushback_s(value: str | bytes | None) -> float | None:
    # A negative or unreadable pushback means "do not retry", which is what no retry time says too.
    return int(value) / 1000 if isinstance(value, str) and value.isascii() and value.isdigit() else None


def _cut(text: str, size_bytes: int) -> str:
    return text.encode("utf-8", "replace")[:size_bytes].decode("utf-8", "ignore")
