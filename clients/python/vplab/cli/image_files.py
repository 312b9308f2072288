"""Which files of a folder are images, and what their results are called."""

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vplab.errors import InvalidInput

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True)
class ImageFile:
    """One image to work on."""

    path: Path
    key: str
    """Path below the folder that was named, with forward slashes; of a file that was named itself, its name."""


def find_images(inputs: Sequence[Path], *, recursive: bool) -> list[ImageFile]:
    """Return the images among files and folders, in the order of their names.

    Raises InvalidInput for an input that does not exist, or when there is no image at all.
    """
    num_named = Counter(path.name for path in inputs if path.is_file())
    found: dict[str, ImageFile] = {}
    for path in inputs:
        if path.is_dir():
            inside = path.rglob("*") if recursive else path.iterdir()
            images = [f for f in inside if f.suffix.lower() in SUFFIXES and not f.name.startswith(".") and f.is_file()]
            prefix = f"{path.name}/" if len(inputs) > 1 else ""
            entries = [ImageFile(image, prefix + image.relative_to(path).as_posix()) for image in images]
        elif path.is_file():
            key = path.name if num_named[path.name] == 1 else path.as_posix().lstrip("/")
            entries = [ImageFile(path, key)]
        else:
            raise InvalidInput(f"{path} does not exist", field="images")
        found.update({entry.key: entry for entry in entries})
    if not found:
        raise InvalidInput(f"no image in {', '.join(map(str, inputs))}", field="images")
    return [found[key] for key in sorted(found)]


def name_results(keys: Iterable[str], known: Mapping[str, str]) -> dict[str, str]:
    """Return a file name without suffix for each image; names in ``known`` stay what they were.

    It is the image's path without suffix, folders joined by ``__``; the suffix joins in only where two would clash.
    """
    names = dict(known)
    taken = set(known.values())
    for key in keys:
        if key in names:
            continue
        stem, _, suffix = key.replace("/", "__").rpartition(".")
        name = stem if stem not in taken else f"{stem}_{suffix}"
        number = 2
        while name in taken:
            name, number = f"{stem}_{suffix}_{number}", number + 1
        names[key] = name
        taken.add(name)
    return names


def link_or_copy(source: Path, target: Path) -> None:
    """Put a file at ``target``: a hard link where the file system allows it, else a copy. Raises OSError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    part.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), part)
    except OSError:
        shutil.copyfile(source, part)
    os.replace(part, target)
    # Two names of one file make the rename do nothing: then the other name is still there.
    part.unlink(missing_ok=True)
