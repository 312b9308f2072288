"""Segmenting a folder: several images in flight, each result on disk before it is recorded."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vplab.cli.image_files import ImageFile, link_or_copy, name_results
from vplab.cli.journal import ClassFigures, Entry, Journal
from vplab.cli.pictures import write_whole
from vplab.cli.terminal import describe
from vplab.client import AsyncClient, SegmentOptions
from vplab.client.segmentation.values import Segmentation
from vplab.errors import (
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    Internal,
    InvalidInput,
    ResourceExhausted,
    Unavailable,
    Unknown,
)
from vplab.vision.label_images import label_png

_PATIENCE_S = 60.0
"""How long an image waits for a service that is away or overloaded before the run stops."""
_PAUSE_S = (0.5, 5.0)

# One image's misfortune; every other kind would meet the next image too and stops the run.
_OF_THE_IMAGE = (InvalidInput, DeadlineExceeded, Internal, Unknown, DataLoss)


@dataclass(frozen=True)
class FolderRun:
    """Everything that is the same for all images."""

    client: AsyncClient
    out: Path
    prompt_set: str
    """Exact version: an alias could move between two images."""
    adapter: str = ""
    options: SegmentOptions | None = None
    num_in_flight: int = 4
    timeout_s: float | None = None

    async def run(self, images: Sequence[ImageFile], journal: Journal, on_entry: Callable[[Entry], None]) -> None:
        """Segment every image that the journal does not hold yet; failures are entries too and are tried again.

        Raises what would fail for every image, such as NotFound, and Unavailable after a minute of waiting.
        """
        names = name_results((i.key for i in images), {e.image: e.name for e in journal.entries.values() if e.name})
        waiting = asyncio.Queue[ImageFile]()
        for image in images:
            if not self.is_done(image, journal):
                waiting.put_nowait(image)

        async def work() -> None:
            while not waiting.empty():
                image = waiting.get_nowait()
                entry = await self._segment(image, names[image.key])
                journal.add(entry)
                on_entry(entry)

        workers = [asyncio.create_task(work()) for _ in range(min(self.num_in_flight, waiting.qsize()))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    def is_done(self, image: ImageFile, journal: Journal) -> bool:
        """Say whether the journal holds a result for this very file."""
        entry = journal.entries.get(image.key)
        if entry is None or not entry.is_done or not mask_path(self.out, entry.name).is_file():
            return False
        stat = image.path.stat()
        return (stat.st_size, stat.st_mtime_ns) == (entry.size_bytes, entry.modified_ns)

    async def _segment(self, image: ImageFile, name: str) -> Entry:
        began = time.monotonic()
        try:
            stat = await asyncio.to_thread(image.path.stat)
            data = await asyncio.to_thread(image.path.read_bytes)
        except OSError as error:
            return Entry(image.key, 0, 0, error=f"cannot be read: {error.strerror or error}")
        try:
            result = await self._patiently(data)
        except _OF_THE_IMAGE as error:
            return Entry(image.key, stat.st_size, stat.st_mtime_ns, error=describe(error))
        except ResourceExhausted as error:
            if error.reason != "MESSAGE_TOO_LARGE":
                raise
            return Entry(image.key, stat.st_size, stat.st_mtime_ns, error=describe(error))
        await asyncio.to_thread(self._store, image, name, result)
        height, width = result.image_size_hw
        return Entry(
            image=image.key,
            size_bytes=stat.st_size,
            modified_ns=stat.st_mtime_ns,
            name=name,
            width=width,
            height=height,
            seconds=round(time.monotonic() - began, 4),
            classes=_figures(result),
        )

    async def _patiently(self, data: bytes) -> Segmentation:
        give_up, pause_s = time.monotonic() + _PATIENCE_S, _PAUSE_S[0]
        while True:
            try:
                return await self.client.segmentation.segment_image(
                    data, self.prompt_set, adapter=self.adapter, options=self.options, timeout_s=self.timeout_s
                )
            except (Unavailable, ResourceExhausted, Cancelled) as error:
                if getattr(error, "reason", "") == "MESSAGE_TOO_LARGE" or time.monotonic() > give_up:
                    raise
                await asyncio.sleep(error.retry_after_s or pause_s)
                pause_s = min(pause_s * 2, _PAUSE_S[1])

    def _store(self, image: ImageFile, name: str, result: Segmentation) -> None:
        try:
            write_whole(mask_path(self.out, name), label_png(result.label_image()))
            link_or_copy(image.path, self.out / "images" / f"{name}{image.path.suffix.lower()}")
        except OSError as error:
            message = f"cannot write to {self.out}: {error.strerror or error}"
            raise ResourceExhausted(message, reason="STORAGE_FULL") from error


def mask_path(out: Path, name: str) -> Path:
    """Return where an image's label image is."""
    return out / "masks" / f"{name}.png"


def _figures(result: Segmentation) -> tuple[ClassFigures, ...]:
    return tuple(
        ClassFigures(
            class_id=found.class_id,
            display_name=found.display_name,
            present=found.present,
            score=round(found.score, 6),
            presence_score=round(found.presence_score, 6),
            area_px=int(found.mask.sum()),
            num_instances=len(found.instances),
        )
        for found in result.classes
    )
