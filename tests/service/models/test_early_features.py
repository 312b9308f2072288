"""The early feature of imported encoders: the torch block's own output, beside an embedding that stays as it is."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fakes.graph_predictor import open_session
from fakes.sam_checkpoints import build_sam, randomize, write_dino_file, write_mobile_sam_checkpoint
from fakes.small_sam import EARLY_ENCODER_SPEC, ENCODER, SEGMENTER, write_small_sam
from vplab.errors import FailedPrecondition, InvalidInput
from vplab.training.models import importing
from vplab.training.models.imported import ImportedModel, ImportOptions, ImportPrecision, LineageLink
from vplab.training.models.importing import import_model
from vplab.training.models.lazy import import_model as import_any
from vplab.training.models.parity import ParityReport
from vplab.vision.sam.build import sam_from_state_dict
from vplab.vision.sam.early_features import EarlyViT, with_early_features
from vplab.vision.specs import EncoderSpec

PLAIN = ImportOptions(parity_image_sizes_hw=((90, 120), (120, 90), (64, 200)), has_bank=False)
EARLY = replace(PLAIN, has_early_features=True)
SIDE = 256


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a SAM of four blocks, of which the second is the first that attends to the whole grid."""
    path = tmp_path_factory.mktemp("sam") / "sam.pth"
    sam = build_sam(width=48, depth=4, num_heads=3, global_blocks=(1, 3), input_size=SIDE)
    randomize(sam, 0)
    torch.save(sam.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def imported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> ImportedModel:
    return import_model(checkpoint, out_dir=tmp_path_factory.mktemp("out"), options=EARLY)


def pictures(count: int) -> Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def output_of(part: nn.Module, encoder: nn.Module, images: Tensor) -> Tensor:
    """Return what a part of an encoder gives out while the whole one runs."""
    seen: list[Tensor] = []
    hook = part.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.inference_mode():
        encoder(images)
    hook.remove()
    return seen[0]


def spec_of(model: ImportedModel) -> EncoderSpec:
    spec = model.artifacts[0].spec
    assert isinstance(spec, EncoderSpec)
    return spec


def test_the_graph_gives_the_first_global_blocks_output_on_the_embeddings_grid(
    imported: ImportedModel, checkpoint: Path
) -> None:
    assert [a.artifact_id for a in imported.artifacts] == ["sam-vit-48x4-early-encoder", "sam-vit-48x4-early-segmenter"]
    early = spec_of(imported).output("early_features")
    assert early is not None
    assert (early.shape, early.stride, spec_of(imported).early_channels) == ((48, 16, 16), 16, 48)
    original = sam_from_state_dict(torch.load(checkpoint, weights_only=True)).image_encoder
    images = pictures(2)
    block: nn.Module = original.blocks[1]  # type: ignore[index, assignment]
    expected = output_of(block, original, images).permute(0, 3, 1, 2).numpy()
    session = open_session(imported.artifacts[0].files["encoder.onnx"])
    embedding, found = session.run(["image_embedding", "early_features"], {"image": images.numpy()})
    np.testing.assert_allclose(found, expected, atol=1e-4 * expected.std())
    with torch.inference_mode():
        np.testing.assert_allclose(embedding, original(images).numpy(), atol=1e-4)


def test_the_report_compares_the_early_feature_too_and_a_wrong_one_is_refused(
    imported: ImportedModel, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = ParityReport.model_validate_json(imported.artifacts[0].files["parity.json"].read_bytes())
    assert {(c.quantity, c.name) for c in report.cases} == {
        (quantity, f"encode {size} at a time") for quantity in ("image_embedding", "early_features") for size in (1, 2)
    }

    class Off(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
            embedding, early = self.inner(image)
            return embedding, early * 1.05

    export = importing.encoder_to_onnx
    monkeypatch.setattr(importing, "encoder_to_onnx", lambda module, *rest: export(Off(module), *rest))
    with pytest.raises(FailedPrecondition, match="encode 1 at a time: early_features differ"):
        import_model(checkpoint, out_dir=tmp_path, options=EARLY)


def test_without_the_option_the_graph_gives_the_embedding_alone(checkpoint: Path, tmp_path: Path) -> None:
    (encoder, _) = import_model(checkpoint, out_dir=tmp_path, options=PLAIN).artifacts
    assert encoder.artifact_id == "sam-vit-48x4-encoder"
    assert isinstance(encoder.spec, EncoderSpec)
    assert encoder.spec.early_channels is None
    assert [o.name for o in open_session(encoder.files["encoder.onnx"]).get_outputs()] == ["image_embedding"]


@pytest.mark.parametrize(("precision", "suffix"), [("float16-encoder", "fp16e"), ("float16", "fp16")])
def test_half_precision_encoders_have_it(
    precision: ImportPrecision, suffix: str, checkpoint: Path, imported: ImportedModel, tmp_path: Path
) -> None:
    half = import_model(checkpoint, out_dir=tmp_path, options=replace(EARLY, precision=precision))
    assert half.artifacts[0].artifact_id == f"sam-vit-48x4-early-{suffix}-encoder"
    feed = {"image": pictures(2).numpy()}
    (exact,) = open_session(imported.artifacts[0].files["encoder.onnx"]).run(["early_features"], feed)
    (found,) = open_session(half.artifacts[0].files["encoder.onnx"]).run(["early_features"], feed)
    assert found.dtype == np.float32
    difference = float(np.abs(found - exact).max() / exact.std())
    assert 0 < difference < 0.1


def test_of_mobile_sam_it_is_the_second_stage_with_its_step_onto_the_grid(tmp_path: Path) -> None:
    state = write_mobile_sam_checkpoint(tmp_path / "m.pt", widths=(8, 16, 24, 32), num_heads=(1, 2, 2, 4))
    model = sam_from_state_dict(state)
    wrapped = with_early_features(model.image_encoder)
    image = torch.randn(1, 3, 1024, 1024, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        embedding, early = wrapped(image)
        torch.testing.assert_close(embedding, model.image_encoder(image))
    assert wrapped.early_channels == 24
    assert early.shape == (1, 24, 64, 64)
    assert state["image_encoder.layers.1.downsample.conv3.c.weight"].shape[0] == 24
    step: nn.Module = model.image_encoder.stages[2].downsample  # type: ignore[index, union-attr, assignment]
    torch.testing.assert_close(early, output_of(step, model.image_encoder, image))


@pytest.mark.slow
def test_mobile_sams_graph_has_the_160_channels_of_the_published_one(tmp_path: Path) -> None:
    write_mobile_sam_checkpoint(tmp_path / "mobile_sam.pt")
    options = replace(EARLY, parity_image_sizes_hw=((300, 400),))
    assert spec_of(import_model(tmp_path / "mobile_sam.pt", out_dir=tmp_path, options=options)).early_channels == 160


def test_an_encoder_that_cannot_have_it_is_refused_and_the_option_named(tmp_path: Path) -> None:
    write_dino_file(tmp_path / "dino.safetensors", "vit_small_patch14_dinov2", depth=1)
    local = build_sam(width=48, depth=1, num_heads=3, global_blocks=(), input_size=SIDE)
    for refused in (
        lambda: import_model(tmp_path / "dino.safetensors", out_dir=tmp_path, options=EARLY),
        lambda: EarlyViT(local.image_encoder),
    ):
        with pytest.raises(InvalidInput) as caught:
            refused()
        assert caught.value.violations[0].field == "early_features"


def test_a_folder_of_exported_graphs_is_published_as_it_is(tmp_path: Path) -> None:
    folder = write_small_sam(tmp_path / "pair", EARLY_ENCODER_SPEC)
    case = {"max_abs_difference": 0.25, "mask_iou": None}
    for name in (ENCODER, SEGMENTER):
        (folder / name / "parity.json").write_text(json.dumps({"passed": True, "cases": [case]}))
    encoder, segmenter = import_any(folder, out_dir=tmp_path / "out").artifacts
    assert (encoder.artifact_id, encoder.kind, encoder.spec) == (ENCODER, "encoder", EARLY_ENCODER_SPEC)
    assert encoder.files.keys() == {"encoder.onnx", "model.json", "parity.json"}
    assert encoder.metrics == {"parity_passed": 1.0, "parity_max_abs_difference": 0.25}
    assert (segmenter.artifact_id, segmenter.lineage) == (SEGMENTER, (LineageLink("image_encoder", ENCODER),))
    for options, field in ((EARLY, "early_features"), (ImportOptions(precision="float16"), "precision")):
        with pytest.raises(InvalidInput) as caught:
            import_any(folder, out_dir=tmp_path / "out", options=options)
        assert caught.value.violations[0].field == field
    (folder / ENCODER / "encoder.onnx").unlink()
    with pytest.raises(InvalidInput, match=r"small-encoder lacks encoder\.onnx"):
        import_any(folder, out_dir=tmp_path / "out")
    with pytest.raises(InvalidInput, match="holds 0 encoders"):
        import_any(folder / ENCODER, out_dir=tmp_path / "out")
