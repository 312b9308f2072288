"""The page that goes with an imported version. Imports no torch."""

from vplab.training.models.imported import SourceFile
from vplab.training.models.parity import ParityReport
from vplab.vision.specs import EncoderSpec, SegmenterSpec

_PUBLISHERS = {
    "sam": (
        "Segment Anything (SAM), Meta AI",
        "https://github.com/facebookresearch/segment-anything",
        "arXiv 2304.02643",
    ),
    "mobile_sam": ("MobileSAM, Zhang et al.", "https://github.com/ChaoningZhang/MobileSAM", "arXiv 2306.14289"),
    "dinov2": ("DINOv2, Meta AI", "https://github.com/facebookresearch/dinov2", "arXiv 2304.07193"),
    "dinov3": ("DINOv3, Meta AI", "https://github.com/facebookresearch/dinov3", "arXiv 2508.10104"),
}


def model_card(
    title: str, spec: EncoderSpec | SegmenterSpec, source: SourceFile, licence: str, parity: ParityReport
) -> str:
    """Return the text of ``MODEL_CARD.md``: origin, terms, what goes in and out, how well the graph agrees."""
    publisher, page, paper = _PUBLISHERS[_publisher(spec)]
    worst = parity.metrics
    iou = worst.get("parity_mask_iou")
    needed = min(case.mask_iou_tolerance for case in parity.cases)
    masks = "" if iou is None else f" Smallest mask IoU {iou:.5f} (needed {needed})."
    return f"""# {title}

{publisher}; {paper}; {page}

| | |
|---|---|
| architecture | {spec.architecture} ({spec.family}) |
| computes in | {spec.precision} |
| licence of the published weights | {licence} |
| imported file | {source.name}, {source.size_bytes:,} bytes |
| sha256 of that file | {source.sha256} |
| fetched from | {source.url or "a local file"} |
{_rows(spec)}

The ONNX graph was compared with {parity.reference} in {len(parity.cases)} cases (`parity.json`).
Largest difference {worst["parity_max_abs_difference"]:.3g}.{masks}
"""


def title_of(spec: EncoderSpec | SegmenterSpec, name: str) -> str:
    """Return a version's heading and its artifact's display name."""
    return f"{name} {'image encoder' if isinstance(spec, EncoderSpec) else 'segmenter'}"


def _publisher(spec: EncoderSpec | SegmenterSpec) -> str:
    if spec.family != "timm":
        return spec.family
    return "dinov2" if "dinov2" in spec.architecture else "dinov3"


def _rows(spec: EncoderSpec | SegmenterSpec) -> str:
    if isinstance(spec, SegmenterSpec):
        height, width = spec.low_res_hw
        return (
            f"| takes | image embeddings {spec.embedding_shape}, prompts in a frame of {spec.input_size} pixels |\n"
            f"| gives | {spec.num_planes} planes of {height} x {width} mask logits for each prompt |"
        )
    rule = spec.preprocessing
    fit = "long side scaled, rest padded" if rule.resize == "longest_side" else "stretched"
    outputs = "; ".join(f"{o.name} {o.shape}, stride {o.stride}" for o in spec.outputs)
    return f"| takes | RGB, {rule.size} x {rule.size}, {fit}, {rule.interpolation} |\n| gives | {outputs} |"
