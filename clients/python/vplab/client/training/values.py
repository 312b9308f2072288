"""What the training service speaks of, as plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vplab.client.models import ModelReference
from vplab.client.segmentation.values import Masked, SegmentClass
from vplab.wire.images import ImageSource

TuningMethodName = Literal[
    "e_peft",
    "lora",
    "ia3",
    "prompt_tokens",
    "image_context",
    "hq_token",
    "boft",
    "conv_lora",
    "qlora",
    "adapter_layers",
    "full_decoder",
    "e_peft_paper",
]

TERMINAL_STATES = frozenset({"succeeded", "failed", "cancelled"})


@dataclass(frozen=True, eq=False)
class ValidatedImage:
    """An image whose masks a person has checked."""

    file_name: str
    image: ImageSource
    masks: Mapping[int, NDArray[np.bool_]]
    """Class id to (H, W) bool; a class that is missing is not there."""


@dataclass(frozen=True, eq=False)
class InlineDataset:
    """A small data set that goes with the request: 1 to 64 images."""

    classes: Sequence[SegmentClass]
    images: Sequence[ValidatedImage]


@dataclass(frozen=True)
class TuningOptions:
    """What a tuning job can be told; None means the method's default."""

    num_steps: int | None = None
    learning_rate: float | None = None
    lora_rank: int | None = None
    num_prompt_tokens: int | None = None
    seed: int | None = None
    early_features: bool | None = None
    """Whether ``hq_token`` fuses the image encoder's early feature; None does where there is one."""


@dataclass(frozen=True, eq=False)
class TuningRequest:
    """What to tune, with what, and what to do with the result."""

    adapter_id: str
    """The artifact to publish under; an existing one gets a new version."""
    data: str | InlineDataset
    """A dataset version or alias name, or the data itself."""
    segmenter: str = ""
    """Version or alias name; empty means the server's default."""
    prompt_set: str = ""
    """Its matcher's proposals are trained on too; empty takes the server's default feature encoder and softmatch."""
    method: TuningMethodName | None = None
    """None means E-PEFT."""
    options: TuningOptions = field(default_factory=TuningOptions)
    promote_alias: str = ""
    """Moved to the new version once it is published and its export is exact; empty moves none."""
    promote_only_if_better: bool = False
    """Move the alias only if the validation IoU is not below what it names now, or the segmenter's alone."""
    segmenter_digest: str = ""
    """Refuse the job where ``segmenter``, or the server's default, is another version; empty takes whichever it is."""
    prompt_set_digest: str = ""
    """The same of ``prompt_set``."""
    dataset_digest: str = ""
    """The same of a data set that ``data`` names."""


@dataclass(frozen=True)
class TuningJob:
    """One tuning of one adapter."""

    name: str
    state: str
    """``queued``, ``running``, ``succeeded``, ``failed`` or ``cancelled``."""
    method: str
    options: TuningOptions
    dataset: ModelReference
    segmenter: ModelReference
    adapter: ModelReference | None
    """None until the job succeeded."""
    metrics: Mapping[str, float]
    """``validation_iou_before`` and ``_after``, ``seconds_train`` and so on, as the contract lists them; empty until it
    succeeded."""
    message: str
    """Why it failed, or waits for another try; empty otherwise."""
    create_time: datetime | None
    end_time: datetime | None
    stage: str = ""
    """What it is at: ``queue``, ``fetch``, ``embed``, ``train``, ``export``, ``publish`` or ``promote``."""
    promotion: str = ""
    """What became of ``promote_alias``, in words; empty where none was asked for."""
    adapter_id: str = ""
    """The artifact to publish under."""
    prompt_set: ModelReference | None = None
    """None without one."""
    promote_alias: str = ""
    """The alias to move; empty where none was asked for."""

    @property
    def is_done(self) -> bool:
        """Whether the state is terminal."""
        return self.state in TERMINAL_STATES


@dataclass(frozen=True)
class TuningProgress:
    """One report of the optimisation."""

    step: int
    num_steps: int
    loss: float
    validation_iou: float | None
    """None where it was not measured at this step."""


@dataclass(frozen=True, eq=False)
class TuningPreview(Masked):
    """What the adapter makes of a validation image now."""

    file_name: str
    class_id: int


@dataclass(frozen=True, eq=False)
class TuningEvent:
    """One event of a job."""

    sequence: int
    """From 1 on without gaps; resume a watch from it."""
    state: str
    event: TuningProgress | TuningPreview | TuningJob


@dataclass(frozen=True)
class ExportJob:
    """The making of one bundle."""

    name: str
    state: str
    bundle: ModelReference | None
    """None until the job succeeded."""
    message: str
    create_time: datetime | None
    end_time: datetime | None

    @property
    def is_done(self) -> bool:
        """Whether the state is terminal."""
        return self.state in TERMINAL_STATES
