"""Publishes the models that ship with VP Lab, so that a fresh registry can serve without a network.

Each folder below ``builtin`` is one version: ``model.json`` is its spec, ``parity.json`` says how well its graphs agree
with what they were made from, everything else is its files. Publishing again
changes nothing; a newer VP Lab with other weights adds a version. The production alias is set where there is none, and
otherwise left to whoever moved it: a factory's models do not change because its software did.
"""

import hashlib
import json
import mimetypes
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from vplab.errors import Aborted, AlreadyExists
from vplab.registry.core.blobs import MAX_CHUNK_BYTES
from vplab.registry.core.registry import Registry
from vplab.registry.errors import ResourceNotFound
from vplab.registry.values import (
    PARITY_PASSED,
    PRODUCTION,
    AliasKey,
    ArtifactKind,
    BlobFile,
    Lineage,
    Manifest,
    Version,
)
from vplab.vision.specs import EncoderSpec, SegmenterSpec, spec_from_json

FOLDER: Final = Path(__file__).parent / "builtin"
LABELS: Final = {"origin": "builtin"}
LICENCE: Final = "Apache-2.0; trained on research data, terms in MODEL_CARD.md"


def publish_builtin_models(registry: Registry, folder: Path = FOLDER) -> list[Version]:
    """Publish each model of a folder and return the versions, encoders first; deleted artifacts stay deleted.

    Raises InvalidInput for a folder that is not a model, and what the registry raises.
    """
    specs = {path.parent.name: spec_from_json(path.read_bytes()) for path in sorted(folder.glob("*/model.json"))}
    published: dict[str, Version] = {}
    for artifact_id, spec in sorted(specs.items(), key=lambda item: isinstance(item[1], SegmenterSpec)):
        lineage = _lineage(spec, specs, published) if isinstance(spec, SegmenterSpec) else ()
        if lineage is None or not _ensure_artifact(registry, artifact_id, spec):
            continue
        published[artifact_id] = _publish(registry, folder / artifact_id, lineage)
        _ensure_production(registry, published[artifact_id])
    return list(published.values())


def _lineage(
    segmenter: SegmenterSpec, specs: dict[str, EncoderSpec | SegmenterSpec], published: dict[str, Version]
) -> tuple[Lineage, ...] | None:
    """Name the encoder a segmenter was trained with: that of its architecture. None if it was deleted."""
    for artifact_id, spec in specs.items():
        if isinstance(spec, EncoderSpec) and spec.architecture == segmenter.architecture:
            version = published.get(artifact_id)
            return None if version is None else (Lineage("image_encoder", version.key, version.digest),)
    return ()


def _ensure_artifact(registry: Registry, artifact_id: str, spec: EncoderSpec | SegmenterSpec) -> bool:
    """Return whether the artifact lives and is of the model's kind."""
    kind = ArtifactKind(spec.kind)
    try:
        artifact = registry.artifacts.get(artifact_id)
    except ResourceNotFound:
        words = artifact_id.replace("-", " ")
        try:
            artifact = registry.artifacts.create(
                artifact_id, kind, display_name=words, description=f"The {words} that ships with VP Lab.", labels=LABELS
            )
        except AlreadyExists:  # another replica starts at the same time
            artifact = registry.artifacts.get(artifact_id)
    return artifact.delete_time is None and artifact.kind is kind


def _publish(registry: Registry, folder: Path, lineage: tuple[Lineage, ...]) -> Version:
    files = tuple(
        BlobFile(path.relative_to(folder).as_posix(), _sha256(path), path.stat().st_size, _media_type(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    )
    for file in files:
        _upload(registry, folder / file.path, file)
    return registry.versions.publish(
        folder.name,
        Manifest(
            files=files,
            lineage=lineage,
            metrics=_parity(folder),
            licence=LICENCE,
            spec=json.loads((folder / "model.json").read_bytes()),
            description="Ships with VP Lab.",
        ),
    )


def _parity(folder: Path) -> dict[str, float]:
    """Return what the reports of a folder's graphs say together, under the names that imports use.

    Nothing where there is no report; the version then gets no production alias.
    """
    reports = [json.loads(path.read_bytes()) for path in sorted(folder.glob("*parity.json"))]
    if not reports:
        return {}
    cases = [case for report in reports for case in report["cases"]]
    ious = [case["mask_iou"] for case in cases if case["mask_iou"] is not None]
    found = {PARITY_PASSED: float(all(report["passed"] for report in reports))}
    if cases:
        found["parity_max_abs_difference"] = max(case["max_abs_difference"] for case in cases)
    return found | ({"parity_mask_iou": min(ious)} if ious else {})


def _upload(registry: Registry, path: Path, file: BlobFile) -> None:
    upload = registry.blobs.begin_upload(file.sha256, file.size_bytes, 0)
    if upload is None:
        return
    try:
        for piece in _pieces(path):
            upload.write(piece)
        upload.finish()
    finally:
        upload.keep()


def _ensure_production(registry: Registry, version: Version) -> None:
    key = AliasKey(version.key.artifact_id, PRODUCTION)
    try:
        registry.aliases.set(key, version.key, etag="", reason="ships with VP Lab", actor="vplab")
    except Aborted:  # somebody, or an earlier start, has set it
        return


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(MAX_CHUNK_BYTES):
            yield piece


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _media_type(path: Path) -> str:
    known = {".md": "text/markdown", ".onnx": "application/octet-stream", "": "text/plain"}
    return known.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
