"""Embeddings as safetensors files in a folder or bucket.

A file holds the tensors, and as metadata the rest of the embedding and a sha256 over both, verified on every read. Two
traps of obstore 0.12: its asynchronous listing aborts the interpreter at exit, so the synchronous calls are made from
threads; and its exceptions differ by cause but share no useful base.
"""

import asyncio
import hashlib
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import obstore
import structlog
from obstore.store import LocalStore, ObjectStore
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from vplab.embedding import metrics
from vplab.embedding.values import Embedding, ModelRef, NamedTensor, Precision
from vplab.errors import ResourceExhausted, Unavailable
from vplab.vision.specs import canonical_json

_log = structlog.get_logger(__name__)

Value = TypeVar("Value")

_SUFFIX = ".safetensors"
_DTYPES: dict[str, type[np.float32] | type[np.float16]] = {"F32": np.float32, "F16": np.float16}


class Damaged(Exception):
    """Stored bytes are not what was written."""


class ObstoreEmbeddings:
    """Implements EmbeddingStore; the least recently used files go when the bound is passed.

    The order of use is known for what this process read or wrote and, in a folder, kept as modification times across
    restarts. Several processes may share a bucket: each keeps to the bound by what it knows, and what one removes is a
    miss for the others.
    """

    def __init__(self, store: ObjectStore, max_bytes: int, *, num_threads: int = 4) -> None:
        self._store = store
        self._folder = Path(store.prefix) if isinstance(store, LocalStore) and store.prefix else None
        self._max_bytes = max_bytes
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="embedding-store")

    async def read(self, key: str) -> Embedding | None:
        """Read and verify a file; a damaged one is removed."""
        return await self._in_thread(lambda: self._read(key))

    async def contains(self, key: str) -> bool:
        """Say whether this process knows of the file."""
        return key in self._sizes

    async def write(self, embedding: Embedding) -> None:
        """Write a file in one step, so that a reader never sees half of one."""
        await self._in_thread(lambda: self._write(embedding))

    async def index(self) -> None:
        """Learn what is stored already, oldest first, and remove what exceeds the bound."""
        await self._in_thread(self._index)

    def close(self) -> None:
        """Wait for the calls under way."""
        self._threads.shutdown(wait=True)

    async def _in_thread(self, work: Callable[[], Value]) -> Value:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _read(self, key: str) -> Embedding | None:
        try:
            data = bytes(obstore.get(self._store, _path(key)).bytes())
        except FileNotFoundError:
            self._forget(key)
            return None
        except Exception as error:  # a bucket that is away must cost a computation, not the request
            _log.warning("embedding_store_unreadable", key=key, error=str(error))
            return None
        try:
            embedding = decode_embedding(data)
            if embedding.key != key:
                raise Damaged(f"it holds {embedding.key}")
        except Damaged as error:
            metrics.DAMAGED.inc()
            _log.error("embedding_damaged", key=key, error=str(error))
            self._delete(key)
            return None
        self._used(key, len(data))
        return embedding

    def _write(self, embedding: Embedding) -> None:
        data = encode_embedding(embedding)
        if len(data) > self._max_bytes:
            return
        try:
            obstore.put(self._store, _path(embedding.key), data)
        except Exception as error:
            if "No space left" in str(error) or "os error 28" in str(error):
                raise ResourceExhausted("The embedding store is full", reason="STORAGE_FULL") from error
            raise Unavailable(f"The embedding store cannot be written: {error}") from error
        self._used(embedding.key, len(data))
        self._evict()

    def _index(self) -> None:
        if self._folder is not None:
            for leftover in self._folder.glob("*/*#*"):  # obstore's staging files after a kill
                leftover.unlink(missing_ok=True)
        found = [
            (meta["last_modified"], meta["path"], meta["size"]) for page in obstore.list(self._store) for meta in page
        ]
        with self._lock:
            for _, path, size in sorted(found):
                key = Path(path).name.removesuffix(_SUFFIX)
                if path == _path(key) and key not in self._sizes:
                    self._sizes[key] = size
                    self._sizes.move_to_end(key, last=False)
                    self._num_bytes += size
            # Inserted in front one by one, the newest came out first: put the old ones into their order.
            for _, path, _ in sorted(found, reverse=True):
                key = Path(path).name.removesuffix(_SUFFIX)
                if key in self._sizes:
                    self._sizes.move_to_end(key, last=False)
        self._evict()

    def _used(self, key: str, num_bytes: int) -> None:
        with self._lock:
            self._num_bytes += num_bytes - self._sizes.pop(key, 0)
            self._sizes[key] = num_bytes
        self._note_size()
        if self._folder is not None:
            try:
                os.utime(self._folder / _path(key))
            except OSError:
                return  # another process removed it

    def _forget(self, key: str) -> None:
        with self._lock:
            self._num_bytes -= self._sizes.pop(key, 0)
        self._note_size()

    def _delete(self, key: str) -> None:
        self._forget(key)
        try:
            obstore.delete(self._store, _path(key))
        except FileNotFoundError:
            return
        except Exception as error:
            _log.warning("embedding_not_removed", key=key, error=str(error))

    def _evict(self) -> None:
        while True:
            with self._lock:
                if self._num_bytes <= self._max_bytes or len(self._sizes) < 2:
                    break
                oldest = next(iter(self._sizes))
            self._delete(oldest)
            metrics.EVICTIONS.labels("durable").inc()
        self._note_size()

    def _note_size(self) -> None:
        metrics.CACHE_BYTES.labels("durable").set(self._num_bytes)
        metrics.CACHE_ENTRIES.labels("durable").set(len(self._sizes))


def encode_embedding(embedding: Embedding) -> bytes:
    """Return the content of a file."""
    header = canonical_json(_header(embedding))
    metadata = {"header": header.decode(), "sha256": _checksum(header, embedding.tensors)}
    return save({tensor.name: np.ascontiguousarray(tensor.array) for tensor in embedding.tensors}, metadata)


def decode_embedding(data: bytes) -> Embedding:
    """Read the content of a file. Raises Damaged for anything that encode_embedding did not write."""
    try:
        metadata = _metadata(data)
        header = json.loads(metadata["header"])
        stored = dict(deserialize(data))
        tensors = tuple(_tensor(name, role, stored[name]) for name, role in header["tensors"])
        if _checksum(metadata["header"].encode(), tensors) != metadata["sha256"]:
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
    digest = hashlib.sha256(header)
    for tensor in tensors:
        digest.update(f":{tensor.array.dtype.name}{list(tensor.array.shape)}:".encode())
        digest.update(np.ascontiguousarray(tensor.array).data)
    return digest.hexdigest()


def _metadata(data: bytes) -> dict[str, str]:
    """Return a safetensors file's own metadata: JSON after an eight-byte little-endian length."""
    size = int.from_bytes(data[:8], "little")
    found: dict[str, str] = json.loads(data[8 : 8 + size])["__metadata__"]
    return found


def _tensor(name: str, role: Any, stored: dict[str, Any]) -> NamedTensor:
    array = np.frombuffer(bytes(stored["data"]), dtype=_DTYPES[stored["dtype"]]).reshape(stored["shape"])
    return NamedTensor(name, role, array)


def _path(key: str) -> str:
    return f"{key[:2]}/{key}{_SUFFIX}"
