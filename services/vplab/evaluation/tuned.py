"""Tuned adapters as methods: a job of the training service learns from the shots, segmentation serves the result.

One tuning for each method, number of shots and seed: clicks and every matcher share it, and it outlives a kill.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, get_args

from vplab.client import AsyncClient, SegmentClass
from vplab.client.datasets import Dataset, DatasetItem, PackedMasks, publish_dataset
from vplab.client.datasets.names import suffix_of
from vplab.client.models import ModelReference
from vplab.client.segmentation.values import MatcherName
from vplab.client.training.values import (
    TuningJob,
    TuningMethodName,
    TuningOptions,
    TuningProgress,
    TuningRequest,
)
from vplab.errors import (
    Cancelled,
    DeadlineExceeded,
    Internal,
    InvalidInput,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from vplab.evaluation.results import Results
from vplab.evaluation.served import (
    MAX_REFERENCES,
    NUM_IN_FLIGHT,
    ServedClicks,
    ServedPredictor,
    Services,
    patiently,
)
from vplab.evaluation.values import LabelledImage, Tuning

ADAPTERS: Final[dict[str, TuningMethodName]] = {name.replace("_", "-"): name for name in get_args(TuningMethodName)}
"""What ``--methods`` calls each tuning method."""
_CREATE_TIMEOUT_S: Final = 600.0
_PAUSE_S: Final = 0.5
_FEW_REFERENCES: Final = 5
"""Of a prompt set that says which matcher's proposals to train on: the job takes the references from its own images."""
_MAX_ATTEMPTS: Final = 100
_FAILURES: Final = ("failed", "cancelled")


@dataclass
class Tuner:
    """Has adapters made, each once."""

    services: Services
    results: Results
    num_steps: int | None = None
    """Of each tuning; None is the method's default."""
    on_stage: Callable[[str], None] = lambda stage: None
    """Told what a job is at."""
    _datasets: dict[tuple[str, ...], str] = field(default_factory=dict)
    _adapters: dict[tuple[str, int, int], str] = field(default_factory=dict)

    def adapter(self, method: str, shots: Sequence[LabelledImage], class_ids: Sequence[int], seed: int) -> str:
        """Return the adapter version that a method makes of the shots, tuned now unless it is there already.

        The prompt set of the same shots goes with the job, so that it learns from its matcher's proposals too.
        Raises Internal when the job fails, and what the services raise.
        """
        key = (method, len(shots), seed)
        if key not in self._adapters:
            known = self.results.tunings.get(key)
            if known is not None and self._is_there(known):
                self._adapters[key] = known.adapter
            else:
                self._adapters[key] = self._tuned(method, shots, class_ids, seed)
        return self._adapters[key]

    def forget(self) -> None:
        """Delete every adapter and data set of the run."""
        made = [self.services.artifact_id(m) for m in dict.fromkeys(method for method, _, _ in self.results.tunings)]
        self.services.forget(*made, *([self.services.artifact_id("data")] if made else []))

    def _is_there(self, known: Tuning) -> bool:
        registry = self.services.client.registry
        artifact = known.adapter.partition("/versions/")[0]
        try:
            version = patiently(lambda: registry.get_version(known.adapter))
            return (
                version.digest == known.digest
                and patiently(lambda: registry.get_artifact(artifact)).delete_time is None
            )
        except NotFound:
            return False

    def _tuned(self, method: str, shots: Sequence[LabelledImage], class_ids: Sequence[int], seed: int) -> str:
        references = shots if len(shots) <= MAX_REFERENCES else shots[:_FEW_REFERENCES]
        request = TuningRequest(
            adapter_id=self.services.artifact_id(method),
            data=self._dataset(shots, class_ids),
            segmenter=self.services.segmenter,
            prompt_set=self.services.prompt_set_of(references, class_ids),
            method=ADAPTERS[method],
            options=TuningOptions(num_steps=self.num_steps, seed=seed),
        )
        began = time.monotonic()
        job = self._ended(request)
        if job.adapter is None:
            raise Internal(f"{job.name} {job.state}: {job.message or 'the training service does not say why'}")
        self._note(method, len(shots), seed, job, job.adapter, time.monotonic() - began)
        return job.adapter.name

    def _ended(self, request: TuningRequest) -> TuningJob:
        """Return the job of a request once it ended: one that an interrupted run asked for already, or a new one.

        A job that failed in an earlier run is tried again under another request id.
        """
        training = self.services.client.training
        for attempt in range(_MAX_ATTEMPTS):
            said = (request.adapter_id, request.data, request.prompt_set, request.options.seed, attempt)
            request_id = self.services.request_id("tuning", *said)
            job = patiently(
                lambda: training.create_tuning_job(request, request_id=request_id, timeout_s=_CREATE_TIMEOUT_S)  # noqa: B023
            )
            if job.state in _FAILURES:
                continue
            return self._followed(job)
        raise Internal(f"{_MAX_ATTEMPTS} jobs of {request.adapter_id} failed: {job.message}")

    def _followed(self, job: TuningJob) -> TuningJob:
        """Return a job once it ended; a stream that breaks is begun again where it broke."""
        training, name, sequence = self.services.client.training, job.name, 0
        while not job.is_done:
            try:
                for event in training.watch_tuning_job(name, from_sequence=sequence):
                    sequence = event.sequence
                    if isinstance(event.event, TuningJob):
                        job = event.event
                        self.on_stage(job.stage)
                    elif isinstance(event.event, TuningProgress):
                        self.on_stage(f"step {event.event.step} of {event.event.num_steps}")
            except (Unavailable, ResourceExhausted, DeadlineExceeded, Cancelled):
                time.sleep(_PAUSE_S)
                job = patiently(lambda: training.get_tuning_job(name))
        return job

    def _note(
        self, method: str, num_shots: int, seed: int, job: TuningJob, adapter: ModelReference, wall_s: float
    ) -> None:
        version = patiently(lambda: self.services.client.registry.get_version(adapter.name))
        trained = version.manifest.file("adapter.safetensors")
        self.results.add_tuning(
            Tuning(
                method=method,
                num_shots=num_shots,
                seed=seed,
                adapter=adapter.name,
                digest=adapter.digest,
                num_parameters=round(job.metrics.get("num_parameters", 0)),
                adapter_bytes=0 if trained is None else trained.size_bytes,
                version_bytes=sum(file.size_bytes for file in version.manifest.files),
                wall_s=round(wall_s, 3),
                metrics={name: round(value, 5) for name, value in job.metrics.items()},
            )
        )

    def _dataset(self, shots: Sequence[LabelledImage], class_ids: Sequence[int]) -> str:
        """Publish the shots, once for all methods and seeds that learn from them, and return the version's name."""
        key = tuple(shot.name for shot in shots)
        if key not in self._datasets:
            dataset = Dataset(
                tuple(SegmentClass(class_id, f"class-{class_id}") for class_id in class_ids),
                tuple(self._items(shots, class_ids)),
            )

            async def publish(client: AsyncClient) -> ModelReference:
                dataset_id = self.services.artifact_id("data")
                return await publish_dataset(client, dataset_id, dataset, description="shots of an evaluation")

            self._datasets[key] = patiently(lambda: self.services.client.wait_for(publish)).name
        return self._datasets[key]

    def _items(self, shots: Sequence[LabelledImage], class_ids: Sequence[int]) -> list[DatasetItem]:
        items: dict[bytes, DatasetItem] = {}
        for shot in shots:
            image = self.services.encoded(shot.name)
            masks = {class_id: shot.mask_of(class_id) for class_id in class_ids}
            shown = PackedMasks({class_id: mask for class_id, mask in masks.items() if mask.any()})
            height, width = shot.labels.shape
            # A folder may hold a picture twice, a data set may not.
            name = f"{shot.name}.{suffix_of(image)}"
            items.setdefault(image, DatasetItem(name, image, (height, width), shown))
        if not any(item.masks for item in items.values()):
            raise InvalidInput("the shots show no class")
        return list(items.values())


@dataclass(frozen=True)
class TunedMatcher:
    """A matcher whose references are also what its segmenter was tuned on.

    There are as many references as the matcher alone gets of the same number of shots, so that the adapter is the only
    difference between the two. Without a shot there is nothing to tune: that is the matcher alone.
    """

    name: str
    matcher: MatcherName
    method: str
    """A key of ``ADAPTERS``."""
    tuner: Tuner
    min_shots: int = 1
    num_in_flight: int = NUM_IN_FLIGHT

    def fit(self, shots: Sequence[LabelledImage], class_ids: Sequence[int], seed: int) -> ServedPredictor:
        """Publish the shots as references and as a data set, and tune."""
        services = self.tuner.services
        prompt_set = services.prompt_set_of(shots, class_ids)
        adapter = self.tuner.adapter(self.method, shots, class_ids, seed)
        return ServedPredictor(services, prompt_set, self.matcher, seed, adapter)


@dataclass(frozen=True)
class TunedClicks:
    """The segmenter's boxes and clicks after tuning."""

    name: str
    """A key of ``ADAPTERS``."""
    tuner: Tuner

    def learn(self, shots: Sequence[LabelledImage], class_ids: Sequence[int], seed: int) -> ServedClicks:
        """Tune."""
        adapter = self.tuner.adapter(self.name, shots, class_ids, seed)
        return ServedClicks(self.name, self.tuner.services, adapter)
