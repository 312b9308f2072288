"""The training service's settings; the only list of the VPLAB_TRAINING_* variables beside the frame's."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from vplab.errors import InvalidInput
from vplab.runtime.onnx_session import num_cores
from vplab.runtime.settings import Seconds, ServerSettings, home
from vplab.wire.names import parse_version_or_alias

Count = Annotated[int, Field(ge=1)]


class TrainingConfig(ServerSettings, env_prefix="VPLAB_TRAINING_"):
    """What the training service can be told from outside."""

    listen: str = "127.0.0.1:7304"
    """``host:port`` or ``unix:/path``."""
    registry_address: str | None = None
    """Where the registry listens; unset is what every client reads, ``VPLAB_REGISTRY_ADDRESS`` or ``VPLAB_ADDRESS``."""
    embedding_address: str | None = None
    """Where the embedding service listens; unset is ``VPLAB_EMBEDDING_ADDRESS`` or ``VPLAB_ADDRESS``."""
    cache_dir: Path = Field(default_factory=lambda: home() / "training")
    """Folder for what can be had again: downloaded data sets and models. Replicas need not share it."""
    graph_dir: Path | None = None
    """Folder for exported decoder graphs without weights: one for each kind of adapter and size of base, which takes
    seconds to make. Any services of any home may share it; unset is below ``cache_dir``."""
    database_url: str | None = None
    """SQLAlchemy URL of the job queue; unset is a SQLite file below ``cache_dir``. Replicas that share a PostgreSQL
    share the queue: jobs, events and checkpoints are in it, and nothing else need be shared."""
    keep_jobs: Count = 1000
    """Ended jobs that are remembered, with their events."""

    default_segmenter: str = "artifacts/nano-segmenter"
    """Segmenter of jobs that name none."""
    default_feature_encoder: str = "artifacts/nano-encoder"
    """Encoder whose patch features find proposals to train on, for jobs that name no prompt set, as in the segmentation
    service; empty trains such jobs on clicks and boxes alone."""
    max_image_bytes: Count = 32 * 1024 * 1024
    """Largest file or frame."""
    max_image_pixels: Count = 100_000_000
    """Largest width times height."""
    max_images: Count = 2000
    """Largest data set to tune on: its embeddings and masks are in the trainer's memory together, two views of an image
    from eleven images on. A view of a SAM is 256x64x64 halves and for each class 1024x1024 of mask and piece ids, 3
    bytes a pixel: 5 MB, so that 2,000 images of one class take 20 GB, and the 1,000 of Kvasir-SEG 10; of nano, at 512,
    1.3 MB, 5 GB and 2.6. More than fits ends the worker: lower it on small machines."""
    max_inline_pixels: Count = 400_000_000
    """Most pixels of the images of one request, and of its masks: they are in memory together. Larger data sets are
    published first."""

    trains: bool = True
    """Whether this replica works on jobs; without, it only takes orders for others that share its queue."""
    devices: tuple[str, ...] = ()
    """Devices to train on, a JSON list such as ``["cuda:0", "cuda:1"]``, one worker process each; empty is one worker,
    on the first GPU where a device answers, else on the CPU."""
    worker_threads: Count = max(min(2, num_cores()), num_cores() // 2)
    """CPU threads of a worker: half of the cores, but two where there are no more. Clicks take theirs back by niceness.
    Equal adapters need equal numbers: sums are split by thread."""
    worker_niceness: Annotated[int, Field(ge=0, le=19)] = 10
    """How far a worker steps back behind interactive work on the same machine."""
    warm_start: bool = True
    """Whether workers start with the service, load the default segmenter and have the graph of the default method's
    adapters exported where it is not yet, instead of at their first job."""
    worker_idle_s: Seconds | None = 900.0
    """A worker with nothing to do for this long ends and gives its memory back; ``none`` keeps it warm for ever."""
    worker_silence_s: Seconds = 300.0
    """A worker that says nothing for this long hangs and is killed; its job goes on from the last checkpoint."""
    embedding_precision: Literal["float16", "float32"] = "float16"
    """Precision of the embeddings trained on: that of serving, so that both use the same cache. Line bundles round to
    it too."""

    lease_s: Annotated[float, Field(ge=0.5, le=3600)] = 15.0
    """How long a trainer that is heard of no more keeps its job; it renews the lease three times in that time."""
    poll_s: Annotated[float, Field(gt=0, le=60)] = 0.5
    """How often the queue is asked for jobs, and for events of watched jobs, of other replicas."""
    max_claims: Count = 20
    """How often a job is taken up without getting any further before it fails: it may be what kills its trainers."""

    @field_validator("default_segmenter", "default_feature_encoder")
    @classmethod
    def _check_name(cls, name: str, info: ValidationInfo) -> str:
        if not name and info.field_name == "default_feature_encoder":
            return name
        try:
            return str(parse_version_or_alias(name, field="name"))
        except InvalidInput as error:
            raise ValueError(error.message) from error

    @property
    def job_database_url(self) -> str:
        """The URL of the job queue."""
        return self.database_url or f"sqlite:///{self.cache_dir.absolute() / 'jobs.sqlite'}"
