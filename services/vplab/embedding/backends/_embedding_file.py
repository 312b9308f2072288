"""The file of one embedding: safetensors with the rest of the embedding, and a CRC-32 of both, as its metadata.

The checksum tells damage, not forgery; a sha256 takes three times as long.
"""

import json
import zlib
from typing import Any

import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from vplab.embedding.values import Embedding, ModelRef, NamedTensor, Precision
from vplab.vision.specs import canonical_json

_DTYPES: dict[str, type[np.float32] | type[np.float16]] = {"F32": np.float32, "F16": np.float16}


class Damaged(Exception):
    """Stored bytes are not what was written."""


def encode_embedding(embedding: Embedding) -> bytes:
    """Return the content of a file."""
    header = canonical_json(_header(embedding))
    metadata = {"header": header.decode(), "crc32": _checksum(header, embedding.tensors)}
    return save({tensor.name: np.ascontiguousarray(tensor.array) for tensor in embedding.tensors}, metadata)


def decode_embedding(data: bytes) -> Embedding:
    """Read the content of a file. Raises Damaged for anything that encode_embedding did not write."""
    try:
        metadata = _metadata(data)
        header = json.loads(metadata["header"])
        stored = dict(deserialize(data))
        tensors = tuple(_tensor(name, role, stored[name]) for name, role in header["tensors"])
        if _checksum(metadata["header"].encode(), tensors) != metadata["crc32"]:
            raise Damaged("its checksum does not fit")
        return Embedding(
            key=header["key"],
            encoder=ModelRef(**header["encoder"]),
            image_digest=header["image_digest"],
            image_hw=(header["image_hw"][0], header["image_hw"][1]),
            precision=Precision(header["precision"]),
            tensors=tensors,
        )
    except (SafetensorError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise Damaged(f"it cannot be read: {error}") from error


def _header(embedding: Embedding) -> dict[str, Any]:
    return {
        "key": embedding.key,
        "encoder": {"name": embedding.encoder.name, "digest": embedding.encoder.digest},
        "image_digest": embedding.image_digest,
        "image_hw": list(embedding.image_hw),
        "precision": embedding.precision,
        "tensors": [[tensor.name, tensor.role] for tensor in embedding.tensors],
    }


def _checksum(header: bytes, tensors: tuple[NamedTensor, ...]) -> str:
    crc = zlib.crc32(header)
    for tensor in tensors:
        crc = zlib.crc32(f":{tensor.array.dtype.name}{list(tensor.array.shape)}:".encode(), crc)
        crc = zlib.crc32(np.ascontiguousarray(tensor.array).data, crc)
    return f"{crc:08x}"


def _metadata(data: bytes) -> dict[str, str]:
    """Return a safetensors file's own metadata: JSON after an eight-byte little-endian length."""
    size = int.from_bytes(data[:8], "little")
    found: dict[str, str] = json.loads(data[8 : 8 + size])["__metadata__"]
    return found


def _tensor(name: str, role: Any, stored: dict[str, Any]) -> NamedTensor:
    array = np.frombuffer(stored["data"], dtype=_DTYPES[stored["dtype"]]).reshape(stored["shape"])
    array.flags.writeable = False
    return NamedTensor(name, role, array)
