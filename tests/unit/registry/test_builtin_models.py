import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.registry_stores import FakeClock, Stores, opened_registry, publish_bytes
from vplab.errors import FailedPrecondition, InvalidInput
from vplab.registry.builtin_models import FOLDER, publish_builtin_models
from vplab.registry.core.registry import Registry
from vplab.registry.errors import ResourceNotFound
from vplab.registry.paging import PageRequest
from vplab.registry.values import AliasKey, ArtifactKind

ENCODER = {
    "kind": "encoder",
    "family": "toy",
    "architecture": "toy-8",
    "preprocessing": {"resize": "fixed", "size": 8, "mean_rgb": [0, 0, 0], "std_rgb": [1, 1, 1]},
    "outputs": [{"name": "e", "role": "image_embedding", "shape": [4, 2, 2], "stride": 4}],
}
SEGMENTER = {
    "kind": "segmenter",
    "family": "toy",
    "architecture": "toy-8",
    "input_size": 8,
    "embedding_shape": [4, 2, 2],
    "low_res_hw": [8, 8],
}
CASE = {"max_abs_difference": 2e-5, "mask_iou": 0.9995}
PRODUCTION = AliasKey("toy-segmenter", "production")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "builtin"
    for name, spec, graph in (
        ("toy-encoder", ENCODER, "encoder.onnx"),
        ("toy-segmenter", SEGMENTER, "decoder.onnx"),
    ):
        (folder / name).mkdir(parents=True)
        (folder / name / "model.json").write_text(json.dumps(spec))
        (folder / name / "parity.json").write_text(json.dumps({"passed": True, "cases": [CASE]}))
        (folder / name / graph).write_bytes(graph.encode() * 1000)
    return folder


@pytest.fixture
def sqlite_registry(sqlite_stores: Stores, clock: FakeClock) -> Iterator[Registry]:
    with opened_registry(sqlite_stores, clock) as opened:
        yield opened


def test_models_are_published_with_lineage_and_a_production_alias(sqlite_registry: Registry, models: Path) -> None:
    encoder, segmenter = publish_builtin_models(sqlite_registry, models)
    assert (encoder.kind, segmenter.kind) == (ArtifactKind.ENCODER, ArtifactKind.SEGMENTER)
    (entry,) = segmenter.manifest.lineage
    assert (entry.relation, entry.version, entry.digest) == ("image_encoder", encoder.key, encoder.digest)
    assert segmenter.manifest.spec["low_res_hw"] == [8, 8]
    assert segmenter.manifest.metrics == {
        "parity_passed": 1,
        "parity_max_abs_difference": 2e-5,
        "parity_mask_iou": 0.9995,
    }
    assert [file.path for file in segmenter.manifest.files] == ["decoder.onnx", "model.json", "parity.json"]
    assert sqlite_registry.versions.get(PRODUCTION) == segmenter


def test_publishing_again_changes_nothing(sqlite_registry: Registry, models: Path) -> None:
    first = publish_builtin_models(sqlite_registry, models)
    revision = sqlite_registry.aliases.latest_revision()
    assert publish_builtin_models(sqlite_registry, models) == first
    assert sqlite_registry.aliases.latest_revision() == revision


def test_new_weights_make_a_version_and_move_no_alias(sqlite_registry: Registry, models: Path) -> None:
    _, first = publish_builtin_models(sqlite_registry, models)
    (models / "toy-segmenter" / "decoder.onnx").write_bytes(b"better")
    _, second = publish_builtin_models(sqlite_registry, models)
    assert second.key.number == 2
    assert sqlite_registry.versions.get(PRODUCTION) == first


def test_a_new_report_of_the_same_graphs_makes_a_version_and_moves_no_alias(
    sqlite_registry: Registry, models: Path
) -> None:
    before = publish_builtin_models(sqlite_registry, models)
    for name in ("toy-encoder", "toy-segmenter"):
        (models / name / "parity.json").write_text(json.dumps({"passed": True, "cases": [CASE] * 20}))
    after = publish_builtin_models(sqlite_registry, models)
    assert [version.key.number for version in after] == [2, 2]
    assert after[1].manifest.lineage[0].version == after[0].key
    assert sqlite_registry.versions.get(PRODUCTION) == before[1]


@pytest.mark.parametrize("reports", [{}, {"parity.json": True, "bank_parity.json": False}])
def test_a_model_that_ships_without_a_passed_report_gets_no_alias(
    sqlite_registry: Registry, models: Path, reports: dict[str, bool]
) -> None:
    (models / "toy-encoder" / "parity.json").unlink()
    for name, passed in reports.items():
        (models / "toy-encoder" / name).write_text(json.dumps({"passed": passed, "cases": []}))
    with pytest.raises(FailedPrecondition, match="parity report"):
        publish_builtin_models(sqlite_registry, models)
    assert sqlite_registry.aliases.latest_revision() == 0


def test_alias_that_a_user_moved_stays(sqlite_registry: Registry, models: Path) -> None:
    publish_builtin_models(sqlite_registry, models)
    own = publish_bytes(sqlite_registry, "toy-segmenter", b"own")
    sqlite_registry.aliases.set(PRODUCTION, own.key, etag="*")
    publish_builtin_models(sqlite_registry, models)
    assert sqlite_registry.versions.get(PRODUCTION) == own


def test_deleted_model_stays_deleted_and_so_does_what_needs_it(sqlite_registry: Registry, models: Path) -> None:
    sqlite_registry.artifacts.create("toy-encoder", ArtifactKind.ENCODER)
    sqlite_registry.artifacts.delete("toy-encoder", "")
    assert publish_builtin_models(sqlite_registry, models) == []
    with pytest.raises(ResourceNotFound):
        sqlite_registry.artifacts.get("toy-segmenter")


def test_folder_without_a_valid_spec_is_refused(sqlite_registry: Registry, models: Path) -> None:
    (models / "toy-encoder" / "model.json").write_text("{}")
    with pytest.raises(InvalidInput):
        publish_builtin_models(sqlite_registry, models)


def test_models_that_ship_can_be_published(sqlite_registry: Registry, tmp_path: Path) -> None:
    names = sorted(path.name for path in FOLDER.iterdir() if path.is_dir())
    assert names
    copied = tmp_path / "shipped"
    shutil.copytree(FOLDER, copied, copy_function=_empty_graph)
    versions = publish_builtin_models(sqlite_registry, copied)
    assert sorted(version.key.artifact_id for version in versions) == names
    segmenters = [version for version in versions if version.kind is ArtifactKind.SEGMENTER]
    assert all(version.manifest.lineage for version in segmenters)
    assert len(sqlite_registry.artifacts.page(PageRequest(), None, {"origin": "builtin"}, False).items) == len(names)


def _empty_graph(source: str, target: str) -> str:
    """Copy what is small; fifteen megabytes of weights show nothing here."""
    if source.endswith(".onnx"):
        Path(target).write_bytes(b"graph")
        return target
    return shutil.copy(source, target)
