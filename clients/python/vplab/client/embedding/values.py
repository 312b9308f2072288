"""What the embedding service speaks of, as plain values."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from numpy.typing import NDArray

from vplab.client.models import ModelReference
from vplab.errors import NotFound, VPLabError

Precision = Literal["float32", "float16"]
OutputRole = Literal["image_embedding", "patch_features", "early_features", "colours"]


@dataclass(frozen=True)
class EncoderOutput:
    """One output of an encoder."""

    name: str
    role: str
    """An ``OutputRole``."""
    shape: tuple[int, ...]
    """Shape for one image, in the order the role states."""
    stride: int
    """Input pixels per grid cell."""


@dataclass(frozen=True)
class Encoder:
    """An image encoder that the service offers."""

    model: ModelReference
    family: str
    architecture: str
    outputs: tuple[EncoderOutput, ...]
    input_size: int
    """Side of the square input, in pixels."""
    preprocessing_digest: str
    loaded: bool
    execution_provider: str
    """What runs it; empty until loaded."""


@dataclass(frozen=True, eq=False)
class OutputTensor:
    """One output's values for one image."""

    name: str
    role: str
    """An ``OutputRole``."""
    array: NDArray[Any]
    """(C, h, w) for embeddings and early features, (h, w, D) L2-normalised for patch features; in the embedding's
    precision."""


@dataclass(frozen=True, eq=False)
class Embedding:
    """What one encoder returned for one image."""

    name: str
    """``embeddings/{key}``."""
    encoder: ModelReference
    image_digest: str
    image_size_hw: tuple[int, int]
    """Size of the oriented original, in pixels."""
    precision: str
    """A ``Precision``."""
    tensors: tuple[OutputTensor, ...]
    """Empty where the values were not asked for."""
    tier: str
    """Where it was found: ``computed``, ``host``, ``durable`` or ``device``."""

    def output(self, role: OutputRole) -> NDArray[Any]:
        """Return the values of the output with that role. Raises NotFound."""
        for tensor in self.tensors:
            if tensor.role == role:
                return tensor.array
        raise NotFound(f"{self.name} holds no {role}")


@dataclass(frozen=True, eq=False)
class StreamedEmbeddings:
    """The answer to one image of a stream."""

    item_id: str
    embeddings: tuple[Embedding, ...]
    """In the order of the encoders; empty where ``error`` is set."""
    error: VPLabError | None
    """Why this image failed; the others go on."""


@dataclass(frozen=True)
class PrecomputeJob:
    """A job that fills the cache."""

    name: str
    state: str
    """``queued``, ``running``, or one of the terminal ``succeeded``, ``failed``, ``cancelled``."""
    num_images: int
    num_done: int
    num_failed: int
    errors: tuple[tuple[str, VPLabError], ...]
    """The first 100 failures: blob digest and error."""
    encoders: tuple[ModelReference, ...]
    message: str
    create_time: datetime | None
    end_time: datetime | None

    @property
    def is_done(self) -> bool:
        """Whether the state is terminal."""
        return self.state in ("succeeded", "failed", "cancelled")
