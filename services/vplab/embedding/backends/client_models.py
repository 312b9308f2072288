"""Encoders and images from the registry service, through the client."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import structlog

from vplab.client import AsyncSnapshots, Snapshot
from vplab.client.registry.area import AsyncRegistry
from vplab.client.registry.values import Version
from vplab.embedding.errors import ModelUnsupported
from vplab.embedding.values import EncoderVersion, ModelRef
from vplab.errors import DeadlineExceeded, InvalidInput, NotFound, OutOfRange, Unavailable
from vplab.vision.specs import EncoderSpec, spec_from_json

_log = structlog.get_logger(__name__)

_SPEC_FILE: Final = "model.json"
_MAX_SPEC_BYTES: Final = 1 << 20
_RETRY_S: Final = (0.5, 15.0)


class ClientModels:
    """Implements ModelSource."""

    def __init__(self, registry: AsyncRegistry, snapshots: AsyncSnapshots) -> None:
        self._registry = registry
        self._snapshots = snapshots
        self._readers: Counter[str] = Counter()

    async def find_encoder(self, name: str) -> EncoderVersion:
        """Resolve a name and have its files on this machine, so that a restart without the registry can serve them."""
        async with self._reading(name) as snapshot:
            data = await asyncio.to_thread(_read_spec, snapshot)
            return EncoderVersion(
                ModelRef(snapshot.version_name, snapshot.digest), _encoder_spec(snapshot.version_name, data)
            )

    @asynccontextmanager
    async def files(self, version: EncoderVersion) -> AsyncIterator[Path]:
        """Keep a version's files on disk while they are read."""
        async with self._reading(version.model.name) as snapshot:
            if snapshot.digest != version.model.digest:
                raise Unavailable(f"{version.model.name} has another digest now than a moment ago")
            yield snapshot.folder

    async def list_encoders(self) -> Sequence[EncoderVersion]:
        """Return the production versions; what is no encoder, or has no production version, is left out."""
        found = []
        async for artifact in self._registry.list_artifacts(kind="encoder"):
            try:
                version = await self._registry.get_version(artifact.name)
                spec = _encoder_spec(version.name, await self._spec_json(version))
            except NotFound:
                continue
            except ModelUnsupported as error:
                _log.warning("encoder_not_listed", name=artifact.name, error=error.message)
                continue
            found.append(EncoderVersion(ModelRef(version.name, version.digest), spec))
        return found

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

    async def read_image(self, sha256: str, max_bytes: int) -> bytes:
        """Return a blob."""
        return await self._registry.read_blob(sha256, max_bytes=max_bytes)

    async def list_dataset_images(self, name: str) -> Sequence[str]:
        """Return the images of a dataset's version."""
        version = await self._registry.get_version(name)
        return [file.sha256 for file in version.manifest.files if file.media_type.startswith("image/")]

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


def _read_spec(snapshot: Snapshot) -> bytes:
    path = snapshot.folder / _SPEC_FILE
    return path.read_bytes() if path.is_file() else b""


def _encoder_spec(name: str, data: bytes) -> EncoderSpec:
    if not data:
        raise ModelUnsupported(name, f"its files lack {_SPEC_FILE}")
    try:
        spec = spec_from_json(data)
    except InvalidInput as error:
        raise ModelUnsupported(name, error.message) from error
    if not isinstance(spec, EncoderSpec):
        raise ModelUnsupported(name, f"it is a {spec.kind}")
    return spec
