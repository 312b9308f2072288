"""Dense arrays as ``vplab.api.vision.v1.Tensor``: C order, little-endian."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vplab.api.vision.v1 import vision_pb2
from vplab.errors import InvalidInput

_DTYPES: dict[int, np.dtype[Any]] = {
    vision_pb2.DATA_TYPE_FLOAT32: np.dtype("<f4"),
    vision_pb2.DATA_TYPE_FLOAT16: np.dtype("<f2"),
    vision_pb2.DATA_TYPE_UINT8: np.dtype("u1"),
    vision_pb2.DATA_TYPE_INT64: np.dtype("<i8"),
}
_DATA_TYPES = {dtype: value for value, dtype in _DTYPES.items()}

MAX_AXES = 8
"""More axes than any tensor of this project has; numpy itself stops at 64."""
MAX_SIZE_BYTES = 1 << 30
"""Guards the arithmetic on a shape with an empty axis; a message is far smaller."""


def tensor_to_proto(array: NDArray[Any]) -> vision_pb2.Tensor:
    """Encode an array of float32, float16, uint8 or int64.

    Raises InvalidInput for any other element type.
    """
    data_type = _DATA_TYPES.get(array.dtype.newbyteorder("<"))
    if data_type is None:
        raise InvalidInput(f"cannot send elements of type {array.dtype}", field="tensor.dtype")
    little_endian = np.ascontiguousarray(array, dtype=_DTYPES[data_type])
    return vision_pb2.Tensor(shape=array.shape, dtype=data_type, data=little_endian.tobytes())  # type: ignore[arg-type]


def tensor_from_proto(
    message: vision_pb2.Tensor,
    *,
    field: str,
    shape: Sequence[int | None] | None = None,
    finite: bool = False,
) -> NDArray[Any]:
    """Decode a tensor; the array is read-only and shares the message's bytes.

    ``shape``, when given, is the one required; ``None`` stands for any length of that axis. ``finite`` refuses NaN and
    infinity.
    Raises InvalidInput for an unknown element type, a length that does not fit the shape, or a broken requirement.
    """
    dtype, axes = tensor_header_from_proto(message, field=field)
    expected_bytes = math.prod(axes) * dtype.itemsize
    if len(message.data) != expected_bytes:
        raise InvalidInput(
            f"{len(message.data)} bytes of data; shape {list(axes)} of {dtype.name} needs {expected_bytes}",
            field=f"{field}.data",
        )
    if shape is not None and not _fits(axes, shape):
        wanted = ["any" if axis is None else axis for axis in shape]
        raise InvalidInput(f"shape is {list(axes)}; expected {wanted}", field=f"{field}.shape")
    array = np.frombuffer(message.data, dtype=dtype).reshape(axes)
    if finite and dtype.kind == "f" and not np.isfinite(array).all():
        raise InvalidInput("holds values that are not finite", field=f"{field}.data")
    return array


def tensor_header_from_proto(message: vision_pb2.Tensor, *, field: str) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Return element type and shape of a tensor whose data may come separately.

    Raises InvalidInput for an unknown element type or an absurd shape.
    """
    dtype = _DTYPES.get(message.dtype)
    if dtype is None:
        raise InvalidInput("element type is unspecified or unknown", field=f"{field}.dtype")
    axes = tuple(message.shape)
    if len(axes) > MAX_AXES:
        raise InvalidInput(f"{len(axes)} axes; at most {MAX_AXES}", field=f"{field}.shape")
    if math.prod(max(axis, 1) for axis in axes) * dtype.itemsize > MAX_SIZE_BYTES:
        raise InvalidInput(f"shape {list(axes)} is too large", field=f"{field}.shape")
    return dtype, axes


def _fits(axes: tuple[int, ...], shape: Sequence[int | None]) -> bool:
    return len(axes) == len(shape) and all(want in (None, have) for have, want in zip(axes, shape, strict=True))
