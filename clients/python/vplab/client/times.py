"""Times and spans of the contract as Python's own."""

from datetime import UTC, datetime

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from vplab.errors import InvalidInput


def time_of(message: Message, field: str) -> datetime | None:
    """Return a message's timestamp in UTC, None where it is unset. Raises InvalidInput outside of years 1 to 9999."""
    if not message.HasField(field):
        return None
    stamp: Timestamp = getattr(message, field)
    try:
        time: datetime = stamp.ToDatetime(tzinfo=UTC)
        return time
    except (ValueError, OverflowError) as error:
        raise InvalidInput(f"is no time: {error}", field=field) from error


def duration(seconds: float) -> Duration:
    """Return a span of seconds."""
    message = Duration()
    message.FromNanoseconds(round(seconds * 1e9))
    return message
