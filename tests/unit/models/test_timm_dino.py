"""DINO files in timm's layout: which model they are, and patch features that equal timm's."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fakes.sam_checkpoints import write_dino_file
from vplab.errors import InvalidInput
from vplab.training.models.timm_dino import dino_encoder, find_architecture

SMALL = "vit_small_patch14_dinov2"


def tensors(architecture: str, depth: int, path: Path) -> tuple[nn.Module, dict[str, Tensor]]:
    model = write_dino_file(path, architecture, depth=depth)
    return model.eval(), load_file(path)


@pytest.mark.parametrize(
    "architecture",
    [
        "vit_small_patch14_dinov2",
        "vit_base_patch14_reg4_dinov2",
        "vit_giant_patch14_dinov2",
        "vit_small_patch16_dinov3",
        "vit_small_plus_patch16_dinov3",
        "vit_huge_plus_patch16_dinov3_qkvb",
    ],
)
def test_the_architecture_is_found_from_the_tensors(architecture: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(architecture, pretrained=False, num_classes=0, depth=3)  # type: ignore[arg-type]
    assert find_architecture(model.state_dict()) == architecture


@pytest.mark.parametrize(
    ("architecture", "num_prefix", "size"),
    [(SMALL, 1, 518), ("vit_small_patch14_reg4_dinov2", 5, 518), ("vit_small_patch16_dinov3", 5, 512)],
)
def test_features_are_timms_patch_tokens_as_unit_vectors(
    architecture: str, num_prefix: int, size: int, tmp_path: Path
) -> None:
    reference, state = tensors(architecture, 2, tmp_path / "model.safetensors")
    encoder, spec = dino_encoder(state)
    assert spec.architecture == f"{architecture}_depth2"
    assert (spec.preprocessing.resize, spec.preprocessing.size) == ("fixed", size)
    image = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = encoder(image)
        tokens = reference.forward_features(image)[:, num_prefix:]  # type: ignore[operator]
    assert features.shape == (2, *spec.outputs[0].shape)
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(features.shape[:-1]))
    expected = tokens / tokens.norm(dim=-1, keepdim=True)
    # Row-major: the patch right of the first is the second token.
    torch.testing.assert_close(features.flatten(1, 2), expected)


def test_the_whole_published_depth_keeps_the_published_name(tmp_path: Path) -> None:
    _, state = tensors(SMALL, 12, tmp_path / "model.safetensors")
    assert dino_encoder(state)[1].architecture == SMALL


def test_another_input_size_resamples_the_positions(tmp_path: Path) -> None:
    _, state = tensors(SMALL, 1, tmp_path / "model.safetensors")
    encoder, spec = dino_encoder(state, input_size=280)
    assert spec.outputs[0].shape == (20, 20, 384)
    assert encoder(torch.zeros(1, 3, 280, 280)).shape == (1, 20, 20, 384)


def test_preprocessing_is_imagenets_in_the_255_range(tmp_path: Path) -> None:
    _, state = tensors(SMALL, 1, tmp_path / "model.safetensors")
    preprocessing = dino_encoder(state)[1].preprocessing
    assert preprocessing.mean_rgb == (123.675, 116.28, 103.53)
    assert preprocessing.std_rgb == (58.395, 57.12, 57.375)
    assert preprocessing.interpolation == "bicubic"


def test_a_tag_tells_the_normalisation_that_tensors_cannot(tmp_path: Path) -> None:
    _, state = tensors("vit_large_patch16_dinov3", 1, tmp_path / "model.safetensors")
    spec = dino_encoder(state, architecture="vit_large_patch16_dinov3.sat493m")[1]
    assert spec.preprocessing.mean_rgb == (109.65, 104.805, 75.48)
    assert spec.architecture == "vit_large_patch16_dinov3_depth1.sat493m"


@pytest.mark.parametrize("size", [519, 7, 0, -14])
def test_an_input_size_off_the_patch_grid_is_invalid_input(size: int, tmp_path: Path) -> None:
    _, state = tensors(SMALL, 1, tmp_path / "model.safetensors")
    with pytest.raises(InvalidInput) as caught:
        dino_encoder(state, input_size=size)
    assert caught.value.violations[0].field == "input_size"


def test_a_model_that_is_nearly_dino_is_refused_with_the_difference(tmp_path: Path) -> None:
    _, state = tensors(SMALL, 1, tmp_path / "model.safetensors")
    state["register_tokens"] = torch.zeros(1, 4, 384)
    with pytest.raises(InvalidInput, match=r"nearest is vit_small_patch14_dinov2, which differs in register_tokens"):
        dino_encoder(state)


def test_what_only_pre_training_used_is_left_out(tmp_path: Path) -> None:
    _, state = tensors(SMALL, 1, tmp_path / "model.safetensors")
    state |= {"mask_token": torch.ones(1, 384), "rope.periods": torch.ones(16)}
    assert dino_encoder(state)[1].architecture == f"{SMALL}_depth1"


def test_a_missing_tensor_of_a_later_block_is_named(tmp_path: Path) -> None:
    _, state = tensors(SMALL, 2, tmp_path / "model.safetensors")
    del state["blocks.1.mlp.fc1.weight"]
    with pytest.raises(InvalidInput, match=r"1 missing: blocks\.1\.mlp\.fc1\.weight"):
        dino_encoder(state)


@pytest.mark.parametrize("name", ["resnet50", "vit_base_patch16_224", "vit_small_patch14_dinov2x"])
def test_an_architecture_that_is_no_dino_is_invalid_input(name: str, tmp_path: Path) -> None:
    _, state = tensors(SMALL, 1, tmp_path / "model.safetensors")
    with pytest.raises(InvalidInput) as caught:
        dino_encoder(state, architecture=name)
    assert caught.value.violations[0].field == "architecture"
