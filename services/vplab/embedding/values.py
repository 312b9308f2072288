"""What the embedding service speaks of, as plain values."""

import hashlib
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Literal

import numpy as np
import numpy.typing as npt

from vplab.vision.images import PixelFormat
from vplab.vision.specs import EncoderSpec

Array = npt.NDArray[np.float32] | npt.NDArray[np.float16]
Role = Literal["image_embedding", "patch_features", "early_features", "colours"]


class Precision(StrEnum):
    """How an embedding is stored and sent."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"


class Tier(StrEnum):
    """Where an embedding was found."""

    COMPUTED = "computed"
    HOST = "host"
    DURABLE = "durable"


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
class KnownImage:
    """An image that was sent before; its embedding must still be cached."""

    digest: str


ImageInput = EncodedImage | FrameImage | KnownImage


@dataclass(frozen=True)
class ModelRef:
    """Exactly one published version."""

    name: str
    """``artifacts/{artifact}/versions/{number}``."""
    digest: str
    """sha256 hex of its canonical manifest."""


@dataclass(frozen=True)
class EncoderVersion:
    """An encoder as the registry describes it, whether loaded or not."""

    model: ModelRef
    spec: EncoderSpec


@dataclass(frozen=True)
class EncoderStatus:
    """An encoder and whether it is in memory."""

    version: EncoderVersion
    execution_provider: str | None
    """What runs it; None while it is not loaded."""


@dataclass(frozen=True)
class NamedTensor:
    """One output of an encoder for one image."""

    name: str
    role: Role
    array: Array
    """In the order the role states, in the embedding's precision, read-only."""


@dataclass(frozen=True)
class Embedding:
    """What one encoder returned for one image."""

    key: str
    encoder: ModelRef
    image_digest: str
    image_hw: tuple[int, int]
    """Size of the oriented original, in pixels."""
    precision: Precision
    tensors: tuple[NamedTensor, ...]

    @property
    def num_bytes(self) -> int:
        """Size of the values."""
        return sum(tensor.array.nbytes for tensor in self.tensors)


@dataclass(frozen=True)
class FoundEmbedding:
    """An embedding and where it came from."""

    embedding: Embedding
    tier: Tier


def embedding_key(image_digest: str, encoder: EncoderVersion, precision: Precision) -> str:
    """Return the key the contract states: everything that determines an embedding's bytes."""
    parts = (image_digest, encoder.model.digest, encoder.spec.preprocessing.digest, precision)
    return hashlib.sha256(":".join(parts).encode()).hexdigest()


class JobState(StrEnum):
    """The state of a job; the last three are terminal."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL_STATES = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})


@dataclass(frozen=True)
class ImageFailure:
    """Why one image of a job could not be embedded."""

    image_digest: str
    kind: str
    """Class name in ``vplab.errors``."""
    reason: str
    message: str


@dataclass(frozen=True)
class JobRequest:
    """What a precompute job is to do, with every name resolved."""

    request_id: str | None
    """The caller's UUID, for idempotence."""
    fingerprint: str
    """sha256 hex of what the caller asked for; a repeated request_id must come with the same."""
    images: tuple[str, ...]
    """Blob digests, which are image digests too; without repeats."""
    encoders: tuple[ModelRef, ...]
    precision: Precision


@dataclass(frozen=True)
class Job:
    """A precompute job as it is now."""

    job_id: str
    state: JobState
    num_images: int
    num_done: int
    num_failed: int
    failures: tuple[ImageFailure, ...]
    """The first 100."""
    encoders: tuple[ModelRef, ...]
    precision: Precision
    message: str
    """Why a job failed; empty otherwise."""
    create_time: datetime
    end_time: datetime | None
