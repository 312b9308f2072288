"""From a folder of files to a published version."""

import json
import mimetypes
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vplab.client.registry.values import ArtifactKind, BlobFile
from vplab.errors import AlreadyExists, FailedPrecondition, InvalidInput

if TYPE_CHECKING:
    from vplab.client.registry.area import AsyncRegistry

SPEC_FILE = "model.json"
_MEDIA_TYPES = {".onnx": "application/onnx", ".safetensors": "application/x-safetensors", ".md": "text/markdown"}


async def upload_folder(registry: "AsyncRegistry", folder: Path) -> tuple[tuple[BlobFile, ...], Mapping[str, Any]]:
    """Upload every file below a folder; return the files in the order of their paths, and the spec if there is one."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    if not paths:
        raise InvalidInput(f"{folder} is no folder with files", field="folder")
    files = []
    for path in paths:
        name = path.relative_to(folder).as_posix()
        files.append(await registry.upload_file(path, as_path=name, media_type=media_type(name)))
    return tuple(files), _read_spec(folder / SPEC_FILE)


async def ensure_artifact(registry: "AsyncRegistry", artifact_id: str, kind: ArtifactKind) -> None:
    """Create an artifact unless it exists. Raises FailedPrecondition if it exists as another kind."""
    try:
        await registry.create_artifact(artifact_id, kind)
    except AlreadyExists:
        found = await registry.get_artifact(f"artifacts/{artifact_id}")
        if found.kind != kind:
            raise FailedPrecondition(f"{found.name} holds {found.kind} versions, not {kind}") from None


def media_type(path: str) -> str:
    """Return the media type of a file by its name; empty when it says nothing."""
    suffix = Path(path).suffix.lower()
    return _MEDIA_TYPES.get(suffix) or mimetypes.guess_type(path)[0] or ""


def _read_spec(path: Path) -> Mapping[str, Any]:
    if not path.exists():
        return {}
    try:
        spec = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidInput(f"{path} is not JSON: {error}", field=SPEC_FILE) from error
    if not isinstance(spec, dict):
        raise InvalidInput(f"{path} is not a JSON object", field=SPEC_FILE)
    return spec
