"""One tuning job from its plan to a published adapter, in the stages that the contract names."""

import asyncio
import resource
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Final

import structlog
import torch

from vplab.client import AsyncClient, AsyncSnapshots, ClientOptions
from vplab.errors import VPLabError
from vplab.training.backends.client_adapter_versions import ClientAdapterVersions
from vplab.training.backends.client_job_inputs import ClientJobInputs, JobInputs
from vplab.training.backends.client_models import ClientModels
from vplab.training.core.options import adapter_spec, recipe
from vplab.training.models.parity import ParityReport
from vplab.training.tuning.examples import build_examples
from vplab.training.tuning.trainer import tune
from vplab.training.tuning.values import (
    EmbeddedView,
    TuningExample,
    TuningMetrics,
    TuningOptions,
    TuningPreview,
    TuningProgress,
    TuningResult,
)
from vplab.training.values import Checkpoint, Claim, ModelRef, Preview, Progress, Stage, TuningMethod, TuningPlan
from vplab.training.values import TuningOptions as ServedOptions
from vplab.training.values import TuningResult as PublishedResult
from vplab.training.worker.adapter_files import AdapterVersion, write_adapter
from vplab.training.worker.decoder_weights import load_decoder
from vplab.training.worker.graph_templates import GraphTemplates
from vplab.training.worker.mask_prompts import box_previews
from vplab.training.worker.messages import Alive, WorkerSettings
from vplab.training.worker.process import Link
from vplab.training.worker.promoted import num_known, validation_of
from vplab.training.worker.stopwatch import Instant, Stopwatch
from vplab.vision.adapters.adapt import AdaptedDecoder, adapt
from vplab.vision.images import ImageLimits
from vplab.vision.masks import encode_runs
from vplab.vision.sam.onnx_decoder import PromptDecoder
from vplab.vision.specs import SegmenterSpec, spec_from_json

_log = structlog.get_logger(__name__)

_MAX_BASES: Final = 2
_PROGRESS_S: Final = 0.1
"""Least time between two reports: a person sees no more, and each is a row in the database."""
_MAX_RUNS: Final = 100_000
"""Of a preview; a mask of noise says nothing and would fill the database."""


class TuningWorker:
    """Works on jobs one after another and keeps what the next may need: segmenters, connections, exported graphs."""

    def __init__(self, settings: WorkerSettings) -> None:
        torch.set_num_threads(settings.num_threads)
        # Threads take this over from the one that starts them, which is before the first tuning asks for it.
        torch.set_flush_denormal(True)
        self._settings = settings
        self._loop = asyncio.Runner()
        self._bases: OrderedDict[str, PromptDecoder] = OrderedDict()
        self._templates = GraphTemplates(settings.graphs)

    def warm_up(self, segmenter: str, *, exports: bool) -> None:
        """Load a segmenter, and have the graph of the default method's adapters exported, once for all jobs."""
        self._loop.run(self._warm_up(segmenter, exports=exports))

    def work_on(self, claim: Claim, link: Link) -> PublishedResult:
        """Tune, export and publish."""
        return self._loop.run(self._work_on(claim, link))

    async def _warm_up(self, segmenter: str, *, exports: bool) -> None:
        model = await ClientModels(self._client.registry).find_segmenter(segmenter)
        snapshot = await self._snapshots.fetch(model.name)
        spec = spec_from_json((snapshot.folder / "model.json").read_bytes())
        if isinstance(spec, SegmenterSpec):
            base = self._base(ModelRef(model.name, model.digest), snapshot.folder, spec)
            if exports:
                self._templates.prepare(adapt(base, adapter_spec(TuningMethod.E_PEFT, ServedOptions())))
        self._snapshots.release(snapshot.digest)

    async def _work_on(self, claim: Claim, link: Link) -> PublishedResult:
        plan, name = claim.job.plan, claim.job.name
        versions = ClientAdapterVersions(self._client.registry)
        if claim.is_committed and (published := await versions.find(plan, name)) is not None:
            return published
        work = _Work(claim, link, self._settings)
        async with AsyncExitStack() as stack:
            with work.stage(Stage.FETCH):
                inputs = await stack.enter_async_context(self._inputs.fetched(plan))
                base = self._base(plan.segmenter, inputs.segmenter_folder, inputs.segmenter_spec)
            num_images = len(inputs.dataset.items)
            options = recipe(plan.method, plan.options, num_images)
            with work.stage(Stage.EMBED):
                views = await self._inputs.embed(inputs, options.num_views, options.seed, work.alive)
            with work.stage(Stage.TRAIN):
                adapted, examples, result = work.train(base, inputs, views, options)
                compared, promoted = await self._compare(plan, inputs, examples, options, work)
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vplab-adapter-")))
            with work.stage(Stage.EXPORT):
                encoder = inputs.image_encoder.model
                version = AdapterVersion(plan, encoder, inputs.segmenter_spec, asdict(options), num_images)
                report = write_adapter(
                    folder, version, adapted, result, examples, self._templates, work.watch, work.alive
                )
            with work.stage(Stage.PUBLISH):
                link.commit()
                metrics = _metrics(num_images, adapted, result, report) | promoted
                licence = inputs.segmenter_licence
                published = await versions.publish(plan, name, folder, metrics, licence, encoder, compared)
        measured = {**published.metrics, **work.watch.metrics(), "peak_memory_bytes": _peak_memory_bytes()}
        return replace(published, metrics=measured)

    async def _compare(
        self,
        plan: TuningPlan,
        inputs: JobInputs,
        examples: Sequence[TuningExample],
        options: TuningOptions,
        work: "_Work",
    ) -> tuple[ModelRef | None, dict[str, float]]:
        """Measure what the alias serves now, where that decides whether it moves; nothing where it cannot be run."""
        models = ClientModels(self._client.registry)
        version = await models.promoted(plan) if plan.promote_only_if_better else None
        if version is None:
            return None, {}
        known = version.manifest.made_from("dataset")
        files = frozenset[str]() if known is None else await models.image_files(known)
        snapshot = await self._snapshots.fetch(version.name)
        try:
            with work.watch.measured("train_promoted"):
                spec = inputs.segmenter_spec
                measured = await asyncio.to_thread(validation_of, snapshot.folder / spec.graph, examples, spec, options)
        except VPLabError as error:
            _log.warning("promoted_adapter_not_measured", adapter=version.name, error=error.message)
            return None, {}
        finally:
            self._snapshots.release(snapshot.digest)
        figures = _validation("promoted", measured)
        figures["validation_images_known_to_promoted"] = float(
            num_known(inputs.dataset.items, files, examples, options)
        )
        return ModelRef(version.name, version.digest), figures

    def _base(self, model: ModelRef, folder: Path, spec: SegmenterSpec) -> PromptDecoder:
        """Return a segmenter's decoder, kept for the next job."""
        if model.digest not in self._bases:
            self._bases[model.digest] = load_decoder(folder, spec)
        self._bases.move_to_end(model.digest)
        while len(self._bases) > _MAX_BASES:
            self._bases.popitem(last=False)
        return self._bases[model.digest]

    # Made when first asked for, inside the loop that they then belong to.

    @cached_property
    def _client(self) -> AsyncClient:
        addresses = {"registry": self._settings.registry_address, "embedding": self._settings.embedding_address}
        options = replace(ClientOptions.from_environment(), max_message_bytes=self._settings.max_message_bytes)
        return AsyncClient(**addresses, options=options)

    @cached_property
    def _snapshots(self) -> AsyncSnapshots:
        return AsyncSnapshots(self._client.registry, self._settings.cache_dir / "models")

    @cached_property
    def _inputs(self) -> ClientJobInputs:
        limits = ImageLimits(self._settings.max_image_bytes, self._settings.max_image_pixels)
        return ClientJobInputs(self._client, self._snapshots, limits, self._settings.embedding_precision)


class _Work:
    """What is told and measured of one job."""

    def __init__(self, claim: Claim, link: Link, settings: WorkerSettings) -> None:
        self._claim = claim
        self._link = link
        self._settings = settings
        self._last_report = 0.0
        self._has_previews = False
        self.watch = Stopwatch()

    @contextmanager
    def stage(self, stage: Stage) -> Iterator[None]:
        """Tell that a stage begins, and measure it."""
        self._link.tell(stage)
        with self.watch.measured(stage):
            yield

    def alive(self) -> None:
        """Let the service know that work goes on."""
        self._link.tell(Alive())

    def train(
        self, base: PromptDecoder, inputs: JobInputs, views: Sequence[EmbeddedView], options: TuningOptions
    ) -> tuple[AdaptedDecoder, list[TuningExample], TuningResult]:
        """Return the trained adapter beside its decoder, what it was trained on, and how well it went."""
        plan = self._claim.job.plan
        with self.watch.measured("train_proposals"):
            threads = self._settings.num_threads
            examples = build_examples(views, inputs.class_ids, inputs.segmenter_spec, inputs.matcher, threads)
        self.alive()
        spec = adapter_spec(plan.method, plan.options, inputs.image_encoder.spec.early_channels)
        adapted = adapt(base, spec, seed=options.seed)
        names = [item.file_name for item in inputs.dataset.items]
        began = Instant.now()
        result = tune(
            adapted,
            examples,
            inputs.segmenter_spec,
            options,
            checkpoint=_Checkpoints(self._link, self._claim.checkpoint),
            on_progress=lambda progress: self._tell(progress, names),
            device=self._settings.device,
            num_threads=self._settings.num_threads,
        )
        part = "train_folds" if result.validation_kind == "held_out" else "train_all_images"
        self.watch.add(part, began, Instant.now())
        adapted = adapted.to("cpu").eval()
        if not self._has_previews:  # the trainer shows what serving's matcher finds, and there was no matcher
            for preview in box_previews(adapted, examples, inputs.segmenter_spec):
                self._show(preview, names)
        return adapted, examples, result

    def _tell(self, progress: TuningProgress, file_names: Sequence[str]) -> None:
        now, validation = time.monotonic(), progress.validation
        is_last = progress.step == progress.num_steps
        if validation is None and not is_last and now - self._last_report < _PROGRESS_S:
            return
        self._last_report = now
        iou = None if validation is None else validation.iou
        self._link.tell(Progress(progress.step, progress.num_steps, progress.loss, iou))
        for preview in progress.previews:
            self._show(preview, file_names)

    def _show(self, preview: TuningPreview, file_names: Sequence[str]) -> None:
        self._has_previews = True
        runs = encode_runs(preview.mask)
        if len(runs) <= _MAX_RUNS:
            height, width = preview.mask.shape
            name = file_names[preview.image_index]
            self._link.tell(Preview(name, preview.class_id, (height, width), tuple(runs.tolist())))


class _Checkpoints:
    """Implements CheckpointStore over the pipe: the service keeps what is saved in the job's database."""

    def __init__(self, link: Link, found: Checkpoint | None) -> None:
        self._link = link
        self._data = None if found is None else found.data
        self._num_saved = 0 if found is None else found.step

    def load(self) -> bytes | None:
        return self._data

    def save(self, data: bytes) -> None:
        self._num_saved += 1
        self._link.tell(Checkpoint(self._num_saved, data))


def _metrics(num_images: int, adapted: AdaptedDecoder, result: TuningResult, report: ParityReport) -> dict[str, float]:
    """Return what goes into the version's manifest: nothing that differs between equal jobs on equal machines."""
    return {
        **_validation("before", result.metrics_before),
        **_validation("after", result.metrics_after),
        "validation_is_held_out": float(result.validation_kind != "training"),
        "num_images": float(num_images),
        "num_parameters": float(adapted.num_adapter_parameters),
        **({} if adapted.early_channels is None else {"early_channels": float(adapted.early_channels)}),
        "best_step": float(result.chosen.step),
        "share": result.chosen.share,
        **report.metrics,
    }


def _validation(when: str, measured: TuningMetrics) -> dict[str, float]:
    parts = {"iou": measured.iou} | asdict(measured)
    return {f"validation_{name}_{when}": value for name, value in parts.items() if value is not None}


def _peak_memory_bytes() -> float:
    """Return the most memory that this process ever had; of the jobs before too."""
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
