"""What the training service speaks of, as plain values; a task and its events also go to the worker processes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final

from vplab.vision.images import PixelFormat

PARITY_PASSED: Final = "parity_passed"
"""Metric of a published version: 1 if its graph matches what it was made from; the registry promotes none with 0."""


class TuningMethod(StrEnum):
    """A parameter-efficient fine-tuning method, in the contract's words."""

    E_PEFT = "e_peft"
    LORA = "lora"
    IA3 = "ia3"
    PROMPT_TOKENS = "prompt_tokens"
    IMAGE_CONTEXT = "image_context"
    HQ_TOKEN = "hq_token"
    BOFT = "boft"
    CONV_LORA = "conv_lora"
    QLORA = "qlora"
    ADAPTER_LAYERS = "adapter_layers"
    FULL_DECODER = "full_decoder"
    E_PEFT_PAPER = "e_peft_paper"


class JobKind(StrEnum):
    """What a job makes; all kinds share one queue."""

    TUNING = "tuning"
    EXPORT = "export"


class JobState(StrEnum):
    """The state of a job; the last three are terminal."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL_STATES = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})


class Stage(StrEnum):
    """What a job is at, in this order; each one's seconds are a metric of the job."""

    QUEUE = "queue"
    FETCH = "fetch"
    EMBED = "embed"
    TRAIN = "train"
    EXPORT = "export"
    PUBLISH = "publish"
    PROMOTE = "promote"


@dataclass(frozen=True)
class ModelRef:
    """Exactly one published version."""

    name: str
    """``artifacts/{artifact}/versions/{number}``."""
    digest: str
    """sha256 hex of its canonical manifest."""


@dataclass(frozen=True)
class DatasetVersion:
    """A published data set whose images and masks were checked."""

    model: ModelRef
    num_images: int


@dataclass(frozen=True)
class TuningOptions:
    """What a job can be told; None means the method's default, or that the method has no such number."""

    num_steps: int | None = None
    learning_rate: float | None = None
    lora_rank: int | None = None
    num_prompt_tokens: int | None = None
    seed: int | None = None
    early_features: bool | None = None
    """Whether the image encoder's early feature is fused; in a plan None is a method that cannot, or an older plan."""


@dataclass(frozen=True)
class TuningPlan:
    """A tuning with every name resolved and every default filled in: equal plans give equal adapters."""

    adapter_id: str
    dataset: ModelRef
    segmenter: ModelRef
    prompt_set: ModelRef | None
    """Whose matcher's proposals are trained on too."""
    method: TuningMethod
    options: TuningOptions
    promote_alias: str = ""
    """Moved to the new version once it is published and its export is exact; empty moves none."""
    promote_only_if_better: bool = False
    feature_encoder: ModelRef | None = None
    """Whose patch features find proposals where there is no prompt set; None trains on clicks and boxes."""


@dataclass(frozen=True)
class NewJob:
    """A job about to be queued."""

    kind: JobKind
    request_id: str
    """The caller's UUID, for idempotence."""
    fingerprint: str
    """sha256 hex of what the caller asked for; a repeated request_id must come with the same."""
    plan: TuningPlan


@dataclass(frozen=True)
class Job:
    """A job as it is now."""

    job_id: str
    kind: JobKind
    state: JobState
    stage: Stage
    plan: TuningPlan
    adapter: ModelRef | None
    """None until the job succeeded."""
    metrics: Mapping[str, float]
    message: str
    """Why it failed or was put back; empty otherwise."""
    promotion: str
    """What became of ``promote_alias``; empty where none was asked for, and until the end."""
    create_time: datetime
    end_time: datetime | None

    @property
    def name(self) -> str:
        """The contract's name."""
        return f"{COLLECTIONS[self.kind]}/{self.job_id}"


COLLECTIONS = {JobKind.TUNING: "tuningJobs", JobKind.EXPORT: "exportJobs"}


@dataclass(frozen=True)
class Progress:
    """One report of the optimisation."""

    step: int
    """From 1 on; after a takeover it goes on from the last checkpoint, so a step may be told twice."""
    num_steps: int
    loss: float
    validation_iou: float | None = None


@dataclass(frozen=True)
class Preview:
    """What the adapter makes of a validation image."""

    file_name: str
    class_id: int
    size_hw: tuple[int, int]
    runs: tuple[int, ...] = field(repr=False)
    """Row-major run lengths of the mask, the first counting zeros."""


@dataclass(frozen=True)
class JobEvent:
    """One event of a job."""

    sequence: int
    """From 1 on without gaps."""
    state: JobState
    event: Progress | Preview | Job


Report = Progress | Preview | Stage
"""What whoever works on a job tells meanwhile."""


@dataclass(frozen=True)
class Checkpoint:
    """Where a tuning can go on."""

    step: int
    data: bytes = field(repr=False)


@dataclass(frozen=True)
class Lease:
    """The right to work on a job, until it expires or another one is given."""

    job_id: str
    token: int
    """Fencing token: grows with every lease of the job; what comes with an older one changes nothing."""
    owner: str


@dataclass(frozen=True)
class Claim:
    """A job that was taken from the queue."""

    lease: Lease
    job: Job
    checkpoint: Checkpoint | None
    num_claims: int
    """How often it was taken since something of it was last kept, this time included."""
    is_committed: bool
    """Whether its adapter may have been published already."""
    queued_s: float
    """Seconds from its creation to the first time it was taken."""


@dataclass(frozen=True)
class TuningResult:
    """What a tuning made."""

    adapter: ModelRef
    metrics: Mapping[str, float]
    """``validation_iou_before``, ``validation_iou_after`` and what else was measured, seconds of stages included."""
    parity_passed: bool
    """Whether the exported graph does what the tuned decoder does."""
    compared: ModelRef | None = None
    """The version behind ``promote_alias`` that was measured on the same validation images."""


@dataclass(frozen=True)
class EncodedImage:
    """A whole file; not decoded."""

    data: bytes = field(repr=False)


@dataclass(frozen=True)
class FrameImage:
    """An uncompressed camera frame."""

    data: bytes = field(repr=False)
    width: int
    height: int
    stride_bytes: int
    pixel_format: PixelFormat


@dataclass(frozen=True)
class DraftMask:
    """Where one class is, as it came."""

    class_id: int
    size_hw: tuple[int, int]
    runs: tuple[int, ...] = field(repr=False)
    field: str = ""
    """Its path in the request, for errors."""


@dataclass(frozen=True)
class DraftImage:
    """An image of a data set that came with a request."""

    file_name: str
    image: EncodedImage | FrameImage
    masks: tuple[DraftMask, ...]


@dataclass(frozen=True)
class DraftDataset:
    """A data set that came with a request."""

    classes: Mapping[int, str]
    """Display name by class id."""
    images: tuple[DraftImage, ...]


@dataclass(frozen=True)
class TuningDraft:
    """A request for a tuning job, checked as far as it can be without asking anybody."""

    source: str | DraftDataset
    """Full version or alias name, or the data itself."""
    adapter_id: str
    segmenter: str
    """Full version or alias name; empty means the server's default."""
    prompt_set: str
    """Version, alias or artifact name; empty means none."""
    method: TuningMethod
    options: TuningOptions
    promote_alias: str
    promote_only_if_better: bool
    request_id: str
    fingerprint: str
    segmenter_digest: str = ""
    """Of the version that ``segmenter`` has to mean; empty takes whichever it means."""
    prompt_set_digest: str = ""
    dataset_digest: str = ""


@dataclass(frozen=True)
class ExportDraft:
    """A request for a line bundle, checked as far as it can be without asking anybody."""

    bundle_id: str
    prompt_set: str
    """Version, alias or artifact name."""
    adapter: str
    """Version or alias name; empty exports the segmenter as it is."""
    request_id: str
    fingerprint: str


@dataclass(frozen=True)
class ExportPlan:
    """A line bundle with every name resolved: equal plans give equal files."""

    bundle_id: str
    prompt_set: ModelRef
    segmenter: ModelRef
    image_encoder: ModelRef
    feature_encoder: ModelRef
    adapter: ModelRef | None

    @property
    def lineage(self) -> Mapping[str, ModelRef]:
        """What the bundle is made from, by relation."""
        made_from = {
            "prompt_set": self.prompt_set,
            "segmenter": self.segmenter,
            "image_encoder": self.image_encoder,
            "feature_encoder": self.feature_encoder,
        }
        return made_from if self.adapter is None else made_from | {"adapter": self.adapter}


@dataclass(frozen=True)
class ExportJob:
    """The making of one bundle, as it is now."""

    job_id: str
    state: JobState
    plan: ExportPlan
    bundle: ModelRef | None
    """None until the job succeeded."""
    message: str
    """Why it failed, or waits for another try; empty otherwise."""
    create_time: datetime
    end_time: datetime | None

    @property
    def name(self) -> str:
        """The contract's name."""
        return f"{COLLECTIONS[JobKind.EXPORT]}/{self.job_id}"


@dataclass(frozen=True)
class ExportClaim:
    """An export that was taken from the queue."""

    lease: Lease
    job: ExportJob
    num_claims: int
    """How often it was taken, this time included."""
