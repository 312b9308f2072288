"""Prompt sets as registry versions, through the client."""

import asyncio
import json
import os
import uuid
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import structlog

from vplab.client import AsyncSnapshots, Snapshot
from vplab.client.registry.area import AsyncRegistry
from vplab.client.registry.publishing import ensure_artifact, find_among_newest
from vplab.client.registry.values import Lineage, Manifest, Version
from vplab.errors import AlreadyExists, DeadlineExceeded, InvalidInput, NotFound, Unavailable
from vplab.segmentation import prompt_set_files as files
from vplab.segmentation.errors import ModelUnsupported
from vplab.segmentation.values import (
    EncodedImage,
    FrameImage,
    ModelRef,
    PromptSet,
    PromptSetContent,
    PromptSetDraft,
)

_log = structlog.get_logger(__name__)

_ROLE: Final = "a prompt set"
_MAX_KEPT: Final = 64
# A repeat comes seconds after its request, so it is among the newest versions.
_MAX_SEARCHED: Final = 50


class ClientPromptSets:
    """Implements PromptSetStore."""

    def __init__(self, registry: AsyncRegistry, snapshots: AsyncSnapshots, cache_dir: Path) -> None:
        """cache_dir: where it is kept which version a name meant last, for a start without the registry."""
        self._registry = registry
        self._snapshots = snapshots
        self._names = cache_dir
        self._kept: OrderedDict[str, PromptSet] = OrderedDict()
        self._last: dict[str, str] = {}

    async def find_request(self, prompt_set_id: str, request_id: str, request_digest: str) -> PromptSet | None:
        """Look for the request among the newest versions: each says in its spec which request made it."""
        found = await find_among_newest(
            self._registry,
            f"artifacts/{prompt_set_id}",
            lambda version: version.manifest.spec.get("request_id") == request_id,
            _MAX_SEARCHED,
        )
        if found is None:
            return None
        if found.manifest.spec.get("request_digest") != request_digest:
            message = f"request {request_id} made {found.name} from something else"
            raise AlreadyExists(message, reason="REQUEST_ID_REUSED", metadata={"request_id": request_id})
        return await self._open(found)

    async def publish(
        self, draft: PromptSetDraft, content: PromptSetContent, segmenter: ModelRef, feature_encoder: ModelRef
    ) -> PromptSet:
        """Upload the files and publish them in one version."""
        name = f"artifacts/{draft.prompt_set_id}"
        await ensure_artifact(self._registry, draft.prompt_set_id, "prompt_set", draft.display_name, {})
        made = await asyncio.to_thread(files.files_of, draft.references, content)
        uploaded = [
            await self._registry.upload_bytes(data, as_path=path, media_type=media_type)
            for path, data, media_type in made
        ]
        manifest = Manifest(
            files=tuple(sorted(uploaded, key=lambda file: file.path)),
            lineage=(
                Lineage("feature_encoder", feature_encoder.name, feature_encoder.digest),
                Lineage("segmenter", segmenter.name, segmenter.digest),
            ),
            metrics={f"presence_threshold_{k}": v for k, v in sorted(content.presence_thresholds.items())},
            spec={
                "kind": "prompt_set",
                "request_id": draft.request_id,
                "request_digest": draft.request_digest,
                "classes": {str(c.class_id): c.display_name for c in content.classes},
            },
        )
        request_id = draft.request_id or None
        version = await self._registry.publish_version(name, manifest, request_id=request_id)
        prompt_set = PromptSet(
            ModelRef(version.name, version.digest), content, segmenter, feature_encoder, version.create_time
        )
        # Downloaded at once: a start without the registry must find it here.
        await self._snapshots.fetch(version.name)
        self._keep(prompt_set)
        await self._remember(name, version.name)
        return prompt_set

    async def get(self, name: str) -> PromptSet:
        """Resolve a name at the registry, or, while that is away, to what it meant last."""
        try:
            version = await self._resolve(name)
        except (Unavailable, DeadlineExceeded):
            last = await self._recall(name)
            if last is None:
                raise
            kept = next((p for p in self._kept.values() if p.model.name == last), None)
            return kept or await self._open_snapshot(last)
        await self._remember(name, version.name)
        return await self._open(version)

    async def reference_images(self, prompt_set: PromptSet) -> Sequence[EncodedImage | FrameImage]:
        """Read the pictures from the version's files on this machine."""
        snapshot = await self._snapshots.fetch(prompt_set.model.name)
        return await asyncio.to_thread(_read_pictures, snapshot.folder)

    async def list_page(self, page_size: int, after: str) -> tuple[Sequence[PromptSet], str | None]:
        """Walk the artifacts by name; one without a version, or that cannot be read, is left out."""
        found: list[PromptSet] = []
        async for artifact in self._registry.list_artifacts(kind="prompt_set"):
            if artifact.name <= after:
                continue
            if len(found) == page_size:
                return found, found[-1].model.name.partition("/versions/")[0]
            try:
                found.append(await self._open(await self._newest(artifact.name)))
            except NotFound:
                continue
            except ModelUnsupported as error:
                _log.warning("prompt_set_not_listed", name=artifact.name, error=error.message)
        return found, None

    async def _resolve(self, name: str) -> Version:
        return await (self._registry.get_version(name) if name.count("/") > 1 else self._newest(name))

    async def _newest(self, artifact: str) -> Version:
        async for version in self._registry.list_versions(artifact):
            return version
        raise NotFound(f"{artifact} has no version", metadata={"name": artifact})

    async def _open(self, version: Version) -> PromptSet:
        kept = self._kept.get(version.digest)
        if kept is not None:
            self._kept.move_to_end(version.digest)
            return kept
        if version.kind != "prompt_set":
            raise ModelUnsupported(version.name, _ROLE, f"it is a {version.kind}")
        return await self._open_snapshot(version.name, version)

    async def _open_snapshot(self, version_name: str, version: Version | None = None) -> PromptSet:
        snapshot = await self._snapshots.fetch(version_name)
        content = await asyncio.to_thread(_read_content, snapshot)
        models = []
        for relation in ("segmenter", "feature_encoder"):
            lineage = snapshot.manifest.made_from(relation)
            if lineage is None:
                raise ModelUnsupported(version_name, _ROLE, f"its manifest names no {relation}")
            models.append(ModelRef(lineage.version, lineage.digest))
        prompt_set = PromptSet(
            ModelRef(snapshot.version_name, snapshot.digest),
            content,
            models[0],
            models[1],
            version.create_time if version is not None else None,
        )
        self._keep(prompt_set)
        return prompt_set

    def _keep(self, prompt_set: PromptSet) -> None:
        self._kept[prompt_set.model.digest] = prompt_set
        while len(self._kept) > _MAX_KEPT:
            digest, _ = self._kept.popitem(last=False)
            self._snapshots.release(digest)

    async def _remember(self, name: str, version_name: str) -> None:
        if self._last.get(name) == version_name:
            return
        self._last[name] = version_name
        await asyncio.to_thread(_write_json, self._path(name), {"version": version_name})

    async def _recall(self, name: str) -> str | None:
        if name in self._last:
            return self._last[name]
        content = await asyncio.to_thread(_read_json, self._path(name))
        return content.get("version") if isinstance(content, dict) else None

    def _path(self, name: str) -> Path:
        return self._names / f"{name.replace('/', '-')}.json"


def _read_content(snapshot: Snapshot) -> PromptSetContent:
    try:
        index = json.loads((snapshot.folder / files.INDEX).read_bytes())
        masks = {path: (snapshot.folder / path).read_bytes() for path in files.mask_paths(index)}
        return files.content_of(index, masks)
    except (OSError, KeyError, TypeError, ValueError, InvalidInput) as error:
        why = error.message if isinstance(error, InvalidInput) else "its files are not those of a prompt set"
        raise ModelUnsupported(snapshot.version_name, _ROLE, why) from error


def _read_pictures(folder: Path) -> list[EncodedImage | FrameImage]:
    index = json.loads((folder / files.INDEX).read_bytes())
    return [files.read_picture(path, (folder / path).read_bytes()) for path in files.picture_paths(index)]


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def _write_json(path: Path, content: Any) -> None:
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(content), encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        _log.warning("name_not_kept", path=str(path), error=str(error))
