"""Published versions as verified local folders, kept so that a start needs no registry.

Layout of a cache folder, which any number of processes may share:
``versions/{digest}/files/...`` and ``versions/{digest}/version.json`` appear together in one rename; ``locks/{digest}``
is held shared by users and exclusively by whoever downloads or evicts; ``names/{hash}.json`` keeps what a name led to.
"""

import asyncio
import hashlib
import json
import os
import shutil
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vplab.client.file_locks import FileLock
from vplab.client.registry.area import AsyncRegistry
from vplab.client.registry.blobs import digest_file
from vplab.client.registry.values import BlobFile, Lineage, Manifest, Version
from vplab.errors import DataLoss, DeadlineExceeded, FailedPrecondition, Internal, Unavailable, Unknown, VPLabError

DEFAULT_MAX_BYTES = 20 << 30
_DOWNLOADS_AT_ONCE = 4
_UNREACHABLE = (Unavailable, DeadlineExceeded, Internal, Unknown)


@dataclass(frozen=True)
class Snapshot:
    """The files of one version on this machine."""

    folder: Path
    """Holds the version's files at their paths; read-only by agreement."""
    version_name: str
    """``artifacts/{artifact}/versions/{number}``."""
    digest: str
    manifest: Manifest
    is_current: bool
    """False when the registry could not be reached and this is the last version known to be good."""


class AsyncSnapshots:
    """Fetches versions into a cache folder and pins the ones in use.

    A fetched version stays on disk until ``release`` or the end of the process; beyond ``max_bytes`` the versions used
    longest ago that nobody holds are removed.
    """

    def __init__(
        self, registry: AsyncRegistry, cache_dir: str | os.PathLike[str], *, max_bytes: int = DEFAULT_MAX_BYTES
    ) -> None:
        """Name the folder; it is created when first needed."""
        self._registry = registry
        self._root = Path(cache_dir)
        self._max_bytes = max_bytes
        self._held: dict[str, FileLock] = {}
        self._busy: dict[str, asyncio.Lock] = {}

    async def fetch(self, name: str) -> Snapshot:
        """Return a version by number, alias, or artifact name (its ``production`` alias), downloading what is missing.

        Every file's sha256 is checked, also when it was there already (once in this process). When the registry cannot
        be reached, the version that the name led to last is returned.
        Raises NotFound, Unavailable when nothing is known, DataLoss for bytes that do not match, FailedPrecondition for
        a folder that cannot be used, ResourceExhausted for a full disk.
        """
        try:
            try:
                version = await self._registry.get_version(name)
                folder = await self._hold(version)
            except _UNREACHABLE as error:
                return await self._last_known_good(name, error)
            await asyncio.to_thread(self._remember, name, version.digest)
            await asyncio.to_thread(self._evict)
        except OSError as error:
            message = f"cannot use the cache folder {self._root}: {error.strerror or error}"
            raise FailedPrecondition(message) from error
        return Snapshot(folder, version.name, version.digest, version.manifest, True)

    def release(self, digest: str) -> None:
        """Allow a version to be removed; its folder must not be read afterwards."""
        lock = self._held.pop(digest, None)
        if lock is not None:
            lock.release()

    def close(self) -> None:
        """Release every version."""
        for digest in list(self._held):
            self.release(digest)

    async def _hold(self, version: Version) -> Path:
        """Take a shared lock on a complete, verified folder of the version."""
        folder = self._folder(version.digest)
        async with self._busy.setdefault(version.digest, asyncio.Lock()):
            if version.digest in self._held:
                return folder / "files"
            lock = FileLock(self._root / "locks" / version.digest)
            try:
                await lock.acquire(exclusive=False)
                while not await asyncio.to_thread(_is_intact, folder, version):
                    # Not for ever: a folder is evicted only while this process waits for its turn in between.
                    await lock.acquire(exclusive=True)
                    if not await asyncio.to_thread(_is_intact, folder, version):
                        await self._download(version, folder)
                    await lock.acquire(exclusive=False)
            except BaseException:
                lock.release()
                raise
            self._held[version.digest] = lock
            return folder / "files"

    async def _download(self, version: Version, folder: Path) -> None:
        incoming = folder.with_name(f"{version.digest}.incoming")  # kept after a failure, so that the next try resumes
        turns = asyncio.Semaphore(_DOWNLOADS_AT_ONCE)

        async def download(file: BlobFile) -> None:
            path = incoming / "files" / file.path
            async with turns:
                if not path.exists() or await asyncio.to_thread(digest_file, path) != file.sha256:
                    await self._registry.download_file(file.sha256, path)

        failure: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as group:
                for file in version.manifest.files:
                    group.create_task(download(file))
        except* (VPLabError, OSError) as failures:
            failure = failures.exceptions[0]
        if failure is not None:
            raise failure
        (incoming / "files").mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(_write_json, incoming / "version.json", asdict(version))
        await asyncio.to_thread(_discard, folder)
        await asyncio.to_thread(os.replace, incoming, folder)

    async def _last_known_good(self, name: str, error: VPLabError) -> Snapshot:
        digest = await asyncio.to_thread(self._recall, name)
        version = None if digest is None else await asyncio.to_thread(_read_version, self._folder(digest))
        if version is None:
            raise error
        folder = self._folder(version.digest)
        async with self._busy.setdefault(version.digest, asyncio.Lock()):
            if version.digest not in self._held:
                lock = FileLock(self._root / "locks" / version.digest)
                await lock.acquire(exclusive=False)
                if not await asyncio.to_thread(_is_intact, folder, version):
                    lock.release()
                    raise DataLoss(f"{version.name} is damaged on disk, and {error.message}") from error
                self._held[version.digest] = lock
        return Snapshot(folder / "files", version.name, version.digest, version.manifest, False)

    def _remember(self, name: str, digest: str) -> None:
        path = self._name_path(name)
        if self._recall(name) != digest:
            _write_json(path, {"name": name, "digest": digest})
        os.utime(self._root / "locks" / digest)

    def _recall(self, name: str) -> str | None:
        content = _read_json(self._name_path(name))
        digest = content.get("digest") if isinstance(content, dict) else None
        return digest if isinstance(digest, str) else None

    def _evict(self) -> None:
        versions = [path for path in (self._root / "versions").iterdir() if len(path.name) == 64]
        sizes = {path: sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) for path in versions}
        excess = sum(sizes.values()) - self._max_bytes
        for path in sorted(versions, key=lambda path: _last_use(self._root / "locks" / path.name)):
            if excess <= 0:
                return
            with FileLock(self._root / "locks" / path.name) as lock:
                if lock.try_acquire(exclusive=True):
                    _discard(path)
                    excess -= sizes[path]

    def _folder(self, digest: str) -> Path:
        return self._root / "versions" / digest

    def _name_path(self, name: str) -> Path:
        return self._root / "names" / f"{hashlib.sha256(name.encode()).hexdigest()}.json"


def _is_intact(folder: Path, version: Version) -> bool:
    for file in version.manifest.files:
        path = folder / "files" / file.path
        if not path.is_file() or path.stat().st_size != file.size_bytes or digest_file(path) != file.sha256:
            return False
    return (folder / "version.json").is_file()


def _read_version(folder: Path) -> Version | None:
    content = _read_json(folder / "version.json")
    try:
        stored = content["manifest"]
        manifest = Manifest(
            **{
                **stored,
                "files": tuple(BlobFile(**file) for file in stored["files"]),
                "lineage": tuple(Lineage(**item) for item in stored["lineage"]),
            }
        )
        return Version(content["name"], content["digest"], manifest, content["kind"], None)
    except (KeyError, TypeError):
        return None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    part.write_text(json.dumps(content, default=str), encoding="utf-8")
    os.replace(part, path)


def _discard(folder: Path) -> None:
    """Remove a folder in a way that never leaves half of it under its name."""
    if folder.exists():
        doomed = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.removed")
        os.replace(folder, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _last_use(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
