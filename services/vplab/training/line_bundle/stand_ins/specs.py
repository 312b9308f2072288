"""``model.json`` read without pydantic. The service that made the bundle has checked it."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Literal

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Preprocessing:
    resize: Literal["longest_side", "fixed"]
    size: int
    mean_rgb: Triple
    std_rgb: Triple
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"


@dataclass(frozen=True)
class OutputSpec:
    name: str
    role: str
    shape: tuple[int, int, int]
    stride: int


@dataclass(frozen=True)
class EncoderSpec:
    family: str
    architecture: str
    preprocessing: Preprocessing
    outputs: tuple[OutputSpec, ...]
    kind: str = "encoder"
    graph: str = "encoder.onnx"
    precision: str = "float32"

    def output(self, role: str) -> OutputSpec | None:
        """Return the output that plays ``role``, or None."""
        return next((o for o in self.outputs if o.role == role), None)


@dataclass(frozen=True)
class PromptRaster:
    box_inside: float
    box_outside: float
    click_peak: float
    click_sigma: float


@dataclass(frozen=True)
class ColourEvidence:
    weight: float
    levels: int
    smoothing: float
    sure_logit: float
    reach: float


@dataclass(frozen=True)
class SegmenterSpec:
    family: str
    architecture: str
    input_size: int
    embedding_shape: tuple[int, int, int]
    low_res_hw: tuple[int, int]
    kind: str = "segmenter"
    graph: str = "decoder.onnx"
    precision: str = "float32"
    num_planes: int = 4
    mask_threshold: float = 0.0
    prompt_raster: PromptRaster | None = None
    colour_evidence: ColourEvidence | None = None
    box_bounds_mask: bool = False


def spec_from_json(data: bytes) -> EncoderSpec | SegmenterSpec:
    """Return what a ``model.json`` says."""
    said = json.loads(data)
    if said.get("kind", "encoder") == "encoder":
        said["preprocessing"] = _build(Preprocessing, said["preprocessing"])
        said["outputs"] = tuple(_build(OutputSpec, output) for output in said["outputs"])
        return EncoderSpec(**_known(EncoderSpec, said))
    for name, kind in (("prompt_raster", PromptRaster), ("colour_evidence", ColourEvidence)):
        if said.get(name) is not None:
            said[name] = _build(kind, said[name])
    return SegmenterSpec(**_known(SegmenterSpec, said))


def _build(kind: type[Any], said: dict[str, Any]) -> Any:
    return kind(**_known(kind, said))


def _known(kind: type[Any], said: dict[str, Any]) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(kind)}
    return {name: tuple(v) if isinstance(v, list) else v for name, v in said.items() if name in names}
