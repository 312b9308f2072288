"""From a file in a publisher's layout to folders ready for a registry, through ONNX Runtime."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from fakes.graph_predictor import GraphPredictor, open_session
from fakes.sam_checkpoints import write_dino_file, write_mobile_sam_checkpoint, write_sam_checkpoint
from vplab.embedding.backends.onnx_encoders import OnnxEncoderLoader
from vplab.errors import FailedPrecondition, InvalidInput
from vplab.runtime.onnx_session import OnnxSettings
from vplab.segmentation.backends.onnx_segmenters import OnnxSegmenterLoader
from vplab.training.models import adapter_bank, importing
from vplab.training.models.adapter_bank import random_adapter
from vplab.training.models.catalogue import find_entry
from vplab.training.models.checkpoint_files import sha256_of
from vplab.training.models.compare import make_picture
from vplab.training.models.imported import (
    PARITY_IMAGE_SIZES_HW,
    ImportedModel,
    ImportOptions,
    ImportPrecision,
    LineageLink,
)
from vplab.training.models.importing import import_model
from vplab.training.models.parity import ParityReport
from vplab.training.worker.decoder_weights import load_decoder
from vplab.vision.adapters.bank_layout import BANK_INPUT, INDEX_INPUT
from vplab.vision.prompts import ObjectPrompt
from vplab.vision.sam.onnx_encoder import encoder_to_onnx
from vplab.vision.specs import AdapterBankSpec, EncoderSpec, Precision, SegmenterSpec, spec_from_json

QUICK = ImportOptions(parity_image_sizes_hw=((90, 120), (120, 90), (64, 200)), has_bank=False)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sam") / "sam.pth"
    write_sam_checkpoint(path, depth=1, global_blocks=(0,), input_size=128)
    return path


@pytest.fixture(scope="module")
def imported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> ImportedModel:
    options = replace(QUICK, source_url="https://example.org/sam.pth")
    return import_model(checkpoint, out_dir=tmp_path_factory.mktemp("out"), options=options)


def test_sam_becomes_an_encoder_and_a_segmenter_that_needs_it(imported: ImportedModel, checkpoint: Path) -> None:
    encoder, segmenter = imported.artifacts
    assert (encoder.artifact_id, encoder.kind) == ("sam-vit-64x1-encoder", "encoder")
    assert (segmenter.artifact_id, segmenter.kind) == ("sam-vit-64x1-segmenter", "segmenter")
    assert encoder.lineage == ()
    assert segmenter.lineage == (LineageLink("image_encoder", "sam-vit-64x1-encoder"),)
    assert imported.source.sha256 == sha256_of(checkpoint)
    assert encoder.licence == "Apache-2.0"


def test_each_artifact_has_its_files_and_they_agree_with_the_spec(imported: ImportedModel) -> None:
    for artifact in imported.artifacts:
        assert set(artifact.files) == {artifact.spec.graph, "model.json", "parity.json", "MODEL_CARD.md"}
        assert spec_from_json(artifact.files["model.json"].read_bytes()) == artifact.spec
        graph = onnx.load(artifact.files[artifact.spec.graph])
        onnx.checker.check_model(graph)
        assert [o.version for o in graph.opset_import if o.domain == ""] == [18]
        assert {t.data_type for t in graph.graph.initializer} <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}
    encoder, segmenter = (a.spec for a in imported.artifacts)
    assert isinstance(encoder, EncoderSpec)
    assert encoder.outputs[0].shape == segmenter.embedding_shape == (256, 8, 8)  # type: ignore[union-attr]
    assert encoder.preprocessing.mean_rgb == (123.675, 116.28, 103.53)


@pytest.mark.slow
def test_all_graphs_of_a_sam_are_compared_on_twenty_images(checkpoint: Path, tmp_path: Path) -> None:
    encoder, segmenter = import_model(checkpoint, out_dir=tmp_path).artifacts
    assert isinstance(segmenter.spec, SegmenterSpec)
    assert segmenter.spec.adapter_bank == AdapterBankSpec()
    assert spec_from_json(segmenter.files["model.json"].read_bytes()) == segmenter.spec
    session = open_session(segmenter.files["bank.onnx"])
    assert [i.name for i in session.get_inputs()][-2:] == [BANK_INPUT, INDEX_INPUT]
    encoded, decoded, banked = (
        ParityReport.model_validate_json(path.read_bytes())
        for path in (encoder.files["parity.json"], segmenter.files["parity.json"], segmenter.files["bank_parity.json"])
    )
    assert encoded.passed
    assert decoded.passed
    assert banked.passed
    assert [case.name for case in encoded.cases] == [f"encode {size} at a time" for size in (1, 2, 3)]
    sizes_hw = [size_hw for case in encoded.cases for size_hw in case.image_sizes_hw]
    assert sorted(sizes_hw) == sorted(PARITY_IMAGE_SIZES_HW)
    assert len(set(sizes_hw)) == 20
    assert len(decoded.cases) == len(banked.cases) == 12
    for case in (*decoded.cases, *banked.cases):
        assert set(case.image_sizes_hw) == set(sizes_hw)
        assert case.num_prompts == 24  # some images have two
        assert case.mask_iou is not None


@pytest.mark.slow
def test_a_bank_that_answers_otherwise_is_not_imported(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_adapters(*arguments: object) -> tuple[object, object]:
        adapted, row = random_adapter(*arguments)  # type: ignore[arg-type]
        return adapted, row * np.float16(1.01)

    monkeypatch.setattr(adapter_bank, "random_adapter", other_adapters)
    with pytest.raises(FailedPrecondition, match=r"bank does not match .*: adapters mixed"):
        import_model(checkpoint, out_dir=tmp_path, options=replace(QUICK, has_bank=True))


def test_the_parity_report_lists_prompts_sizes_and_versions(imported: ImportedModel) -> None:
    encoder, segmenter = (
        ParityReport.model_validate_json(a.files["parity.json"].read_bytes()) for a in imported.artifacts
    )
    assert encoder.passed
    assert segmenter.passed
    assert [c.image_sizes_hw for c in encoder.cases] == [((90, 120),), ((120, 90), (64, 200))]
    names = {c.name for c in segmenter.cases}
    assert {"one point", "three points", "box", "mask input alone", "box and two points"} <= names
    assert {"one point, from the image", "mask input and one point, from the image"} <= names
    assert {c.num_tokens for c in segmenter.cases} == {0, 2, 4}
    assert segmenter.versions.keys() == {"onnx", "onnxruntime", "segment-anything", "torch"}
    assert imported.artifacts[1].metrics["parity_mask_iou"] >= 0.999


def test_the_model_card_names_origin_terms_and_agreement(imported: ImportedModel) -> None:
    text = imported.artifacts[0].files["MODEL_CARD.md"].read_text()
    for expected in (
        "Segment Anything",
        "Apache-2.0",
        imported.source.sha256,
        "https://example.org/sam.pth",
        "2 cases",
    ):
        assert expected in text


@pytest.fixture(scope="module")
def split(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> ImportedModel:
    """Return the same model under another name, its weights too large for the graph's file."""
    options = replace(QUICK, name="our-sam", max_single_file_bytes=1000)
    return import_model(checkpoint, out_dir=tmp_path_factory.mktemp("split"), options=options)


def test_a_name_of_the_users_begins_the_artifact_ids(split: ImportedModel) -> None:
    assert [a.artifact_id for a in split.artifacts] == ["our-sam-encoder", "our-sam-segmenter"]
    assert split.artifacts[1].lineage[0].artifact_id == "our-sam-encoder"


def test_importing_twice_gives_the_same_bytes(checkpoint: Path, imported: ImportedModel, tmp_path: Path) -> None:
    options = replace(QUICK, source_url="https://example.org/sam.pth")
    again = import_model(checkpoint, out_dir=tmp_path, options=options)
    for first, second in zip(imported.artifacts, again.artifacts, strict=True):
        for name in first.files:
            if name != "parity.json":
                assert first.files[name].read_bytes() == second.files[name].read_bytes(), name


def test_large_weights_go_into_a_file_of_their_own_that_the_graph_finds(
    imported: ImportedModel, split: ImportedModel, tmp_path: Path
) -> None:
    for whole, parts in zip(imported.artifacts, split.artifacts, strict=True):
        data = parts.files[f"{parts.spec.graph}.data"]
        assert data.parent == parts.files[parts.spec.graph].parent
        # What stays in the graph is its structure; all weights moved.
        assert parts.files[parts.spec.graph].stat().st_size < 400_000 < data.stat().st_size
        assert data.stat().st_size < whole.files[whole.spec.graph].stat().st_size
    moved = shutil.copytree(split.artifacts[0].files["encoder.onnx"].parent, tmp_path / "moved")
    picture = np.zeros((2, 3, 128, 128), np.float32)
    expected = open_session(imported.artifacts[0].files["encoder.onnx"]).run(None, {"image": picture})[0]
    np.testing.assert_array_equal(open_session(moved / "encoder.onnx").run(None, {"image": picture})[0], expected)


class Shifted(nn.Module):
    """An encoder that is a little off."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        shifted: torch.Tensor = self.inner(image) + 0.05
        return shifted


class Leaking(Shifted):
    """An encoder that is right for one image, and in a batch lets each image see a little of the others."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        embedding: torch.Tensor = self.inner(image)
        return 0.95 * embedding + 0.05 * embedding.mean(dim=0, keepdim=True)


@pytest.mark.parametrize(("encoder", "failing"), [(Shifted, 1), (Leaking, 2)])
def test_a_graph_that_differs_from_its_model_is_refused_and_its_report_kept(
    encoder: type[Shifted], failing: int, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "encoder_to_onnx", lambda module, *rest: encoder_to_onnx(encoder(module), *rest))
    message = f"sam-vit-64x1-encoder does not match .*: encode {failing} at a time"
    with pytest.raises(FailedPrecondition, match=message):
        import_model(checkpoint, out_dir=tmp_path, options=QUICK)
    report = json.loads((tmp_path / "sam-vit-64x1-encoder" / "parity.json").read_text())
    assert report["passed"] is False


def require_computes_in(precision: Precision, path: Path) -> None:
    """Look at the weights of matrix products; inputs and outputs are float32 whatever a graph computes in."""
    graph = onnx.load(path).graph
    products = {n.input[1] for n in graph.node if n.op_type == "MatMul"}
    types = {t.data_type for t in graph.initializer if t.name in products and len(t.dims) == 2}
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    assert half in types if precision == "float16" else types == {single}
    elements = {v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)}
    assert elements <= {single, onnx.TensorProto.INT64}


@pytest.mark.parametrize(("precision", "suffix"), [("float16", "fp16"), ("float16-encoder", "fp16e")])
def test_float16_graphs_have_names_of_their_own_and_are_judged_by_their_masks(
    precision: ImportPrecision, suffix: str, checkpoint: Path, tmp_path: Path
) -> None:
    options = replace(QUICK, precision=precision, has_bank=precision == "float16")
    encoder, segmenter = import_model(checkpoint, out_dir=tmp_path, options=options).artifacts
    assert encoder.artifact_id == f"sam-vit-64x1-{suffix}-encoder"
    assert segmenter.artifact_id == f"sam-vit-64x1-{suffix}-segmenter"
    assert "bank.onnx" not in segmenter.files  # adapters are float32's
    for artifact in (encoder, segmenter):
        is_half = artifact is encoder or precision == "float16"
        assert artifact.spec.precision == artifact.labels["precision"] == ("float16" if is_half else "float32")
        require_computes_in("float16" if is_half else "float32", artifact.files[artifact.spec.graph])
    report = ParityReport.model_validate_json(segmenter.files["parity.json"].read_bytes())
    assert {c.mask_iou_tolerance for c in report.cases if c.name.endswith("from the image")} == {0.99}
    assert isinstance(encoder.spec, EncoderSpec)
    assert isinstance(segmenter.spec, SegmenterSpec)
    settings = OnnxSettings(providers=("cpu",))
    OnnxEncoderLoader(settings).load("encoder", encoder.files["encoder.onnx"].parent, encoder.spec)
    OnnxSegmenterLoader(settings).load("segmenter", "", segmenter.files["decoder.onnx"].parent, segmenter.spec)
    if precision == "float16":
        with pytest.raises(FailedPrecondition, match=r"decoder\.onnx cannot be tuned"):
            load_decoder(segmenter.files["decoder.onnx"].parent, segmenter.spec)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "suffix"), [("float32", ""), ("float16", "-fp16")])
def test_mobile_sam_is_imported_from_its_own_layout(precision: ImportPrecision, suffix: str, tmp_path: Path) -> None:
    write_mobile_sam_checkpoint(tmp_path / "mobile_sam.pt")
    sizes_hw = ((300, 400), (200, 90)) if precision == "float16" else ((300, 400),)
    options = ImportOptions(family="mobile_sam", parity_image_sizes_hw=sizes_hw, has_bank=False, precision=precision)
    encoder, segmenter = import_model(tmp_path / "mobile_sam.pt", out_dir=tmp_path, options=options).artifacts
    assert encoder.artifact_id == f"{find_entry('mobile-sam').name}{suffix}-encoder"
    assert encoder.labels == {"family": "mobile_sam", "architecture": "vit_t", "precision": precision}
    for artifact in (encoder, segmenter):
        require_computes_in(precision, artifact.files[artifact.spec.graph])
    predictor = GraphPredictor(encoder.files["model.json"].parent, segmenter.files["model.json"].parent)
    embedding, transform = predictor.embed(make_picture((300, 400), 1))
    assert embedding.shape == (1, 256, 64, 64)
    prompt = ObjectPrompt(points_xy=np.array([[200, 150]], np.float32), point_labels=np.array([1]))
    assert predictor.predict(embedding, transform, prompt, multimask=True).logits.shape == (3, 300, 400)


@pytest.mark.parametrize(
    ("architecture", "precision", "artifact_id", "shape"),
    [
        ("vit_small_patch14_dinov2", "float32", "dinov2-vits14-depth2-encoder", (20, 20, 384)),
        ("vit_small_patch14_dinov2", "float16", "dinov2-vits14-depth2-fp16-encoder", (20, 20, 384)),
        ("vit_small_patch14_reg4_dinov2", "float16", "dinov2-vits14-reg-depth2-fp16-encoder", (20, 20, 384)),
        ("vit_small_patch16_dinov3", "float32", "dinov3-vits16-depth2-encoder", (16, 16, 384)),
        ("vit_small_patch16_dinov3", "float16", "dinov3-vits16-depth2-fp16-encoder", (16, 16, 384)),
    ],
)
def test_dino_is_imported_with_a_true_batch(
    architecture: str, precision: ImportPrecision, artifact_id: str, shape: tuple[int, int, int], tmp_path: Path
) -> None:
    write_dino_file(tmp_path / "model.safetensors", architecture, depth=2)
    options = replace(QUICK, precision=precision, input_size=280 if "patch14" in architecture else 256)
    (encoder,) = import_model(tmp_path / "model.safetensors", out_dir=tmp_path, options=options).artifacts
    assert encoder.artifact_id == artifact_id
    assert isinstance(encoder.spec, EncoderSpec)
    assert encoder.spec.outputs[0].role == "patch_features"
    assert encoder.spec.outputs[0].shape == shape
    require_computes_in(encoder.spec.precision, encoder.files["encoder.onnx"])
    side = encoder.spec.preprocessing.size
    images = np.random.default_rng(0).normal(size=(3, 3, side, side)).astype(np.float32)
    session = open_session(encoder.files["encoder.onnx"])
    together = session.run(["patch_features"], {"image": images})[0]
    assert together.shape == (3, *shape)
    np.testing.assert_allclose(session.run(None, {"image": images[2:]})[0][0], together[2], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=-1), 1, atol=1e-5)


def test_a_file_of_another_family_is_invalid_input(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"sam\.pth holds a sam model, not timm") as caught:
        import_model(checkpoint, out_dir=tmp_path, options=ImportOptions(family="timm"))
    assert caught.value.violations[0].field == "family"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (ImportOptions(input_size=512), "input_size"),
        (ImportOptions(architecture="vit_b"), "architecture"),
        (ImportOptions(name="Our SAM"), "name"),
        (ImportOptions(parity_image_sizes_hw=()), "parity_image_sizes_hw"),
    ],
)
def test_an_option_that_cannot_be_followed_is_invalid_input(
    options: ImportOptions, field: str, checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput) as caught:
        import_model(checkpoint, out_dir=tmp_path / "out", options=options)
    assert caught.value.violations[0].field == field
    assert not (tmp_path / "out").exists()


def test_weights_of_no_known_layout_are_invalid_input(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "resnet.pth")
    with pytest.raises(InvalidInput, match=r"neither a SAM checkpoint .* begin with conv1\.weight"):
        import_model(tmp_path / "resnet.pth", out_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()
