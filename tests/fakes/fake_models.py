"""A source of encoders and images in memory, for the embedding service."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from vplab.embedding.values import EncoderVersion, ModelRef
from vplab.errors import NotFound, ResourceExhausted, Unavailable
from vplab.vision.specs import EncoderSpec, spec_from_json


class FakeModelSource:
    """Implements ModelSource over folders; aliases move when told, and it can be taken away."""

    def __init__(self) -> None:
        self.folders: dict[str, Path] = {}
        self.aliases: dict[str, str] = {}
        self.blobs: dict[str, bytes] = {}
        self.datasets: dict[str, list[str]] = {}
        self.is_away = False
        self.num_reads = 0
        self._moves: asyncio.Queue[str] = asyncio.Queue()

    def publish(self, artifact: str, number: int, folder: Path) -> None:
        """Offer a folder as a version; the first one becomes production."""
        self.folders[f"artifacts/{artifact}/versions/{number}"] = folder
        self.aliases.setdefault(f"artifacts/{artifact}/aliases/production", f"artifacts/{artifact}/versions/{number}")

    def move(self, alias: str, version: str) -> None:
        """Point an alias elsewhere and tell the watcher."""
        self.aliases[alias] = version
        self._moves.put_nowait(alias)

    def add_image(self, data: bytes) -> str:
        """Store an image as a blob and return its digest."""
        digest = hashlib.sha256(data).hexdigest()
        self.blobs[digest] = data
        return digest

    async def find_encoder(self, name: str) -> EncoderVersion:
        """Resolve a name."""
        self._check()
        version = self.aliases.get(name, name)
        if version not in self.folders:
            raise NotFound(f"{name} does not exist", metadata={"name": name})
        content = (self.folders[version] / "model.json").read_bytes()
        spec = spec_from_json(content)
        assert isinstance(spec, EncoderSpec)
        return EncoderVersion(ModelRef(version, hashlib.sha256(version.encode() + content).hexdigest()), spec)

    @asynccontextmanager
    async def files(self, version: EncoderVersion) -> AsyncIterator[Path]:
        """Give the folder."""
        self._check()
        yield self.folders[version.model.name]

    async def list_encoders(self) -> Sequence[EncoderVersion]:
        """Return the production versions."""
        self._check()
        return [await self.find_encoder(alias) for alias in self.aliases]

    async def moved_aliases(self) -> AsyncIterator[str]:
        """Yield what ``move`` was told."""
        while True:
            yield await self._moves.get()

    async def read_image(self, sha256: str, max_bytes: int) -> bytes:
        """Return a blob."""
        self._check()
        self.num_reads += 1
        if sha256 not in self.blobs:
            raise NotFound(f"blob {sha256} does not exist")
        if len(self.blobs[sha256]) > max_bytes:
            raise ResourceExhausted("too large", reason="MESSAGE_TOO_LARGE")
        return self.blobs[sha256]

    async def list_dataset_images(self, name: str) -> Sequence[str]:
        """Return the images of a dataset."""
        self._check()
        if name not in self.datasets:
            raise NotFound(f"{name} does not exist")
        return self.datasets[name]

    def _check(self) -> None:
        if self.is_away:
            raise Unavailable("the registry is away")
