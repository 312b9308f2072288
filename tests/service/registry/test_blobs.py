import errno
import hashlib
import os

import pytest

from fakes.registry_stores import FakeClock, Stores, opened_registry, upload_bytes
from vplab.errors import InvalidInput
from vplab.registry.backends.file_uploads import FileUploads
from vplab.registry.composition import open_blob_store
from vplab.registry.core.blobs import Upload
from vplab.registry.core.registry import Registry
from vplab.registry.errors import (
    BlobDamaged,
    ChunkTooLarge,
    ResourceNotFound,
    StorageFull,
    UploadMismatch,
    WrongOffset,
)

MIB = 2**20
CONTENT = bytes(range(256)) * 4096 * 2 + b"tail"  # two chunks and a bit
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def begin(registry: Registry, offset: int = 0) -> Upload:
    upload = registry.blobs.begin_upload(SHA256, len(CONTENT), offset)
    assert upload is not None
    return upload


def read(registry: Registry, sha256: str, offset: int = 0) -> bytes:
    _, pieces = registry.blobs.download(sha256, offset)
    return b"".join(pieces)


def overwrite(stores: Stores, sha256: str, content: bytes) -> None:
    """Damage what lies in the store, behind the registry's back."""
    staged = stores.staging_folder / "damage"
    staged.parent.mkdir(parents=True, exist_ok=True)
    staged.write_bytes(content)
    open_blob_store(stores.config()).store(staged, sha256)


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, 17 * MIB + 5])
def test_blob_of_any_size_comes_back(registry: Registry, size: int) -> None:
    content = os.urandom(size)
    file = upload_bytes(registry, content)
    found, pieces = registry.blobs.download(file.sha256, 0)
    chunks = list(pieces)
    assert found == size
    assert b"".join(chunks) == content
    assert all(0 < len(chunk) <= MIB for chunk in chunks)


def test_download_starts_at_any_offset(registry: Registry) -> None:
    upload_bytes(registry, CONTENT)
    for offset in (1, MIB, len(CONTENT) - 1, len(CONTENT)):
        assert read(registry, SHA256, offset) == CONTENT[offset:]
    with pytest.raises(WrongOffset) as refusal:
        registry.blobs.download(SHA256, len(CONTENT) + 1)
    assert refusal.value.metadata == {"offset": str(len(CONTENT))}


def test_blob_is_invisible_until_it_is_finished(registry: Registry) -> None:
    upload = begin(registry)
    upload.write(CONTENT[:MIB])
    with pytest.raises(ResourceNotFound):
        registry.blobs.download(SHA256, 0)
    assert not registry.blobs.query_upload(SHA256).is_complete
    upload.keep()


def test_broken_upload_goes_on_where_it_stopped(registry: Registry) -> None:
    upload = begin(registry)
    upload.write(CONTENT[:MIB])
    upload.keep()
    status = registry.blobs.query_upload(SHA256)
    assert (status.is_complete, status.committed_bytes) == (False, MIB)
    again = begin(registry, MIB)
    again.write(CONTENT[MIB : 2 * MIB])
    again.write(CONTENT[2 * MIB :])
    again.finish()
    assert read(registry, SHA256) == CONTENT


def test_resuming_elsewhere_than_it_stopped_is_refused(registry: Registry) -> None:
    upload = begin(registry)
    upload.write(CONTENT[:100])
    upload.keep()
    for offset in (99, 101):
        with pytest.raises(WrongOffset) as refusal:
            registry.blobs.begin_upload(SHA256, len(CONTENT), offset)
        assert refusal.value.metadata == {"offset": "100"}
    with pytest.raises(WrongOffset):
        registry.blobs.begin_upload(SHA256, 10, 11)
    with pytest.raises(WrongOffset) as nothing:
        registry.blobs.begin_upload("ab" * 32, 10, 5)
    assert nothing.value.metadata == {"offset": "0"}


def test_two_uploads_of_one_blob_do_not_disturb_each_other(registry: Registry) -> None:
    one, other = begin(registry), begin(registry)
    one.write(CONTENT[:MIB])
    other.write(CONTENT[:10])
    one.write(CONTENT[MIB : 2 * MIB])
    other.write(CONTENT[10:MIB])
    one.write(CONTENT[2 * MIB :])
    one.finish()
    other.write(CONTENT[MIB : 2 * MIB])
    other.write(CONTENT[2 * MIB :])
    other.finish()
    assert read(registry, SHA256) == CONTENT


def test_wrong_bytes_are_refused_and_dropped(registry: Registry) -> None:
    upload = registry.blobs.begin_upload("ab" * 32, 5, 0)
    assert upload is not None
    upload.write(b"hello")
    with pytest.raises(UploadMismatch) as refusal:
        upload.finish()
    upload.keep()
    assert refusal.value.reason == "DIGEST_MISMATCH"
    assert refusal.value.metadata == {"expected": "ab" * 32, "actual": hashlib.sha256(b"hello").hexdigest()}
    assert registry.blobs.query_upload("ab" * 32).committed_bytes == 0


def test_too_many_bytes_are_refused_and_too_few_are_kept(registry: Registry) -> None:
    upload = registry.blobs.begin_upload("ab" * 32, 5, 0)
    assert upload is not None
    upload.write(b"hell")
    with pytest.raises(UploadMismatch):
        upload.finish()
    upload.keep()
    assert registry.blobs.query_upload("ab" * 32).committed_bytes == 4
    again = registry.blobs.begin_upload("ab" * 32, 5, 4)
    assert again is not None
    with pytest.raises(UploadMismatch):
        again.write(b"oo")


def test_chunk_over_a_mebibyte_is_refused(registry: Registry) -> None:
    upload = begin(registry)
    with pytest.raises(ChunkTooLarge):
        upload.write(bytes(MIB + 1))
    upload.keep()


def test_stored_blob_needs_no_upload_but_the_right_size(registry: Registry) -> None:
    upload_bytes(registry, CONTENT)
    assert registry.blobs.begin_upload(SHA256, len(CONTENT), 0) is None
    assert registry.blobs.query_upload(SHA256).committed_bytes == len(CONTENT)
    with pytest.raises(UploadMismatch):
        registry.blobs.begin_upload(SHA256, 7, 0)


def test_absurd_size_is_refused_before_any_byte(registry: Registry) -> None:
    with pytest.raises(InvalidInput):
        registry.blobs.begin_upload(SHA256, 2**63, 0)
    with pytest.raises(StorageFull):
        registry.blobs.begin_upload(SHA256, 2**52, 0)


def test_damaged_bytes_are_never_handed_out_as_whole(registry: Registry, stores: Stores) -> None:
    upload_bytes(registry, CONTENT)
    overwrite(stores, SHA256, CONTENT[:-1] + b"?")
    size, pieces = registry.blobs.download(SHA256, 0)
    received: list[bytes] = []
    with pytest.raises(BlobDamaged):
        received.extend(pieces)
    assert sum(map(len, received)) < size


@pytest.mark.parametrize("content", [CONTENT[:MIB], b"", CONTENT + b"!"])
def test_blob_of_a_wrong_size_is_damaged_from_any_offset(registry: Registry, stores: Stores, content: bytes) -> None:
    upload_bytes(registry, CONTENT)
    overwrite(stores, SHA256, content)
    with pytest.raises(BlobDamaged):
        registry.blobs.download(SHA256, 5)


def test_lost_blob_is_data_loss_and_an_upload_heals_it(registry: Registry, stores: Stores) -> None:
    upload_bytes(registry, CONTENT)
    open_blob_store(stores.config()).delete(SHA256)
    with pytest.raises(BlobDamaged):
        registry.blobs.download(SHA256, 0)
    assert not registry.blobs.query_upload(SHA256).is_complete
    upload_bytes(registry, CONTENT)
    assert read(registry, SHA256) == CONTENT


def test_full_disk_is_said_so_and_leaves_nothing_visible(
    sqlite_stores: Stores, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened_registry(sqlite_stores, clock) as registry:
        upload = begin(registry)

        def full(fd: int, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(os, "write", full)
            with pytest.raises(StorageFull):
                upload.write(b"x")
        upload.write(CONTENT[:MIB])
        upload.keep()
        assert registry.blobs.query_upload(SHA256).committed_bytes == MIB
        with pytest.raises(ResourceNotFound):
            registry.blobs.download(SHA256, 0)


def test_upload_left_by_a_killed_process_is_continued(sqlite_stores: Stores, clock: FakeClock) -> None:
    folder = sqlite_stores.config().upload_folder
    with opened_registry(sqlite_stores, clock) as registry:
        killed = FileUploads(folder).begin(SHA256, 0)
        killed.write(CONTENT[:MIB])
        assert registry.blobs.query_upload(SHA256).committed_bytes == 0  # somebody still writes to it
        os.close(killed._fd or 0)  # what the kernel does for a killed process
        killed._fd = None
        assert registry.blobs.query_upload(SHA256).committed_bytes == MIB
