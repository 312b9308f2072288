"""Embeddings as files in a folder or objects in a bucket, one for each key.

obstore 0.12's asynchronous listing aborts the interpreter at exit, so its synchronous calls are made from threads.
"""

import asyncio
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import unquote, urlsplit

import obstore
import structlog
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import LocalStore, ObjectStore, S3Store

from vplab.embedding import metrics
from vplab.embedding.backends._direct_file import DirectWriter
from vplab.embedding.backends._embedding_file import Damaged, decode_embedding, encode_embedding
from vplab.embedding.values import Embedding
from vplab.errors import ResourceExhausted, Unavailable

_log = structlog.get_logger(__name__)

Value = TypeVar("Value")

_SUFFIX: Final = ".safetensors"
# Every request would otherwise wait for a bucket that is away before it computes.
_PAUSE_S: Final = 10.0
_FULL: Final = ("No space left", "os error 28", "QuotaExceeded", "InsufficientStorage", "StorageFull")
_MISSING: Final = (FileNotFoundError, NotFoundError)


def open_bucket(url: str) -> ObjectStore:
    """Open ``s3://bucket/prefix`` with endpoint, region and credentials from the standard ``AWS_*`` variables."""
    where = urlsplit(url)
    endpoints = (os.environ.get(name, "") for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"))
    return S3Store(
        where.netloc,
        prefix=unquote(where.path).strip("/") or None,
        client_options={
            "allow_http": any(endpoint.startswith("http://") for endpoint in endpoints),
            "connect_timeout": timedelta(seconds=2),
            "timeout": timedelta(seconds=10),
        },
        retry_config={"max_retries": 1, "retry_timeout": timedelta(seconds=5)},
    )


class ObstoreEmbeddings:
    """Implements EmbeddingStore; the least recently used files go when the bound is passed.

    The order of use is known for what this process read or wrote and, in a folder, kept as modification times across
    restarts. Several processes may share a bucket: each keeps to the bound by what it knows, and what one removes is a
    miss for the others.
    """

    def __init__(self, store: ObjectStore, max_bytes: int, *, num_threads: int = 4) -> None:
        self._store = store
        self._folder = Path(store.prefix) if isinstance(store, LocalStore) and store.prefix else None
        self._direct = DirectWriter()
        self._max_bytes = max_bytes
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._num_bytes = 0
        self._paused_until = 0.0
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="embedding-store")

    async def read(self, key: str) -> Embedding | None:
        """Read and verify a file; a damaged one is removed."""
        if time.monotonic() < self._paused_until:
            return None
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
        except _MISSING:
            self._forget(key)
            return None
        except (BaseError, OSError) as error:
            self._paused_until = time.monotonic() + _PAUSE_S
            _log.warning("embedding_store_away", error=str(error), pause_s=_PAUSE_S)
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
            self._put(_path(embedding.key), data)
        except (BaseError, OSError) as error:
            if any(text in str(error) for text in _FULL):
                raise ResourceExhausted("The embedding store is full", reason="STORAGE_FULL") from error
            raise Unavailable("The embedding store cannot be written") from error
        self._used(embedding.key, len(data))
        self._evict()

    def _put(self, path: str, data: bytes) -> None:
        if self._folder is None or not self._direct.write(self._folder / path, data):
            obstore.put(self._store, path, data)

    def _index(self) -> None:
        if self._folder is not None:
            for leftover in self._folder.glob("*/*#*"):  # obstore's staging files after a kill
                leftover.unlink(missing_ok=True)
        found = [
            (meta["last_modified"], meta["path"], meta["size"]) for page in obstore.list(self._store) for meta in page
        ]
        older = {Path(path).name.removesuffix(_SUFFIX): size for _, path, size in sorted(found)}
        with self._lock:
            known = dict(self._sizes)  # used since the start, so newer than all that was found
            older = {key: size for key, size in older.items() if key not in known}
            self._sizes = OrderedDict(older | known)
            self._num_bytes = sum(self._sizes.values())
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
        except _MISSING:
            return
        except (BaseError, OSError) as error:
            _log.warning("embedding_not_removed", key=key, error=str(error))

    def _evict(self) -> None:
        while True:
            with self._lock:
                if self._num_bytes <= self._max_bytes or len(self._sizes) < 2:
                    break
                oldest = next(iter(self._sizes))
            self._delete(oldest)
            metrics.DURABLE.evicted()
        self._note_size()

    def _note_size(self) -> None:
        metrics.DURABLE.holds(len(self._sizes), self._num_bytes)


def _path(key: str) -> str:
    return f"{key[:2]}/{key}{_SUFFIX}"
