"""What service and worker process say to each other over their pipe. Imports no torch.

The service sends a ``Claim`` to work on, or ``WarmUp``; the worker answers with any number of reports and checkpoints
and with one ``Done`` or ``Failed``. ``CommitAsked`` is the only one that is replied to, by ``CommitGranted``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vplab import errors
from vplab.errors import Internal, VPLabError
from vplab.training.values import Checkpoint, Report, TuningResult


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker process is started with."""

    registry_address: str
    embedding_address: str
    cache_dir: Path
    device: str
    """``cpu``, ``cuda:0`` ..."""
    num_threads: int
    niceness: int
    embedding_precision: Literal["float16", "float32"]
    max_image_bytes: int
    max_image_pixels: int
    max_message_bytes: int
    graph_dir: Path | None = None
    """Where exported graphs are kept; None is below ``cache_dir``."""
    worker_class: str = "vplab.training.worker.job:TuningWorker"
    """Module and class of what works, loaded in the process only: it takes seconds to load torch."""
    log_level: str = "info"
    log_format: str = "auto"

    @property
    def graphs(self) -> Path:
        """Folder of the exported graphs that adapters' weights are put into; there once the first one is."""
        return self.graph_dir or self.cache_dir / "graphs"


@dataclass(frozen=True)
class WarmUp:
    """Load torch and a segmenter, so that the first job finds them there."""

    segmenter: str
    exports: bool = False
    """Whether the graph of the default method's adapters is exported too, which takes longer than all else."""


@dataclass(frozen=True)
class Alive:
    """Work goes on, with nothing to tell about it."""


@dataclass(frozen=True)
class CommitAsked:
    """The worker is about to publish and waits for leave to do so."""


@dataclass(frozen=True)
class CommitGranted:
    """The job is this worker's, and can no longer be cancelled."""


@dataclass(frozen=True)
class Done:
    """The job, or warming up, is done."""

    result: TuningResult | None


@dataclass(frozen=True)
class Failed:
    """The job cannot be done."""

    kind: str
    """Class name in ``vplab.errors``."""
    message: str
    reason: str
    metadata: Mapping[str, str]

    @classmethod
    def of(cls, error: VPLabError) -> "Failed":
        """Return what is told of an error."""
        kind = next(c.__name__ for c in type(error).__mro__ if c.__module__ == VPLabError.__module__)
        return cls(kind, error.message, error.reason, error.metadata)

    def error(self) -> VPLabError:
        """Return the error again."""
        kind = getattr(errors, self.kind, Internal)
        made: VPLabError = kind(self.message, reason=self.reason, metadata=self.metadata)
        return made


FromWorker = Report | Checkpoint | Alive | CommitAsked | Done | Failed
