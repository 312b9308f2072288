"""What a model file needs said about it: the content of ``model.json`` in every encoder and segmenter version.

The spec is part of the version's manifest, so two models with equal graphs and different preprocessing have different
digests, and no service guesses a size, a mean or an output's role from a file name.
"""

import hashlib
import json
from functools import cached_property
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from vplab.errors import InvalidInput
from vplab.vision.adapters.spec import AdapterSpec, EPeftSpec

PositiveInt = Annotated[int, Field(gt=0)]
Triple = tuple[float, float, float]
Precision = Literal["float32", "float16"]
"""What a graph computes in; its inputs and outputs are float32 either way."""


class _Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Preprocessing(_Spec):
    """From an RGB uint8 image to an encoder's float32 input."""

    resize: Literal["longest_side", "fixed"]
    """``longest_side`` keeps the aspect ratio and pads bottom and right to a square; ``fixed`` stretches to one."""
    size: PositiveInt
    """Side of the square input, in pixels."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Pillow's antialiased filter of that name."""
    mean_rgb: Triple
    """Subtracted from each channel, in the 0..255 range."""
    std_rgb: Triple
    """Divides each channel, in the 0..255 range; padding is zero after this division."""

    @cached_property
    def digest(self) -> str:
        """sha256 hex of the canonical JSON; part of every embedding key."""
        return hashlib.sha256(canonical_json(self.model_dump(mode="json"))).hexdigest()


class OutputSpec(_Spec):
    """One output tensor of an encoder graph."""

    name: str
    """Name of the graph output."""
    role: Literal["image_embedding", "patch_features", "early_features", "colours"]
    """``image_embedding`` (C, h, w) feeds a mask decoder; ``patch_features`` (h, w, D), L2-normalised, feeds a matcher;
    ``early_features`` (E, h, w), on the embedding's grid, is the intermediate feature HQ-SAM fuses; ``colours``
    (3, h, w) is the input's RGB in 0..1, from which the edges of masks are sharpened."""
    shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    """Shape of one image's output, in the order the role says."""
    stride: PositiveInt
    """Input pixels per grid cell."""


class EncoderSpec(_Spec):
    """An image encoder."""

    kind: Literal["encoder"] = "encoder"
    family: str
    """Who made the architecture: ``nano``, ``sam``, ``mobile_sam``, ``timm``."""
    architecture: str
    """The publisher's name of it, such as ``vit_b`` or ``vit_small_patch14_dinov2``."""
    graph: str = "encoder.onnx"
    precision: Precision = "float32"
    preprocessing: Preprocessing
    outputs: tuple[OutputSpec, ...] = Field(min_length=1)

    def output(self, role: str) -> OutputSpec | None:
        """Return the output that plays ``role``, or None."""
        return next((o for o in self.outputs if o.role == role), None)

    @property
    def early_channels(self) -> int | None:
        """Channels E of the early feature (E, h, w) on the image embedding's grid; None where there is none there."""
        early, embedding = self.output("early_features"), self.output("image_embedding")
        if early is None or embedding is None or early.shape[1:] != embedding.shape[1:]:
            return None
        return early.shape[0]


class PromptRaster(_Spec):
    """How prompts are also drawn on the low-resolution logit grid and given as the mask input.

    SAM does without; a small segmenter learns where a prompt is far sooner with it. A box is ``box_inside`` within and
    ``box_outside`` around; a click adds or subtracts a Gaussian bump of height ``click_peak`` and standard deviation
    ``click_sigma`` (in grid cells) to what is there. A prompt that brings a mask of its own keeps it, in place of the
    box, and gets the clicks added.
    """

    box_inside: float
    box_outside: float
    click_peak: float
    click_sigma: Annotated[float, Field(gt=0)]


class ColourEvidence(_Spec):
    """How the colours of an image sharpen its masks (``vplab.vision.colour_evidence``); SAM does without."""

    weight: Annotated[float, Field(gt=0)]
    """Share of the log-ratio of both histograms that is added to the logits."""
    levels: Annotated[int, Field(ge=2, le=64)]
    """Bins of each channel."""
    smoothing: Annotated[float, Field(gt=0)]
    """Standard deviation, in bins, of the Gaussian that the histograms are blurred with."""
    sure_logit: Annotated[float, Field(ge=0)]
    """Pixels whose logit is farther from the threshold are counted."""
    reach: Annotated[float, Field(gt=0)]
    """Width of the background that counts, as a share of the mask's longer side."""


class AdapterBankSpec(_Spec):
    """A second graph of the same decoder that takes adapters as inputs (``vplab.vision.adapters.bank``)."""

    graph: str = "bank.onnx"
    adapter: Annotated[AdapterSpec, Field(discriminator="method")] = EPeftSpec()
    """What the adapters are made of; those made otherwise are served by graphs of their own."""


class SegmenterSpec(_Spec):
    """A prompt encoder with its mask decoder."""

    kind: Literal["segmenter"] = "segmenter"
    family: str
    architecture: str
    graph: str = "decoder.onnx"
    precision: Precision = "float32"
    input_size: PositiveInt
    """Side of the square frame that point coordinates are in, in pixels: the image encoder's input."""
    embedding_shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    """(C, h, w) of the image embedding the decoder takes."""
    low_res_hw: tuple[PositiveInt, PositiveInt]
    """Size of the mask logits, four times the embedding grid in SAM."""
    num_planes: PositiveInt = 4
    """Mask planes the graph returns: plane 0 answers single-mask calls, the others multimask calls."""
    mask_threshold: float = 0.0
    """A pixel is foreground where its logit exceeds this."""
    prompt_raster: PromptRaster | None = None
    colour_evidence: ColourEvidence | None = None
    """Needs an encoder with an output of role ``colours``."""
    box_bounds_mask: bool = False
    """Whether the mask of a box alone ends where the box does; SAM's may go beyond, and so may one with clicks."""
    adapter_bank: AdapterBankSpec | None = None
    """Only in a segmenter's own version; an adapter version has its one adapter merged in."""

    @property
    def refines(self) -> bool:
        """Whether a matched point's mask gains from a second pass with its box and logits, as SAM's does."""
        return self.prompt_raster is None

    @property
    def without_bank(self) -> "SegmenterSpec":
        """What a decoder graph alone obeys."""
        return self.model_copy(update={"adapter_bank": None})


ModelSpec = Annotated[EncoderSpec | SegmenterSpec, Field(discriminator="kind")]
_ADAPTER: TypeAdapter[EncoderSpec | SegmenterSpec] = TypeAdapter(ModelSpec)


def spec_from_json(data: bytes) -> EncoderSpec | SegmenterSpec:
    """Read a ``model.json``. Raises InvalidInput naming each field that is wrong."""
    try:
        return _ADAPTER.validate_json(data)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise InvalidInput(f"model.json is not a valid model spec: {problems}", field="model.json") from error


def canonical_json(value: object) -> bytes:
    """Serialise with sorted keys and no spaces, so that equal values have equal digests."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
