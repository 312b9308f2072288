"""File names of stored and exported data sets."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from vplab.client.datasets.values import DatasetItem
from vplab.errors import FailedPrecondition, InvalidInput

SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})
_SIGNATURES: Final = ((b"\xff\xd8\xff", "jpg"), (b"\x89PNG\r\n\x1a\n", "png"), (b"BM", "bmp"), (b"RIFF", "webp"))
_ODD: Final = frozenset('<>:"|?*')


def suffix_of(image: bytes) -> str:
    """Return the suffix, without its dot, of a picture's format."""
    return next((suffix for start, suffix in _SIGNATURES if image.startswith(start)), "tif")


def picture_names(items: Sequence[DatasetItem]) -> list[str]:
    """Return a file name for each image, all in one folder and different without their suffixes.

    It is the item's own name with ``__`` for separators, numbered where two would clash.
    """
    taken: set[str] = set()
    names = []
    for item in items:
        plain = "".join("_" if ord(c) < 32 or c in _ODD else c for c in item.file_name.replace("\\", "/"))
        path = Path(plain.strip("/").replace("/", "__").lstrip("."))
        has_suffix = path.suffix.lower() in SUFFIXES
        stem = (path.stem if has_suffix else path.name) or "image"
        number, name = 2, stem
        while name in taken:
            name, number = f"{stem}_{number}", number + 1
        taken.add(name)
        names.append(name + (path.suffix if has_suffix else f".{suffix_of(item.image)}"))
    return names


def write_new(path: Path, data: bytes) -> None:
    """Write a file that is not there yet. Raises FailedPrecondition where it is, InvalidInput where it cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            file.write(data)
    except FileExistsError as error:
        raise FailedPrecondition(f"{path} exists: choose an empty folder") from error
    except OSError as error:
        raise InvalidInput(f"cannot write {path}: {error.strerror or error}", field="folder") from error
