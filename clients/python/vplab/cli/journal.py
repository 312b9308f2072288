"""What a run over a folder has done so far: appended line by line, so that a kill loses at most the image in hand."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from vplab.client.json_lines import JsonLines


@dataclass(frozen=True)
class ClassFigures:
    """What was found of one class in one image."""

    class_id: int
    display_name: str
    present: bool
    score: float
    presence_score: float
    area_px: int
    num_instances: int


@dataclass(frozen=True)
class Entry:
    """One image that was tried."""

    image: str
    """Path below the input folder, with forward slashes."""
    size_bytes: int
    modified_ns: int
    """With the size, tells whether the file is still the one that was segmented."""
    name: str = ""
    """Name of the result: ``masks/{name}.png``."""
    width: int = 0
    height: int = 0
    seconds: float = 0.0
    classes: tuple[ClassFigures, ...] = ()
    error: str = ""
    """Why it failed; empty when it did not."""

    @property
    def is_done(self) -> bool:
        """Whether there is a mask."""
        return not self.error


@dataclass
class Journal:
    """The entries of one output folder. Everything in it was made with the same settings."""

    lines: JsonLines
    entries: dict[str, Entry] = field(default_factory=dict)

    @staticmethod
    def open(path: Path, settings: dict[str, Any]) -> "Journal":
        """Open or begin a journal for appending.

        A last line that a kill cut short is dropped. Raises FailedPrecondition if the folder was filled with other
        settings: results of two prompt sets must not be mixed.
        """
        journal = Journal(JsonLines(path, settings))
        for line in journal.lines.lines:
            journal._take(line)
        return journal

    def add(self, entry: Entry) -> None:
        """Record an image; once this returns it survives a kill."""
        self.entries[entry.image] = entry
        self.lines.append(asdict(entry))

    def close(self) -> None:
        """Close the file."""
        self.lines.close()

    def __enter__(self) -> "Journal":
        """Return the journal."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self.close()

    def _take(self, line: dict[str, Any]) -> None:
        try:
            classes = tuple(ClassFigures(**figures) for figures in line.pop("classes"))
            entry = Entry(**line, classes=classes)
        except (TypeError, KeyError):
            return
        self.entries[entry.image] = entry
