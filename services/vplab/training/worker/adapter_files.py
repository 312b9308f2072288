"""The files of an adapter version, and the comparison of its graph with the decoder that was tuned.

Equal plans give equal bytes: nothing of the job, the clock or the machine is in them but ``parity.json``'s figures.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn

from vplab.runtime.code_version import code_version
from vplab.training.models.compare import PROVIDERS, graph_inputs, open_graph, run_in_parts
from vplab.training.models.parity import (
    GIVEN_EMBEDDING,
    MASK_IOU_TOLERANCE,
    DecodingTolerance,
    ParityCase,
    ParityReport,
    logit_case,
    make_report,
)
from vplab.training.tuning.values import TuningExample, TuningResult
from vplab.training.values import ModelRef, TuningPlan
from vplab.training.worker.compared_pictures import compared_pictures
from vplab.training.worker.graph_templates import GraphTemplates, half_precision, save_graph
from vplab.training.worker.mask_prompts import box_around, decode, point_in, tokens_of
from vplab.training.worker.stopwatch import Stopwatch
from vplab.vision.adapters.adapt import AdaptedDecoder
from vplab.vision.adapters.spec import EARLY_INPUT, HqTokenSpec
from vplab.vision.prompts import ObjectPrompt
from vplab.vision.sam.onnx_decoder import OUTPUT_NAMES
from vplab.vision.specs import SegmenterSpec

HALF_TOLERANCE: Final = 0.1
"""Largest difference of logits, which span about -20 to 20, that rounding the weights to half precision may cause; the
masks must agree as of any export."""
AS_MERGED: Final = GIVEN_EMBEDDING
AS_TUNED: Final = DecodingTolerance(HALF_TOLERANCE, HALF_TOLERANCE, MASK_IOU_TOLERANCE)
_PACKAGES: Final = ("onnx", "segment-anything", "torch")


@dataclass(frozen=True)
class AdapterVersion:
    """What an adapter was made of and from."""

    plan: TuningPlan
    image_encoder: ModelRef
    segmenter_spec: SegmenterSpec
    recipe: Mapping[str, Any]
    """All numbers of the training."""
    num_images: int


def write_adapter(
    folder: Path,
    version: AdapterVersion,
    adapted: AdaptedDecoder,
    result: TuningResult,
    examples: Sequence[TuningExample],
    templates: GraphTemplates,
    watch: Stopwatch,
    on_export: Callable[[], None],
) -> ParityReport:
    """Write every file of the version and return the comparison, passed or not; ``adapted`` is on the CPU.

    The graph has half-precision weights; where their rounding shows in the masks, single-precision ones.
    """
    spec = version.segmenter_spec
    report = _write_graph(folder, spec, adapted, examples, templates, watch, on_export, is_half=True)
    if not report.passed:
        report = _write_graph(folder, spec, adapted, examples, templates, watch, on_export, is_half=False)
    state = {name: value.detach().cpu().float().contiguous() for name, value in adapted.adapter_state().items()}
    save_file(state, folder / "adapter.safetensors")
    _write_json(folder / "adapter.json", _description(version, adapted, result))
    (folder / "model.json").write_text(version.segmenter_spec.without_bank.model_dump_json(indent=2) + "\n")
    (folder / "parity.json").write_text(report.model_dump_json(indent=2) + "\n")
    (folder / "MODEL_CARD.md").write_text(_card(version, adapted, result, report), encoding="utf-8")
    return report


def _write_graph(
    folder: Path,
    spec: SegmenterSpec,
    adapted: AdaptedDecoder,
    examples: Sequence[TuningExample],
    templates: GraphTemplates,
    watch: Stopwatch,
    on_export: Callable[[], None],
    *,
    is_half: bool,
) -> ParityReport:
    merged = adapted.merged().eval()
    if is_half:
        merged = half_precision(merged)
    path = folder / spec.graph
    with watch.measured("export_graph"):
        save_graph(templates.graph(adapted, merged, on_export), path)
    with watch.measured("export_parity"):
        cases = _compare(path, merged, adapted, examples, spec)
    precision = "half" if is_half else "single"
    reference = f"the merged torch decoder with {precision}-precision weights, and the tuned decoder itself"
    return make_report(reference, _PACKAGES, PROVIDERS, cases)


def _compare(
    path: Path, merged: nn.Module, adapted: AdaptedDecoder, examples: Sequence[TuningExample], spec: SegmenterSpec
) -> list[ParityCase]:
    """Decode prompts on pictures, several in a call: points, then boxes with the masks that the points gave."""
    run = partial(open_graph(path).run, list(OUTPUT_NAMES))
    pictures = compared_pictures(examples)
    embedding = np.stack([picture.embedding for picture in pictures])
    early = [picture.early_features for picture in pictures if picture.early_features is not None]
    further = {EARLY_INPUT: np.stack(early)} if adapted.needs_early_features else {}
    image_index = np.arange(len(pictures))
    earlier: list[NDArray[np.float32] | None] = [None] * len(pictures)
    cases = []
    for name, makes in _PROMPTS:
        prompts = [makes(picture.mask, logits) for picture, logits in zip(pictures, earlier, strict=True)]
        tokens = [tokens_of(p, picture.transform, spec) for p, picture in zip(prompts, pictures, strict=True)]
        feed = graph_inputs(embedding, image_index, tokens, spec) | further
        actual = run_in_parts(run, feed)
        earlier = [plane[0] for plane in actual[0]]
        for where, module, tolerance in (("", merged, AS_MERGED), (", as tuned", adapted, AS_TUNED)):
            expected = run_in_parts(partial(decode, module), feed)
            sizes_hw = [picture.transform.original_hw for picture in pictures]
            num_tokens = len(tokens[0].labels)
            cases.append(
                logit_case(name + where, sizes_hw, num_tokens, actual, expected, spec.mask_threshold, tolerance)
            )
    return cases


_PROMPTS: Final[tuple[tuple[str, Callable[..., ObjectPrompt]], ...]] = (
    ("one point", point_in),
    ("box and mask input", box_around),
)
"""Each takes three decoders past every picture, most of an export's time."""


def _description(version: AdapterVersion, adapted: AdaptedDecoder, result: TuningResult) -> dict[str, Any]:
    plan = version.plan
    return {
        "adapter": json.loads(adapted.spec.model_dump_json()),
        "segmenter": asdict(plan.segmenter),
        "image_encoder": asdict(version.image_encoder),
        "dataset": asdict(plan.dataset),
        "prompt_set": None if plan.prompt_set is None else asdict(plan.prompt_set),
        "feature_encoder": None if plan.feature_encoder is None else asdict(plan.feature_encoder),
        "num_parameters": adapted.num_adapter_parameters,
        "training": dict(version.recipe),
        "best_step": result.chosen.step,
        "share": result.chosen.share,
        "validation": result.validation_kind,
        "software": code_version(),
    }


def _card(version: AdapterVersion, adapted: AdaptedDecoder, result: TuningResult, report: ParityReport) -> str:
    plan, before, after = version.plan, result.metrics_before, result.metrics_after
    measured = {
        "held_out": "images that each fold left out",
        "given": "validation images",
        "training": "the training images themselves, since there are fewer than three",
    }[result.validation_kind]
    parity = "agrees" if report.passed else "does NOT agree"
    return f"""# {plan.adapter_id}

An adapter in the mask decoder of {plan.segmenter.name}, tuned with VP Lab {code_version()}.

| | |
|---|---|
| method | {plan.method}{_fused(adapted)}, {adapted.num_adapter_parameters:,} parameters |
| segmenter | {plan.segmenter.name}, sha256 {plan.segmenter.digest} |
| image encoder | {version.image_encoder.name}, sha256 {version.image_encoder.digest} |
| data set | {plan.dataset.name}, sha256 {plan.dataset.digest}, {version.num_images} images |
| prompt set | {"none" if plan.prompt_set is None else plan.prompt_set.name} |
| seed | {plan.options.seed} |
| steps | {result.chosen.step} of at most {version.recipe["num_steps"]} |
| share of what they changed | {result.chosen.share:g} |

Mean IoU before and after, on {measured}: {before.iou:.4f} and {after.iou:.4f}
(boxes {before.box_iou:.4f} and {after.box_iou:.4f}, points {before.point_iou:.4f} and {after.point_iou:.4f}).

The ONNX graph {parity} with the tuned decoder in {len(report.cases)} cases (`parity.json`), largest difference of
logits {report.metrics["parity_max_abs_difference"]:.3g}.
"""


def _fused(adapted: AdaptedDecoder) -> str:
    if not isinstance(adapted.spec, HqTokenSpec):
        return ""
    channels = adapted.spec.early_channels
    return " without an early feature" if channels is None else f" with an early feature of {channels} channels"


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
