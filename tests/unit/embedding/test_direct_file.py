"""Files written past the page cache are whole, or not there."""

import errno
import os
from pathlib import Path

import obstore
import pytest
from obstore.store import LocalStore

from vplab.embedding.backends import _direct_file
from vplab.embedding.backends._direct_file import DirectWriter


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    try:
        os.close(os.open(tmp_path / "try", os.O_WRONLY | os.O_CREAT | os.O_DIRECT))
    except (AttributeError, OSError):
        pytest.skip("this file system is not written to directly")
    (tmp_path / "try").unlink()
    return tmp_path


@pytest.mark.parametrize("num_bytes", [1, 4095, 4096, 4097, 1_000_003])
def test_a_file_holds_what_was_written(disk: Path, num_bytes: int) -> None:
    writer, data = DirectWriter(), os.urandom(num_bytes)
    assert writer.write(disk / "folder" / "name", bytes(2_000_000))
    assert writer.write(disk / "folder" / "name", data)
    assert (disk / "folder" / "name").read_bytes() == data
    assert [path.name for path in (disk / "folder").iterdir()] == ["name"]


def test_a_file_being_written_is_not_listed(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = []

    def listing(file: int, size: int) -> None:
        listed.append([meta["path"] for page in obstore.list(LocalStore(disk)) for meta in page])
        listed.append([path.name.partition("#")[0] for path in disk.iterdir()])

    monkeypatch.setattr(_direct_file.os, "ftruncate", listing)
    assert DirectWriter().write(disk / "name", b"a")
    assert listed == [[], ["name"]]


def test_a_file_system_without_such_writes_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(path: Path, *_: object) -> int:
        asked.append(path)
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(_direct_file.os, "open", refuse)
    monkeypatch.setattr(_direct_file, "_O_DIRECT", 1 << 14)
    writer = DirectWriter()
    assert not writer.write(tmp_path / "name", b"a")
    assert not writer.write(tmp_path / "name", b"a")
    assert len(asked) == 1


def test_a_full_disk_is_an_error_and_leaves_nothing(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_direct_file.os, "write", refuse)
    with pytest.raises(OSError, match="No space left"):
        DirectWriter().write(disk / "name", b"a")
    assert not list(disk.iterdir())
