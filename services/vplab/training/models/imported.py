"""What an import leaves behind: artifacts as folders of files, ready for a registry. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vplab.vision.specs import EncoderSpec, Precision, SegmenterSpec

ImportPrecision = Literal["float32", "float16", "float16-encoder"]

PARITY_IMAGE_SIZES_HW = tuple((64 + 389 * i % 960, 64 + 611 * i % 1280) for i in range(1, 21))
"""Twenty sizes from 89 to 1286 pixels, wide and tall."""
MAX_SINGLE_FILE_BYTES = 2_000_000_000
"""Weights above this go into a file of their own: protobuf cannot hold 2 GiB, and the graph needs some room too."""


@dataclass(frozen=True)
class ImportOptions:
    """What an import may be told beside the file."""

    family: str | None = None
    """``sam``, ``mobile_sam`` or ``timm``: refuse a file of another family. None takes what the file is."""
    name: str | None = None
    """First part of the artifact ids; by default the publisher's name of the model."""
    architecture: str | None = None
    """timm's name of a DINO model, with the tag of its training data after a dot; found from the tensors if None."""
    input_size: int | None = None
    """Side of a DINO encoder's input, in pixels, a multiple of its patch; by default the size it was trained at."""
    licence: str | None = None
    """Terms of the weights; by default the publisher's terms for this architecture."""
    source_url: str | None = None
    """Where the file came from, for the model card."""
    parity_image_sizes_hw: tuple[tuple[int, int], ...] = PARITY_IMAGE_SIZES_HW
    """Sizes of the pictures to compare all graphs on, alone and in batches."""
    has_bank: bool = True
    """Whether a segmenter gets an adapter bank; only one that computes in float32 can."""
    has_early_features: bool = False
    """Whether a SAM's encoder also returns the early feature that HQ-SAM fuses, which makes an embedding several
    times as large in every cache. The names then hold ``-early``, so that nobody pays who did not ask for it."""
    precision: ImportPrecision = "float32"
    """What the graphs compute in. ``float16-encoder`` leaves the mask decoder in float32, where adapters can be tuned
    and served; ``float16`` is both. The names then end in ``-fp16e`` and ``-fp16``, so that nobody is served one who
    did not ask for it: on a CPU they are slower."""
    max_single_file_bytes: int = MAX_SINGLE_FILE_BYTES
    """Weights above this go into a data file beside the graph."""
    seed: int = 0
    """Of the pictures and prompts to compare on."""

    @property
    def encoder_precision(self) -> Precision:
        """What encoders compute in."""
        return "float32" if self.precision == "float32" else "float16"

    @property
    def decoder_precision(self) -> Precision:
        """What mask decoders compute in."""
        return "float16" if self.precision == "float16" else "float32"


@dataclass(frozen=True)
class SourceFile:
    """The publisher's file that was imported."""

    name: str
    sha256: str
    size_bytes: int
    url: str | None = None
    """Where it was fetched from; None for a file of the user's."""


@dataclass(frozen=True)
class LineageLink:
    """A version this one needs, by the artifact it is published under in the same import."""

    relation: str
    """The registry's word for it: ``image_encoder``."""
    artifact_id: str


@dataclass(frozen=True)
class ImportedArtifact:
    """Everything one version is published with."""

    artifact_id: str
    kind: Literal["encoder", "segmenter"]
    display_name: str
    description: str
    files: Mapping[str, Path]
    """Path within the version -> file on disk; includes ``model.json`` and ``parity.json``."""
    spec: EncoderSpec | SegmenterSpec
    licence: str
    """SPDX identifier or the name of the terms, of the published weights."""
    metrics: Mapping[str, float]
    """Figures of the parity report."""
    lineage: tuple[LineageLink, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ImportedModel:
    """One checkpoint's artifacts, in the order to publish them: what others link to comes first."""

    name: str
    source: SourceFile
    artifacts: tuple[ImportedArtifact, ...]
