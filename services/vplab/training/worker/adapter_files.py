"""The files of an adapter version, and the comparison of its graph with the decoder that was tuned.

Equal plans give equal bytes: nothing of the job, the clock or the machine is in them but ``parity.json``'s figures.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn

from vplab.runtime.code_version import code_version
from vplab.training.models.compare import PROVIDERS, graph_inputs, open_graph
from vplab.training.models.parity import (
    LOGIT_TOLERANCE,
    ParityCase,
    ParityReport,
    make_report,
    mask_ious,
    max_abs_difference,
)
from vplab.training.tuning.values import TuningExample, TuningResult
from vplab.training.values import ModelRef, TuningPlan
from vplab.training.worker.graph_templates import GraphTemplates, half_precision, save_graph
from vplab.training.worker.mask_prompts import box_around, decode, point_in, tokens_of
from vplab.training.worker.stopwatch import Stopwatch
from vplab.vision.adapters.adapt import AdaptedDecoder
from vplab.vision.prompts import ObjectPrompt
from vplab.vision.sam.onnx_decoder import OUTPUT_NAMES
from vplab.vision.specs import SegmenterSpec

HALF_TOLERANCE: Final = 0.1
"""Largest difference of logits, which span about -20 to 20, that rounding the weights to half precision may cause; the
masks must agree as of any export."""
_MAX_IMAGES: Final = 4
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
    """Decode prompts on training images: points, boxes, and a second time from the masks they gave."""
    session = open_graph(path)
    originals = [e for e in examples if e.is_original and any(m.any() for m in e.masks.values())][:_MAX_IMAGES]
    embedding = np.stack([np.asarray(e.embedding, np.float32) for e in originals])
    masks = [(i, mask) for i, e in enumerate(originals) for mask in e.masks.values() if mask.any()]
    image_index = np.array([i for i, _ in masks], np.int64)
    earlier: list[NDArray[np.float32] | None] = [None] * len(masks)
    cases = []
    for name, makes in _PROMPTS:
        prompts = [makes(mask, logits) for (_, mask), logits in zip(masks, earlier, strict=True)]
        tokens = [tokens_of(p, originals[i], spec) for (i, _), p in zip(masks, prompts, strict=True)]
        feed = graph_inputs(embedding, image_index, tokens, spec)
        actual = session.run(list(OUTPUT_NAMES), feed)
        earlier = [plane[0] for plane in actual[0]]
        for where, module, tolerance in (("", merged, LOGIT_TOLERANCE), (", as tuned", adapted, HALF_TOLERANCE)):
            logits, ious = decode(module, feed)
            mask_iou, worst = mask_ious(actual[0], logits, spec.mask_threshold)
            case = ParityCase(
                name=name + where,
                image_sizes_hw=tuple(originals[i].transform.original_hw for i in image_index),
                num_prompts=len(prompts),
                num_tokens=len(tokens[0].labels),
                quantity="low_res_logits",
                max_abs_difference=max_abs_difference(actual[0], logits),
                max_abs_tolerance=tolerance,
                mask_iou=mask_iou,
                min_mask_iou=worst,
                max_iou_prediction_difference=max_abs_difference(actual[1], ious),
            )
            cases.append(case)
    return cases


_PROMPTS: Final[tuple[tuple[str, Callable[..., ObjectPrompt]], ...]] = (
    ("one point", point_in),
    ("box", lambda mask, _: box_around(mask)),
    ("box and mask input", box_around),
)


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
| method | {plan.method}, {adapted.num_adapter_parameters:,} parameters |
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


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
