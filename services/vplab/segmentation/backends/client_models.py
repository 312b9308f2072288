"""Segmenters, and what is to be known about encoders and adapters, from the registry through the client."""

import asyncio
import json
import os
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import structlog

from vplab.client import AsyncSnapshots, Snapshot
from vplab.client.registry.area import AsyncRegistry
from vplab.client.registry.values import Lineage, Manifest, Version
from vplab.errors import DeadlineExceeded, InvalidInput, OutOfRange, Unavailable
from vplab.segmentation.errors import ModelUnsupported
from vplab.segmentation.values import AdapterVersion, EncoderVersion, ModelRef, SegmenterVersion
from vplab.vision.adapters.spec import AdapterSpec, adapter_spec_from_json
from vplab.vision.specs import EncoderSpec, SegmenterSpec, spec_from_json

_log = structlog.get_logger(__name__)

_SPEC_FILE: Final = "model.json"
_ADAPTER_FILE: Final = "adapter.json"
_MAX_SPEC_BYTES: Final = 1 << 20
_RETRY_S: Final = (0.5, 15.0)
_SEGMENTER, _ENCODER, _ADAPTER = "a segmenter", "an encoder", "an adapter"


class ClientModels:
    """Implements ModelSource."""

    def __init__(self, registry: AsyncRegistry, snapshots: AsyncSnapshots, cache_dir: Path) -> None:
        """cache_dir: where encoders' specs are kept, so that a start needs no registry."""
        self._registry = registry
        self._snapshots = snapshots
        self._specs = cache_dir
        self._readers: Counter[str] = Counter()

    async def find_segmenter(self, name: str) -> SegmenterVersion:
        """Resolve a name and have its files on this machine, so that a restart without the registry can serve them."""
        async with self._reading(name) as snapshot:
            data = await asyncio.to_thread(_read_spec, snapshot)
            spec = _spec(snapshot.version_name, _SEGMENTER, data)
            if not isinstance(spec, SegmenterSpec):
                raise ModelUnsupported(snapshot.version_name, _SEGMENTER, f"it is an {spec.kind}")
            encoder = _lineage(snapshot.version_name, _SEGMENTER, snapshot.manifest, "image_encoder")
            return SegmenterVersion(
                ModelRef(snapshot.version_name, snapshot.digest), spec, ModelRef(encoder.version, encoder.digest)
            )

    async def find_encoder(self, name: str) -> EncoderVersion:
        """Read an encoder's spec, never its graph; a version's is kept, since it cannot change."""
        kept = await asyncio.to_thread(self._read_kept, name)
        if kept is not None:
            return kept
        version = await self._registry.get_version(name)
        spec = _spec(version.name, _ENCODER, await self._spec_json(version))
        if not isinstance(spec, EncoderSpec):
            raise ModelUnsupported(version.name, _ENCODER, f"it is a {spec.kind}")
        found = EncoderVersion(ModelRef(version.name, version.digest), spec)
        await asyncio.to_thread(self._keep, found)
        return found

    async def find_adapter(self, name: str) -> AdapterVersion:
        """Resolve a name and have its files on this machine; what is no adapter is not fetched, it may be large."""
        try:
            version = await self._registry.get_version(name)
            if version.kind != "adapter":
                raise ModelUnsupported(version.name, _ADAPTER, f"its kind is {version.kind}")
        except (Unavailable, DeadlineExceeded):
            _log.warning("registry_unavailable", name=name)  # then the version that the name led to last
        async with self._reading(name) as snapshot:
            data = await asyncio.to_thread(_read_spec, snapshot)
            spec = _spec(snapshot.version_name, _ADAPTER, data)
            if not isinstance(spec, SegmenterSpec):
                raise ModelUnsupported(snapshot.version_name, _ADAPTER, f"its {_SPEC_FILE} is that of an {spec.kind}")
            base = _lineage(snapshot.version_name, _ADAPTER, snapshot.manifest, "segmenter")
            adapter = await asyncio.to_thread(_read_adapter, snapshot)
            return AdapterVersion(
                ModelRef(snapshot.version_name, snapshot.digest), spec, ModelRef(base.version, base.digest), adapter
            )

    @asynccontextmanager
    async def files(self, model: ModelRef) -> AsyncIterator[Path]:
        """Keep a version's files on disk while they are read."""
        async with self._reading(model.name) as snapshot:
            if snapshot.digest != model.digest:
                raise Unavailable(f"{model.name} has another digest now than a moment ago")
            yield snapshot.folder

    async def moved_aliases(self) -> AsyncIterator[str]:
        """Yield every alias, and from then on those that move, for ever."""
        retry_s = _RETRY_S[0]
        while True:
            try:
                listed = await self._registry.list_aliases()
                for alias in listed.aliases:
                    yield alias.name
                retry_s = _RETRY_S[0]
                async for change in self._registry.watch_aliases(from_revision=listed.revision):
                    yield change.alias
            except OutOfRange:
                continue  # the registry forgot where we were: begin anew
            except (Unavailable, DeadlineExceeded) as error:
                _log.warning("registry_unavailable", error=error.message, retry_s=retry_s)
                await asyncio.sleep(retry_s)
                retry_s = min(retry_s * 2, _RETRY_S[1])

    @asynccontextmanager
    async def _reading(self, name: str) -> AsyncIterator[Snapshot]:
        snapshot = await self._snapshots.fetch(name)
        self._readers[snapshot.digest] += 1
        try:
            yield snapshot
        finally:
            self._readers[snapshot.digest] -= 1
            if not self._readers[snapshot.digest]:
                del self._readers[snapshot.digest]
                self._snapshots.release(snapshot.digest)

    async def _spec_json(self, version: Version) -> bytes:
        if version.manifest.spec:
            return json.dumps(dict(version.manifest.spec)).encode()
        file = version.manifest.file(_SPEC_FILE)
        return b"" if file is None else await self._registry.read_blob(file.sha256, max_bytes=_MAX_SPEC_BYTES)

    def _path(self, version_name: str) -> Path:
        return self._specs / f"{version_name.replace('/', '-')}.json"

    def _read_kept(self, name: str) -> EncoderVersion | None:
        if "/versions/" not in name:
            return None
        try:
            kept = json.loads(self._path(name).read_bytes())
            spec = spec_from_json(json.dumps(kept["spec"]).encode())
            return EncoderVersion(ModelRef(name, kept["digest"]), spec) if isinstance(spec, EncoderSpec) else None
        except (OSError, ValueError, KeyError, TypeError, InvalidInput):
            return None

    def _keep(self, found: EncoderVersion) -> None:
        path = self._path(found.model.name)
        part = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
        content = {"digest": found.model.digest, "spec": found.spec.model_dump(mode="json")}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(content), encoding="utf-8")
            os.replace(part, path)
        except OSError as error:
            _log.warning("spec_not_kept", name=found.model.name, error=str(error))


def _read_spec(snapshot: Snapshot) -> bytes:
    path = snapshot.folder / _SPEC_FILE
    return path.read_bytes() if path.is_file() else b""


def _read_adapter(snapshot: Snapshot) -> AdapterSpec | None:
    try:
        said = json.loads((snapshot.folder / _ADAPTER_FILE).read_bytes())
        return adapter_spec_from_json(json.dumps(said["adapter"]))
    except (OSError, ValueError, KeyError, TypeError, InvalidInput):
        return None  # a newer method, or nothing said; its graph can be served all the same


def _spec(name: str, role: str, data: bytes) -> EncoderSpec | SegmenterSpec:
    if not data:
        raise ModelUnsupported(name, role, f"its files lack {_SPEC_FILE}")
    try:
        return spec_from_json(data)
    except InvalidInput as error:
        raise ModelUnsupported(name, role, error.message) from error


def _lineage(name: str, role: str, manifest: Manifest, relation: str) -> Lineage:
    found = manifest.made_from(relation)
    if found is None:
        raise ModelUnsupported(name, role, f"its manifest names no {relation}")
    return found
