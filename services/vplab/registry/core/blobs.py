"""Blobs: bytes under their sha256, visible only once they are whole, verified and durable."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Final

from vplab.errors import InvalidInput
from vplab.registry.canonical_json import MAX_SAFE_INTEGER
from vplab.registry.errors import (
    BlobDamaged,
    ChunkTooLarge,
    ResourceNotFound,
    StorageFull,
    StoreUnavailable,
    UploadMismatch,
    WrongOffset,
)
from vplab.registry.ports import BlobStore, Catalog, Clock, StagedUpload, StagedUploads, Transaction
from vplab.registry.values import BlobRecord, BlobState, UploadStatus

MAX_CHUNK_BYTES: Final = 1024 * 1024
TOUCH_AFTER: Final = timedelta(minutes=1)
"""A blob asked for again within this time is not written down again."""


class Upload:
    """One upload on its way; ends with ``finish``, or with ``keep`` when it breaks off."""

    def __init__(self, blobs: "Blobs", staged: StagedUpload, sha256: str, size_bytes: int) -> None:
        self._blobs = blobs
        self._staged = staged
        self._sha256 = sha256
        self._size_bytes = size_bytes

    def write(self, chunk: bytes) -> None:
        """Append. Raises ChunkTooLarge, UploadMismatch past the announced size, StorageFull."""
        if len(chunk) > MAX_CHUNK_BYTES:
            raise ChunkTooLarge(len(chunk), MAX_CHUNK_BYTES)
        size = self._staged.size_bytes + len(chunk)
        if size > self._size_bytes:
            self._staged.discard()
            raise UploadMismatch("size", str(self._size_bytes), f"{size} or more", field="chunk")
        self._staged.write(chunk)

    def finish(self) -> None:
        """Verify and store. Raises UploadMismatch; bytes with a wrong digest are dropped, too few are kept."""
        if self._staged.size_bytes != self._size_bytes:
            raise UploadMismatch("size", str(self._size_bytes), str(self._staged.size_bytes), field="chunk")
        path, digest = self._staged.finish()
        if digest != self._sha256:
            self._staged.discard()
            raise UploadMismatch("sha256", self._sha256, digest, field="header.sha256")
        self._blobs.store_verified(self._staged, path, self._sha256, self._size_bytes)

    def keep(self) -> None:
        """Let a later upload go on from here; does nothing after ``finish`` or an error that dropped the bytes."""
        self._staged.keep()


class Blobs:
    """Use cases on blobs."""

    def __init__(self, catalog: Catalog, store: BlobStore, uploads: StagedUploads, now: Clock) -> None:
        self._catalog = catalog
        self._store = store
        self._uploads = uploads
        self._now = now

    def begin_upload(self, sha256: str, size_bytes: int, offset_bytes: int) -> Upload | None:
        """Start or continue an upload; None when the blob is stored already.

        Raises UploadMismatch if it is stored with another size, WrongOffset, StorageFull, InvalidInput.
        """
        if size_bytes > MAX_SAFE_INTEGER:
            raise InvalidInput(f"exceeds {MAX_SAFE_INTEGER}", field="header.size_bytes")
        if offset_bytes > size_bytes:
            raise WrongOffset(f"offset {offset_bytes} lies beyond the size of {size_bytes} bytes", size_bytes)
        stored = self._stored(sha256)
        if stored is not None:
            if stored.size_bytes != size_bytes:
                raise UploadMismatch("size", str(size_bytes), str(stored.size_bytes), field="header.size_bytes")
            return None
        if size_bytes - offset_bytes > self._uploads.free_bytes():
            raise StorageFull(f"the disk does not take {size_bytes - offset_bytes} more bytes")
        return Upload(self, self._uploads.begin(sha256, offset_bytes), sha256, size_bytes)

    def store_verified(self, staged: StagedUpload, path: Path, sha256: str, size_bytes: int) -> None:
        """Move verified bytes into the store.

        First the catalogue says that they are coming, then they come, then it says that they are there. Whatever stops
        this in between, the blob stays invisible and the next upload or collection finds its record.
        """
        self._catalog.write(lambda tx: tx.blobs.put(self._claim(tx, sha256, size_bytes)))
        self._store.store(path, sha256)
        staged.discard()

        def arrived(tx: Transaction) -> None:
            record = tx.blobs.get([sha256], lock=True).get(sha256)
            if record is None or record.state is BlobState.DELETING:
                raise StoreUnavailable("blobs", f"{sha256} was collected while it was being stored; upload it again")
            tx.blobs.put(replace(record, size_bytes=size_bytes, state=BlobState.STORED, touch_time=self._now()))

        self._catalog.write(arrived)

    def _claim(self, tx: Transaction, sha256: str, size_bytes: int) -> BlobRecord:
        # The lock waits for a collection that is deleting these very bytes, which would else delete the new ones.
        record = tx.blobs.get([sha256], lock=True).get(sha256)
        if record is not None and record.state is BlobState.STORED and self._store.size_bytes(sha256) == size_bytes:
            return replace(record, touch_time=self._now())
        return BlobRecord(sha256, size_bytes, BlobState.STORING, self._now())

    def query_upload(self, sha256: str) -> UploadStatus:
        """Say whether a blob is stored, or where its upload can go on."""
        stored = self._stored(sha256)
        if stored is not None:
            return UploadStatus(True, stored.size_bytes)
        return UploadStatus(False, self._uploads.kept_bytes(sha256))

    def _stored(self, sha256: str) -> BlobRecord | None:
        """Return a readable blob, and keep it from collection for a while, since the asker relies on it."""
        record = self._catalog.read(lambda tx: tx.blobs.get([sha256])).get(sha256)
        if record is None or record.state is not BlobState.STORED:
            return None
        if self._store.size_bytes(sha256) != record.size_bytes:
            self._mark_damaged(sha256)
            return None
        if record.touch_time > self._now() - TOUCH_AFTER:
            return record

        def touch(tx: Transaction) -> BlobRecord | None:
            current = tx.blobs.get([sha256], lock=True).get(sha256)
            if current is None or current.state is not BlobState.STORED:
                return None
            tx.blobs.touch([sha256], self._now())
            return current

        return self._catalog.write(touch)

    def download(self, sha256: str, offset_bytes: int) -> tuple[int, Iterator[bytes]]:
        """Return a blob's size and its bytes from an offset, in pieces of at most 1 MiB.

        A download from the beginning is hashed on the way, and its last piece comes only if the digest is right. One
        that resumes is only measured: whoever has the first part checks the whole.
        Raises ResourceNotFound, WrongOffset, BlobDamaged (also from the iterator).
        """
        record = self._catalog.read(lambda tx: tx.blobs.get([sha256])).get(sha256)
        if record is None or record.state not in (BlobState.STORED, BlobState.DAMAGED):
            raise ResourceNotFound(f"blob {sha256}")
        if offset_bytes > record.size_bytes:
            raise WrongOffset(f"offset {offset_bytes} lies beyond the end of {sha256}", record.size_bytes)
        actual = self._store.size_bytes(sha256)
        if actual != record.size_bytes:
            self._mark_damaged(sha256)
            raise BlobDamaged(sha256, "they are gone" if actual is None else f"{actual} of {record.size_bytes} bytes")
        return record.size_bytes, self._verified(record, offset_bytes)

    def _verified(self, record: BlobRecord, offset_bytes: int) -> Iterator[bytes]:
        digest = hashlib.sha256()
        position = offset_bytes
        held = b""
        for piece in self._store.read(record.sha256, offset_bytes) if offset_bytes < record.size_bytes else ():
            digest.update(piece)
            position += len(piece)
            if held:
                yield held
            held = piece
        whole = offset_bytes == 0
        if position != record.size_bytes or (whole and digest.hexdigest() != record.sha256):
            self._mark_damaged(record.sha256)
            raise BlobDamaged(record.sha256, f"{position} bytes with sha256 {digest.hexdigest()}")
        if held:
            yield held

    def _mark_damaged(self, sha256: str) -> None:
        """Let the next upload replace the bytes; versions that name them stay."""

        def work(tx: Transaction) -> None:
            record = tx.blobs.get([sha256], lock=True).get(sha256)
            if record is not None and record.state is BlobState.STORED:
                tx.blobs.set_state(sha256, BlobState.DAMAGED)

        self._catalog.write(work)
