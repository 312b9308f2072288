"""Graphs that are made already, as the nano recipe exports them, ready for a registry. Imports no torch."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from vplab.errors import InvalidInput
from vplab.training.models.imported import ImportedArtifact, ImportedModel, ImportOptions, LineageLink, SourceFile
from vplab.training.models.model_card import title_of
from vplab.training.values import PARITY_PASSED
from vplab.vision.specs import EncoderSpec, SegmenterSpec, spec_from_json

_LICENCE: Final = "Apache-2.0; trained on research data, terms in MODEL_CARD.md"


def read_exported(folder: Path, options: ImportOptions) -> ImportedModel:
    """Return what lies below a folder: one encoder and maybe the segmenter that reads its embedding.

    Each is a folder named as its artifact, with model.json, its graph and what else belongs to the version.
    Raises InvalidInput (field ``path``, or the option that only a checkpoint can follow).
    """
    asked = ("family", "name", "architecture", "input_size")
    unused = next((name for name in asked if getattr(options, name) is not None), None)
    unused = "early_features" if options.has_early_features else unused
    if unused or options.precision != "float32":
        raise InvalidInput("these graphs are made already", field=unused or "precision")
    specs = {path.parent: spec_from_json(path.read_bytes()) for path in sorted(folder.glob("*/model.json"))}
    encoders = [path for path, spec in specs.items() if isinstance(spec, EncoderSpec)]
    segmenters = [path for path, spec in specs.items() if isinstance(spec, SegmenterSpec)]
    if len(encoders) != 1 or len(segmenters) > 1:
        found = f"{len(encoders)} encoders and {len(segmenters)} segmenters"
        raise InvalidInput(f"{folder.name} holds {found}, not one encoder and its segmenter", field="path")
    link = LineageLink("image_encoder", encoders[0].name)
    artifacts = (
        _artifact(encoders[0], specs[encoders[0]], options),
        *(_artifact(path, specs[path], options, link) for path in segmenters),
    )
    graph = artifacts[0].files[specs[encoders[0]].graph]
    source = SourceFile(graph.name, hashlib.sha256(graph.read_bytes()).hexdigest(), graph.stat().st_size)
    return ImportedModel(folder.name, source, artifacts)


def _artifact(
    folder: Path, spec: EncoderSpec | SegmenterSpec, options: ImportOptions, *lineage: LineageLink
) -> ImportedArtifact:
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    if spec.graph not in files:
        raise InvalidInput(f"{folder.name} lacks {spec.graph}", field="path")
    card = files.get("MODEL_CARD.md")
    return ImportedArtifact(
        artifact_id=folder.name,
        kind=spec.kind,
        display_name=title_of(spec, folder.name.removesuffix(f"-{spec.kind}")),
        description="" if card is None else card.read_text(encoding="utf-8"),
        files=files,
        spec=spec,
        licence=options.licence or _LICENCE,
        metrics=dict(_metrics(folder)),
        lineage=lineage,
        labels={"family": spec.family, "architecture": spec.architecture, "precision": spec.precision},
    )


def _metrics(folder: Path) -> Iterator[tuple[str, float]]:
    """Yield what the reports of a folder's graphs say together; without a report nothing, so that no alias moves."""
    reports = [json.loads(path.read_bytes()) for path in sorted(folder.glob("*parity.json"))]
    cases = [case for report in reports for case in report["cases"]]
    if not cases:
        return
    yield PARITY_PASSED, float(all(report["passed"] for report in reports))
    yield "parity_max_abs_difference", max(case["max_abs_difference"] for case in cases)
    ious = [case["mask_iou"] for case in cases if case["mask_iou"] is not None]
    if ious:
        yield "parity_mask_iou", min(ious)
