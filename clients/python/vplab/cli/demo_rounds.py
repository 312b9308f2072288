"""The second half of ``vplab demo``: pseudolabels are corrected, a few of them tune the segmenter, and again."""

import asyncio
import contextlib
import importlib.util
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vplab.cli.connection import Where
from vplab.cli.folder_run import FolderRun, mask_path
from vplab.cli.image_files import ImageFile, link_or_copy
from vplab.cli.journal import Entry, Journal
from vplab.cli.pictures import write_whole
from vplab.cli.terminal import messages
from vplab.cli.tune_watch import JobProgress, follow_job
from vplab.client import AsyncClient, SegmentClass
from vplab.client.datasets import publish_dataset, read_folder
from vplab.client.models import ModelReference
from vplab.client.training.values import TuningJob, TuningOptions, TuningRequest
from vplab.errors import Internal, InvalidInput, VPLabError
from vplab.vision.label_images import label_png, read_labels
from vplab.vision.synthesis import InspectionImage

ADAPTER, DATASET = "demo-adapter", "demo-corrected"
NEEDS_TRAINING = "tuning was left out: it needs the training extra, pip install 'vplab[training]'"


@dataclass(frozen=True, eq=False)
class DemoImage:
    """A generated image and its file."""

    image: InspectionImage
    file: ImageFile


@dataclass(frozen=True, eq=False)
class Segmented:
    """What was found in some images: label images by key, without those that failed."""

    labels: dict[str, NDArray[np.uint8]]

    def ious(self, images: Sequence[DemoImage]) -> list[float]:
        """Return the IoU of each image that did not fail."""
        return [iou(self.labels[i.file.key] == 1, i.image.mask) for i in images if i.file.key in self.labels]


@dataclass(frozen=True, eq=False)
class Round:
    """One round of correcting and tuning."""

    num_corrected: int
    """Images tuned on: those of earlier rounds too."""
    pseudolabel_ious: list[float]
    """How well the pseudolabels fitted that were corrected in this round."""
    job: TuningJob
    adapter: ModelReference
    tested: Segmented
    seconds: float


@dataclass
class Correcting:
    """Everything that the rounds share."""

    client: AsyncClient
    out: Path
    prompt_set: str
    """Exact version."""
    test: Sequence[DemoImage]
    """Never corrected and never tuned on."""
    seed: int
    num_steps: int | None
    _adapter: str = field(default="", init=False)

    async def run(self, images: Sequence[DemoImage], number: int) -> Round:
        """Segment new images, correct them as the truth says, tune on all that are corrected, and test.

        Raises Unimplemented where the training service has no trainer, Internal when the job fails.
        """
        began = time.monotonic()
        folder = self.out / f"round{number}"
        with messages.status(f"round {number}: pseudolabels for {len(images)} images"):
            pseudo = await segment_files(self.client, images, folder / "pseudolabels", self.prompt_set, self._adapter)
        version, num_corrected = await self._correct(images, begins=number == 1)
        job = await self._tune(version)
        if job.adapter is None:
            raise Internal(f"{job.name} {job.state}: {job.message}")
        self._adapter = job.adapter.name
        with messages.status(f"round {number}: segmenting the test images with {self._adapter}"):
            tested = await segment_files(self.client, self.test, folder / "test", self.prompt_set, self._adapter)
        seconds = time.monotonic() - began
        return Round(num_corrected, pseudo.ious(images), job, job.adapter, tested, seconds)

    async def _correct(self, images: Sequence[DemoImage], *, begins: bool) -> tuple[str, int]:
        """Put the images with their true masks beside those of earlier rounds, and publish the folder."""
        folder = self.out / "corrected"
        try:
            if begins and folder.exists():
                shutil.rmtree(folder)  # an earlier demo's
            for demo_image in images:
                key = demo_image.file.key
                link_or_copy(demo_image.file.path, folder / "images" / key)
                write_whole(folder / "masks" / key, label_png(demo_image.image.mask.astype(np.uint8)))
        except OSError as error:
            raise InvalidInput(f"cannot write to {folder}: {error.strerror or error}", field="--out") from error
        classes = [SegmentClass(1, images[0].image.class_name)]
        dataset = await asyncio.to_thread(read_folder, folder, classes=classes, is_binary=False)
        return (await publish_dataset(self.client, DATASET, dataset)).name, len(dataset.items)

    async def _tune(self, version: str) -> TuningJob:
        request = TuningRequest(
            ADAPTER,
            version,
            prompt_set=self.prompt_set,
            options=TuningOptions(num_steps=self.num_steps, seed=self.seed),
            promote_alias="production",
            promote_only_if_better=True,
        )
        job = await self.client.training.create_tuning_job(request)
        try:
            with JobProgress() as progress:
                return await follow_job(self.client, job, progress.show)
        except asyncio.CancelledError:
            with contextlib.suppress(VPLabError):
                await self.client.training.cancel_tuning_job(job.name)
            raise


async def segment_files(
    client: AsyncClient, images: Sequence[DemoImage], out: Path, prompt_set: str, adapter: str = ""
) -> Segmented:
    """Segment images into a folder as ``vplab segment`` does."""
    entries = await run_folder(client, [i.file for i in images], out, prompt_set, adapter)
    return Segmented({key: read_labels(mask_path(out, entry.name)) for key, entry in entries.items() if entry.is_done})


async def run_folder(
    client: AsyncClient, files: Sequence[ImageFile], out: Path, prompt_set: str, adapter: str = ""
) -> dict[str, Entry]:
    """Segment files whatever an earlier demo left there, and return what became of each."""
    run = FolderRun(client, out, prompt_set, adapter)
    with tempfile.TemporaryDirectory() as folder, Journal.open(Path(folder) / "journal.jsonl", {}) as journal:
        await run.run(files, journal, lambda entry: None)
    return journal.entries


def can_tune(where: Where) -> bool:
    """Say whether there may be a training service: one that was named, or one that could be started here."""
    named = where.named()
    return "training" in named if named else importlib.util.find_spec("torch") is not None


def figures_of(rounds: Sequence[Round], test: Sequence[DemoImage]) -> list[dict[str, Any]]:
    """Return the rounds as JSON."""
    return [
        {
            "num_corrected": item.num_corrected,
            "pseudolabel_miou": _mean(item.pseudolabel_ious),
            "miou": _mean(item.tested.ious(test)),
            "adapter": {"name": item.adapter.name, "digest": item.adapter.digest},
            "metrics": dict(item.job.metrics),
            "promotion": item.job.promotion,
            "seconds": round(item.seconds, 3),
        }
        for item in rounds
    ]


def iou(found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Return intersection over union; 1 for two empty masks."""
    union = int((found | truth).sum())
    return int((found & truth).sum()) / union if union else 1.0


def _mean(ious: Sequence[float]) -> float | None:
    return float(np.mean(ious)) if ious else None
