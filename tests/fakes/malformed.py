"""Random requests for any message of the contract: wrong in values, wrong in structure, or wrong in bytes.

Everything is drawn from one ``random.Random``, so a failure is repeated by its seed.
"""

import math
import random
from collections.abc import Callable, Iterator

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

# Values that have broken servers before: limits of types, names that look almost right, text that is not what it says.
INTEGERS = (0, 1, 2, 255, 256, 65_535, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**64 - 1)
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e30, -1e30, 1e-45, math.inf, -math.inf, math.nan, 3.5e9)
TEXTS = (
    "",
    " ",
    "\x00",
    "a" * 5_000,
    "..",
    "../../etc/passwd",
    "artifacts/",
    "artifacts/nano-encoder",
    "artifacts/nano-encoder/versions/1",
    "artifacts/nano-encoder/versions/0",
    "artifacts/nano-encoder/versions/-1",
    "artifacts/nano-encoder/versions/99999999999999999999999",
    "artifacts/nano-encoder/aliases/production",
    "artifacts/nano-encoder/aliases/Nope!",
    "artifacts/nano-segmenter",
    "artifacts/no-such-thing",
    "artifacts/UPPER/versions/1",
    "embeddings/" + "0" * 64,
    "embeddings/xyz",
    "leases/none",
    "precomputeJobs/none",
    "tuningJobs/none",
    "0" * 64,
    "G" * 64,
    "*",
    '"1"',
    "\u202e\U0001f4a3",
    "'; drop table artifacts; --",
    "%s%n{}${jndi}",
)
BYTES = (
    b"",
    b"\x00",
    b"\xff\xd8\xff\xe0",
    b"\x89PNG\r\n\x1a\n",
    b"BM",
    b"II*\x00",
    b"RIFF\x00\x00\x00\x00WEBP",
    b"x" * 70_000,
)
_MAX_DEPTH = 6


def random_message(message_type: Callable[[], Message], draw: random.Random) -> Message:
    """Return a message of ``message_type`` whose fields are set at random, deeper ones more rarely."""
    message = message_type()
    _fill(message, draw, depth=0)
    return message


def mutated_bytes(data: bytes, draw: random.Random) -> bytes:
    """Return ``data`` with bits flipped, a piece cut out, doubled or replaced, or its end cut off."""
    if not data:
        return draw.randbytes(draw.randrange(1, 40))
    start = draw.randrange(len(data))
    end = min(len(data), start + draw.randrange(1, 20))
    kinds: tuple[Callable[[], bytes], ...] = (
        lambda: data[:start],
        lambda: data[:start] + data[end:],
        lambda: data[:end] + data[start:],
        lambda: data[:start] + draw.randbytes(end - start) + data[end:],
        lambda: data[:start] + bytes([data[start] ^ (1 << draw.randrange(8))]) + data[start + 1 :],
    )
    return draw.choice(kinds)()


def requests(message_type: Callable[[], Message], valid: list[Message], draw: random.Random) -> Iterator[bytes]:
    """Yield serialised requests without end: random ones, valid ones with one field changed, and broken bytes."""
    while True:
        base = draw.choice(valid) if valid and draw.random() < 0.7 else random_message(message_type, draw)
        kind = draw.randrange(3)
        if kind == 0:
            yield mutated_bytes(base.SerializeToString(), draw)
            continue
        changed = message_type()
        changed.CopyFrom(base)
        if kind == 1:
            _disturb(changed, draw)
        yield changed.SerializeToString()


def _fill(message: Message, draw: random.Random, depth: int) -> None:
    for field in message.DESCRIPTOR.fields:
        if draw.random() < 0.3 + 0.1 * depth:
            continue
        _set(message, field, draw, depth)


def _disturb(message: Message, draw: random.Random) -> None:
    """Change one field somewhere in the message."""
    target = message
    while draw.random() < 0.7:
        children = [value for field, value in target.ListFields() if _is_single_message(field)]
        children += [value[0] for field, value in target.ListFields() if _is_message_list(field) and len(value)]
        if not children:
            break
        target = draw.choice(children)
    fields = list(target.DESCRIPTOR.fields)
    if fields:
        field = draw.choice(fields)
        target.ClearField(field.name)
        if draw.random() < 0.8:
            _set(target, field, draw, depth=1)


def _is_single_message(field: FieldDescriptor) -> bool:
    return field.type == FieldDescriptor.TYPE_MESSAGE and not field.is_repeated


def _is_message_list(field: FieldDescriptor) -> bool:
    return field.type == FieldDescriptor.TYPE_MESSAGE and field.is_repeated and not _is_map(field)


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def _set(message: Message, field: FieldDescriptor, draw: random.Random, depth: int) -> None:
    if depth >= _MAX_DEPTH:
        return
    if _is_map(field):
        _set_map(message, field, draw)
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        count = draw.choice((1, 2, 5)) if field.is_repeated else 1
        for _ in range(count):
            child = getattr(message, field.name).add() if field.is_repeated else getattr(message, field.name)
            if not field.is_repeated:
                child.SetInParent()
            _fill(child, draw, depth + 1)
    elif field.is_repeated:
        values = [_scalar(field, draw) for _ in range(draw.choice((0, 1, 3, 40)))]
        getattr(message, field.name).extend(values)
    else:
        setattr(message, field.name, _scalar(field, draw))


def _set_map(message: Message, field: FieldDescriptor, draw: random.Random) -> None:
    value_field = field.message_type.fields_by_name["value"]
    entries = getattr(message, field.name)
    for _ in range(draw.choice((1, 3, 40))):
        key = draw.choice(TEXTS)
        if value_field.type == FieldDescriptor.TYPE_MESSAGE:
            entries[key].SetInParent()
        else:
            entries[key] = _scalar(value_field, draw)


def _scalar(field: FieldDescriptor, draw: random.Random) -> object:
    kind = field.type
    if kind == FieldDescriptor.TYPE_STRING:
        return draw.choice(TEXTS)
    if kind == FieldDescriptor.TYPE_BYTES:
        return draw.choice(BYTES) + draw.randbytes(draw.choice((0, 3, 50)))
    if kind == FieldDescriptor.TYPE_BOOL:
        return draw.random() < 0.5
    if kind in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        return draw.choice(FLOATS)
    if kind == FieldDescriptor.TYPE_ENUM:
        return draw.choice((*field.enum_type.values_by_number, 99))
    return _integer(kind, draw.choice(INTEGERS))


def _integer(kind: int, value: int) -> int:
    """Bring ``value`` into the range of an integer field's type."""
    if kind in (FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_FIXED32):
        return value % 2**32
    if kind in (FieldDescriptor.TYPE_UINT64, FieldDescriptor.TYPE_FIXED64):
        return value
    if kind in (FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_SINT32, FieldDescriptor.TYPE_SFIXED32):
        return (value + 2**31) % 2**32 - 2**31
    return (value + 2**63) % 2**64 - 2**63
