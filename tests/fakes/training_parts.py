"""Stand-ins for what the training service talks to: an executor without models, data sets and models without files."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from vplab.client import AsyncClient, ClientOptions
from vplab.errors import InvalidInput, NotFound
from vplab.runtime.server import running_server
from vplab.training.composition import open_training
from vplab.training.config import TrainingConfig
from vplab.training.ports import WorkReports
from vplab.training.values import (
    Checkpoint,
    Claim,
    DatasetVersion,
    DraftDataset,
    ExportDraft,
    ExportPlan,
    ModelRef,
    Progress,
    Stage,
    TuningPlan,
    TuningResult,
)

SEGMENTER = ModelRef("artifacts/fake-segmenter/versions/1", "5" * 64)
ENCODER = ModelRef("artifacts/fake-encoder/versions/1", "7" * 64)
PROMPT_SET = ModelRef("artifacts/fake-prompts/versions/1", "9" * 64)
DATASET = ModelRef("artifacts/fake-data/versions/1", "d" * 64)
NUM_STEPS = 6


async def _at_once(step: int) -> None:
    await asyncio.sleep(0)


@dataclass
class FakeExecutor:
    """Counts to NUM_STEPS with a checkpoint every second step; ``before_step`` may wait or raise."""

    num_slots: int = 1
    before_step: Callable[[int], Awaitable[None]] = _at_once
    result: TuningResult | None = None
    starts: list[int] = field(default_factory=list)
    """The step each run began with."""
    num_committed: int = 0
    num_cancelled: int = 0

    def check_available(self) -> None:
        return

    async def run(self, claim: Claim, reports: WorkReports) -> TuningResult:
        first = claim.checkpoint.step if claim.checkpoint else 0
        self.starts.append(first)
        try:
            await reports.report([Stage.TRAIN])
            for step in range(first + 1, NUM_STEPS + 1):
                await self.before_step(step)
                await reports.report([Progress(step, NUM_STEPS, 1 / step, 0.5 if step == NUM_STEPS else None)])
                if step % 2 == 0:
                    await reports.checkpoint(Checkpoint(step, b"checkpoint %d" % step))
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        await reports.report([Stage.PUBLISH])
        await reports.commit()
        self.num_committed += 1
        return self.result or fake_result(claim.job.plan)


def fake_result(plan: TuningPlan, **changes: float) -> TuningResult:
    """Return what a run gives unless told otherwise; ``changes`` are metrics."""
    metrics = {"validation_iou_before": 0.4, "validation_iou_after": 0.6, "seconds_train": 0.1}
    adapter = ModelRef(f"artifacts/{plan.adapter_id}/versions/1", "a" * 64)
    return TuningResult(adapter, metrics | changes, parity_passed=True)


@dataclass
class FakeDatasets:
    """One data set, and whatever is published."""

    published: dict[str, DraftDataset] = field(default_factory=dict)
    """By request id."""

    async def find(self, name: str) -> DatasetVersion:
        if not name.startswith("artifacts/fake-data/"):
            raise NotFound(f"{name} does not exist", metadata={"name": name})
        return DatasetVersion(DATASET, 5)

    async def publish(self, dataset_id: str, draft: DraftDataset, request_id: str) -> DatasetVersion:
        if not any(image.masks for image in draft.images):
            raise InvalidInput("no image holds any class", field="inline.images")
        self.published.setdefault(request_id, draft)
        return DatasetVersion(ModelRef(f"artifacts/{dataset_id}/versions/1", "e" * 64), len(draft.images))


@dataclass
class FakeModels:
    """One segmenter and aliases that move when told to."""

    bases: dict[str, str] = field(default_factory=dict)
    """Segmenter digests of prompt sets by name and of adapters by artifact id."""
    promoted: list[tuple[str, str, str]] = field(default_factory=list)
    """Alias, version and reason."""
    channels: int | None = None
    """Of the early feature of the segmenter's image encoder."""

    async def find_segmenter(self, name: str) -> ModelRef:
        if not name.startswith("artifacts/fake-segmenter/"):
            raise NotFound(f"{name} does not exist", metadata={"name": name})
        return SEGMENTER

    async def early_channels(self, segmenter: ModelRef) -> int | None:
        return self.channels

    async def find_feature_encoder(self, name: str) -> ModelRef:
        return ENCODER

    async def find_prompt_set(self, name: str) -> tuple[ModelRef, str]:
        if name not in self.bases:
            raise NotFound(f"{name} does not exist", metadata={"name": name})
        return ModelRef(f"{name}/versions/1", "9" * 64), self.bases[name]

    async def adapter_base(self, adapter_id: str) -> str | None:
        return self.bases.get(adapter_id)

    async def promote(self, plan: TuningPlan, version: str, reason: str, compared: ModelRef | None) -> str:
        self.promoted.append((plan.promote_alias, version, reason))
        return f"moved {plan.promote_alias}"


@dataclass
class FakeBundles:
    """One prompt set; ``before_end`` may wait or raise."""

    before_end: Callable[[int], Awaitable[None]] = _at_once
    made: list[str] = field(default_factory=list)
    """The job of each try."""

    async def plan(self, draft: ExportDraft) -> ExportPlan:
        if draft.prompt_set != PROMPT_SET.name:
            raise NotFound(f"prompt_set: {draft.prompt_set} does not exist", metadata={"name": draft.prompt_set})
        return ExportPlan(draft.bundle_id, PROMPT_SET, SEGMENTER, ENCODER, ENCODER, None)

    async def make(self, plan: ExportPlan, job_name: str) -> ModelRef:
        self.made.append(job_name)
        await self.before_end(len(self.made))
        return ModelRef(f"artifacts/{plan.bundle_id}/versions/1", "f" * 64)


@dataclass
class Parts:
    """What a fake training service is made of."""

    executor: FakeExecutor = field(default_factory=FakeExecutor)
    datasets: FakeDatasets = field(default_factory=FakeDatasets)
    models: FakeModels = field(default_factory=FakeModels)
    bundles: FakeBundles = field(default_factory=FakeBundles)


def training_config(folder: Path, **changes: object) -> TrainingConfig:
    """Return settings that suit a test."""
    values: dict[str, object] = {
        "listen": "127.0.0.1:0",
        "cache_dir": folder / "training",
        "default_segmenter": "artifacts/fake-segmenter",
        "drain_grace_s": 0.2,
        "poll_s": 0.05,
        "lease_s": 5.0,
        "worker_threads": 1,
        "worker_niceness": 0,
    }
    return TrainingConfig(**(values | changes))  # type: ignore[arg-type]


@asynccontextmanager
async def fake_training(
    folder: Path, parts: Parts | None = None, **changes: object
) -> AsyncIterator[tuple[AsyncClient, Parts]]:
    """Serve training without models on a real database and channel."""
    parts = parts or Parts()
    config = training_config(folder, **changes)
    async with (
        open_training(config, parts.datasets, parts.models, parts.executor, parts.bundles) as service,
        running_server([service.registration], config, service="training", ready=service.ready) as server,
        AsyncClient(training=server.address, options=ClientOptions()) as client,
    ):
        yield client, parts
