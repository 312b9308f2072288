"""Blobs as objects in S3 or another object store that obstore knows: ``sha256/ab/cdef...`` below a prefix.

The bytes are whole and verified in a local file before they travel. A put appears all at once, also one of many parts,
and the key names the content, so a plain put is enough: whoever comes second writes the same bytes.
"""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import S3Store

from vplab.registry.backends.file_blobs import blob_path
from vplab.registry.errors import ResourceNotFound, StorageFull, StoreUnavailable

if TYPE_CHECKING:
    from obstore.store import ObjectStore

PIECE_BYTES: Final = 1024 * 1024
PART_BYTES: Final = 8 * 1024 * 1024
"""S3 takes 10,000 parts; larger blobs get larger parts."""
MAX_PARTS: Final = 9_000


class ObstoreBlobs:
    """Implements ``BlobStore``."""

    def __init__(self, store: "ObjectStore") -> None:
        self._store = store

    def store(self, staged: Path, sha256: str) -> None:
        size = staged.stat().st_size
        part = max(PART_BYTES, -(-size // MAX_PARTS))
        try:
            obstore.put(self._store, blob_path(sha256), staged, chunk_size=part, max_concurrency=4)
        except (BaseError, OSError) as error:
            raise _translated(error) from error

    def size_bytes(self, sha256: str) -> int | None:
        try:
            return int(obstore.head(self._store, blob_path(sha256))["size"])
        except (FileNotFoundError, NotFoundError):
            return None
        except (BaseError, OSError) as error:
            raise _translated(error) from error

    def read(self, sha256: str, offset_bytes: int) -> Iterator[bytes]:
        try:
            found = obstore.get(self._store, blob_path(sha256), options={"range": {"offset": offset_bytes}})
            for buffer in found.stream(min_chunk_size=PIECE_BYTES):
                view = memoryview(buffer)
                for start in range(0, len(view), PIECE_BYTES):
                    yield bytes(view[start : start + PIECE_BYTES])
        except (FileNotFoundError, NotFoundError):
            raise ResourceNotFound(f"blob {sha256}") from None
        except (BaseError, OSError) as error:
            raise _translated(error) from error

    def delete(self, sha256: str) -> None:
        try:
            obstore.delete(self._store, blob_path(sha256))
        except (FileNotFoundError, NotFoundError):
            return
        except (BaseError, OSError) as error:
            raise _translated(error) from error


def open_bucket(url: str, *, allow_http: bool) -> "ObjectStore":
    """Open ``s3://bucket/prefix`` with endpoint, region and credentials from the standard ``AWS_*`` variables."""
    where = urlsplit(url)
    return S3Store(
        where.netloc,
        prefix=unquote(where.path).strip("/") or None,
        client_options={
            "allow_http": allow_http,
            "connect_timeout": timedelta(seconds=5),
            # Of a whole request: a large blob on a slow line takes its time, a stalled one is noticed by the next.
            "timeout": timedelta(hours=2),
            "read_timeout": timedelta(seconds=30),
        },
        retry_config={"max_retries": 4, "retry_timeout": timedelta(seconds=30)},
    )


def _translated(error: Exception) -> Exception:
    text = str(error)
    if "QuotaExceeded" in text or "InsufficientStorage" in text or "StorageFull" in text:
        return StorageFull("the object store takes no more")
    return StoreUnavailable("object store", "does not answer as expected")
