"""From files to a published version."""

import json
import mimetypes
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vplab.client.registry.values import ArtifactKind, BlobFile, Version
from vplab.errors import AlreadyExists, FailedPrecondition, InvalidInput, NotFound

if TYPE_CHECKING:
    from vplab.client.registry.area import AsyncRegistry

SPEC_FILE = "model.json"
_MEDIA_TYPES = {".onnx": "application/onnx", ".safetensors": "application/x-safetensors", ".md": "text/markdown"}


def files_of_folder(folder: str | PathLike[str]) -> dict[str, Path]:
    """Return every file below a folder by its path in the version. Raises InvalidInput for a folder without files."""
    root = Path(folder)
    paths = sorted(path for path in root.rglob("*") if path.is_file()) if root.is_dir() else []
    if not paths:
        raise InvalidInput(f"{folder} is no folder with files", field="folder")
    return {path.relative_to(root).as_posix(): path for path in paths}


async def upload_files(registry: "AsyncRegistry", files: Mapping[str, Path]) -> tuple[BlobFile, ...]:
    """Upload files and return what a manifest says about them, in the order of their paths."""
    if not files:
        raise InvalidInput("a version has at least one file", field="files")
    return tuple(
        [
            await registry.upload_file(path, as_path=name, media_type=media_type(name))
            for name, path in sorted(files.items())
        ]
    )


async def ensure_artifact(
    registry: "AsyncRegistry", artifact_id: str, kind: ArtifactKind, display_name: str, labels: Mapping[str, str]
) -> None:
    """Create an artifact unless it exists. Raises FailedPrecondition if it exists as another kind."""
    try:
        await registry.create_artifact(artifact_id, kind, display_name=display_name, labels=labels)
    except AlreadyExists:
        found = await registry.get_artifact(f"artifacts/{artifact_id}")
        if found.kind != kind:
            message = f"{found.name} holds {found.kind} versions, not {kind}; choose another name"
            raise FailedPrecondition(message) from None


async def find_among_newest(
    registry: "AsyncRegistry", artifact: str, is_it: Callable[[Version], bool], most: int = 100
) -> Version | None:
    """Return the newest of an artifact's last ``most`` versions that ``is_it``; None too where the artifact is not.

    What publishes once for each request or job finds its own work so: a repeat comes soon after.
    """
    searched = 0
    try:
        async for version in registry.list_versions(artifact):
            if is_it(version):
                return version
            searched += 1
            if searched == most:
                break
    except NotFound:
        pass
    return None


def read_spec(files: Mapping[str, str | PathLike[str]]) -> Mapping[str, Any]:
    """Return the content of ``model.json``, empty where there is none. Raises InvalidInput when it is no object."""
    if SPEC_FILE not in files:
        return {}
    path = Path(files[SPEC_FILE])
    try:
        spec = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidInput(f"{path} is not JSON: {error}", field=SPEC_FILE) from error
    if not isinstance(spec, dict):
        raise InvalidInput(f"{path} is not a JSON object", field=SPEC_FILE)
    return spec


def media_type(path: str) -> str:
    """Return the media type of a file by its name; empty when it says nothing."""
    suffix = Path(path).suffix.lower()
    return _MEDIA_TYPES.get(suffix) or mimetypes.guess_type(path)[0] or ""
