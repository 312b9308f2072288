import hashlib
import os
from pathlib import Path

import pytest

from vplab.registry.backends.file_blobs import FileBlobs
from vplab.registry.backends.file_uploads import FileUploads
from vplab.registry.errors import ResourceNotFound, WrongOffset

SHA256 = hashlib.sha256(b"weights").hexdigest()


@pytest.fixture
def staged(tmp_path: Path) -> Path:
    path = tmp_path / "staged"
    path.write_bytes(b"weights")
    return path


def test_blobs_lie_in_256_folders(tmp_path: Path, staged: Path) -> None:
    FileBlobs(tmp_path / "blobs").store(staged, SHA256)
    assert (tmp_path / "blobs" / "sha256" / SHA256[:2] / SHA256[2:]).read_bytes() == b"weights"
    assert not staged.exists()


def test_bytes_are_durable_before_they_have_a_name_and_the_name_before_the_call_returns(
    tmp_path: Path, staged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = FileBlobs(tmp_path / "blobs")
    done: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(fd: int) -> None:
        done.append(("sync", os.readlink(f"/proc/self/fd/{fd}")))
        fsync(fd)

    def noted_replace(source: Path, target: Path) -> None:
        done.append(("name", str(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    blobs.store(staged, SHA256)
    folder = tmp_path / "blobs" / "sha256" / SHA256[:2]
    named = done.index(("name", str(folder / SHA256[2:])))
    assert ("sync", str(staged)) in done[:named]
    assert done[named + 1 :] == [("sync", str(folder))]
    # New folders have names too.
    assert {("sync", str(folder.parent)), ("sync", str(folder.parent.parent))} <= set(done[:named])


def test_absent_blob_has_no_size_and_no_bytes(tmp_path: Path) -> None:
    blobs = FileBlobs(tmp_path)
    assert blobs.size_bytes(SHA256) is None
    blobs.delete(SHA256)
    with pytest.raises(ResourceNotFound):
        list(blobs.read(SHA256, 0))


def test_longest_kept_upload_is_continued_and_shorter_ones_go(tmp_path: Path) -> None:
    uploads = FileUploads(tmp_path)
    begun = [uploads.begin(SHA256, 0) for _ in range(2)]
    for upload, content in zip(begun, (b"wei", b"weigh"), strict=True):
        upload.write(content)
        upload.keep()
    assert uploads.kept_bytes(SHA256) == 5
    assert len(list(tmp_path.iterdir())) == 1
    again = uploads.begin(SHA256, 5)
    again.write(b"ts")
    assert again.finish()[1] == SHA256
    again.discard()
    assert list(tmp_path.iterdir()) == []


def test_upload_in_progress_is_nobody_elses(tmp_path: Path) -> None:
    uploads, other_process = FileUploads(tmp_path), FileUploads(tmp_path)
    upload = uploads.begin(SHA256, 0)
    upload.write(b"wei")
    assert other_process.kept_bytes(SHA256) == 0
    with pytest.raises(WrongOffset):
        other_process.begin(SHA256, 3)
    upload.keep()
    assert other_process.kept_bytes(SHA256) == 3


def test_upload_without_a_byte_leaves_no_file(tmp_path: Path) -> None:
    FileUploads(tmp_path).begin(SHA256, 0).keep()
    assert list(tmp_path.iterdir()) == []
