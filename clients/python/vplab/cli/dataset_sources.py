"""Data sets by what people type: a folder, a COCO file, or a name in the registry."""

import asyncio
import re
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

from vplab.cli.home import Home
from vplab.cli.terminal import messages
from vplab.cli.typed_values import artifact_name
from vplab.client import AsyncClient, AsyncSnapshots, SegmentClass
from vplab.client.datasets import Dataset, read_coco, read_dataset, read_folder
from vplab.client.registry.values import Version
from vplab.errors import FailedPrecondition, InvalidInput, NotFound

_MAX_SHOWN = 50


def read_source(
    path: Path, classes: Sequence[SegmentClass] = (), *, is_binary: bool | None = None, images: Path | None = None
) -> Dataset:
    """Read pairs from a folder, or COCO annotations from a file or an unpacked export of CVAT or Label Studio.

    Raises InvalidInput after showing every wrong file on a line of its own.
    """
    annotations = _annotations(path)
    try:
        if annotations is not None:
            return read_coco(annotations, images or _image_folder(path, annotations), classes=classes)
        return read_folder(path, classes=classes, is_binary=is_binary)
    except InvalidInput as error:
        if len(error.violations) < 2:
            raise
        for violation in error.violations[:_MAX_SHOWN]:
            messages.print(f"{violation.field}: {violation.description}", style="red", markup=False)
        more = "at least " if len(error.violations) >= _MAX_SHOWN else ""
        raise InvalidInput(
            f"{path}: {more}{len(error.violations)} things are wrong, see above", field="path"
        ) from error


def is_coco(path: Path) -> bool:
    """Say whether a path is, or holds, COCO annotations; False where there is nothing."""
    return path.exists() and _annotations(path) is not None


def parse_class(text: str) -> SegmentClass:
    """Return the class of ``ID=NAME``. Raises InvalidInput."""
    class_id, sign, name = text.partition("=")
    if not sign or not class_id.strip().isdigit() or not name.strip():
        raise InvalidInput(f"{text!r} is not ID=NAME, such as 1=scratch", field="--class")
    return SegmentClass(int(class_id), name.strip())


def dataset_id_of(path: Path) -> str:
    """Return an artifact id made of a folder's or file's name. Raises InvalidInput where nothing is left of it."""
    name = path.resolve().stem if path.is_file() else path.resolve().name
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).lstrip("-0123456789")[:63].rstrip("-")
    if not slug:
        raise InvalidInput(f"{name!r} makes no name for the registry; give one", field="--name")
    return slug


async def find_dataset(client: AsyncClient, name: str) -> Version:
    """Return a data set's version: NAME is the newest, NAME@NUMBER and NAME@ALIAS that one.

    Raises NotFound, FailedPrecondition if it is no data set.
    """
    full = artifact_name(name)
    version: Version | None
    if full.count("/") > 1:
        version = await client.registry.get_version(full)
    else:
        async with aclosing(client.registry.list_versions(full)) as newest_first:  # type: ignore[type-var]
            version = await anext(newest_first, None)
    if version is None:
        raise NotFound(f"{full} has no version")
    if version.kind != "dataset":
        raise FailedPrecondition(f"{version.name} is no data set but a {version.kind}")
    return version


async def fetch_dataset(client: AsyncClient, home: Home, version: Version) -> Dataset:
    """Download a version, unless it is on this machine already, and read it."""
    home.create()
    snapshots = AsyncSnapshots(client.registry, home.root / "datasets")
    try:
        snapshot = await snapshots.fetch(version.name)
        return await asyncio.to_thread(read_dataset, snapshot.folder)
    finally:
        snapshots.close()


def _annotations(path: Path) -> Path | None:
    """Return the COCO file that a path is or holds; None for a folder of pairs."""
    if path.is_file():
        return path
    if not path.exists():
        raise InvalidInput(f"{path} does not exist", field="path")
    if (path / "masks").is_dir():
        return None
    # Label Studio writes result.json, CVAT annotations/instances_default.json, we annotations.json.
    found = sorted([*path.glob("*.json"), *path.glob("annotations/*.json")])
    if len(found) > 1:
        listed = ", ".join(str(file.relative_to(path)) for file in found[:5])
        raise InvalidInput(f"{path} holds several annotation files: name one of {listed}", field="path")
    return found[0] if found else None


def _image_folder(path: Path, annotations: Path) -> Path:
    if path.is_dir():
        return path
    return annotations.parent.parent if annotations.parent.name == "annotations" else annotations.parent
