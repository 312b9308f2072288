"""A file of JSON objects, one a line, appended so that a kill loses at most the line in hand."""

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from vplab.client.file_locks import FileLock
from vplab.errors import FailedPrecondition, Unimplemented


class JsonLines:
    """Lines of one run. The first says with which settings everything else was made."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        """Open or begin the file for appending; ``lines`` then holds what was there after the first.

        A last line that a kill cut short is dropped, one that is no JSON object is left out. Raises FailedPrecondition
        if the file was begun with other settings: results of two settings must not be mixed; and while another command
        writes to it, where the platform can tell. Raises OSError.
        """
        self.path = path
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))
        self._lock = _sole_writer(path)
        lines = _read(path)
        if lines and lines[0] != {"settings": self.settings}:
            changed = differences(lines[0].get("settings", {}), self.settings)
            self._lock.release()
            message = f"{path.parent} holds results of another run ({changed}); choose another --out or add --restart"
            raise FailedPrecondition(message)
        self.lines = lines[1:]
        self._file: TextIO = path.open("a", encoding="utf-8")
        if not lines:
            self.append({"settings": self.settings})

    def append(self, content: dict[str, Any]) -> None:
        """Write a line; once this returns it survives a kill of the process."""
        self._file.write(json.dumps(content) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file and let others write to it."""
        self._file.close()
        self._lock.release()

    def __enter__(self) -> "JsonLines":
        """Return the file."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self.close()


def differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Say for people which settings are not the same."""
    changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    return ", ".join(f"{key}: {old.get(key)!r} then, {new.get(key)!r} now" for key in changed) or "unreadable journal"


def _sole_writer(path: Path) -> FileLock:
    lock = FileLock(path)
    try:
        is_free = lock.try_acquire(exclusive=True)
    except Unimplemented:
        return lock
    if not is_free:
        lock.release()
        raise FailedPrecondition(f"another command is writing to {path.parent}: wait for it or choose another --out")
    return lock


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(path, len(whole))
    lines = []
    for line in whole.splitlines():
        try:
            content = json.loads(line)
        except ValueError:
            continue
        if isinstance(content, dict):
            lines.append(content)
    return lines
