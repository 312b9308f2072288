"""Reading SAM's sizes from tensor shapes, and saying what is wrong with weights that do not fit."""

from pathlib import Path

import pytest
import torch
from segment_anything.modeling import Sam
from torch import Tensor

from fakes.sam_checkpoints import build_sam, randomize, write_mobile_sam_checkpoint
from vplab.errors import DataLoss, InvalidInput
from vplab.vision.sam.build import VitShape, sam_from_state_dict
from vplab.vision.sam.state_dict import prefixed


@pytest.fixture(scope="module")
def sam() -> Sam:
    sam = build_sam(width=48, depth=3, num_heads=3, global_blocks=(0, 2), input_size=256)
    randomize(sam, 0)
    return sam


@pytest.fixture
def state(sam: Sam) -> dict[str, Tensor]:
    return dict(sam.state_dict())


@pytest.mark.parametrize(
    ("name", "width", "depth", "num_heads", "global_blocks"),
    [
        ("vit_b", 768, 12, 12, (2, 5, 8, 11)),
        ("vit_l", 1024, 24, 16, (5, 11, 17, 23)),
        ("vit_h", 1280, 32, 16, (7, 15, 23, 31)),
    ],
)
def test_published_sizes_are_recognised_from_shapes(
    name: str, width: int, depth: int, num_heads: int, global_blocks: tuple[int, ...]
) -> None:
    with torch.device("meta"):
        published = build_sam(width, depth, num_heads, global_blocks, input_size=1024)
    shape = VitShape.of(published.image_encoder.state_dict())
    assert shape.architecture == name
    assert (shape.num_heads, shape.global_blocks, shape.window_size) == (num_heads, global_blocks, 14)
    assert (shape.input_size, shape.patch_size, shape.mlp_ratio, shape.num_channels) == (1024, 16, 4.0, 256)


def test_a_small_sam_gives_what_segment_anything_gives(sam: Sam, state: dict[str, Tensor]) -> None:
    model = sam_from_state_dict(state)
    assert (model.family, model.architecture, model.input_size) == ("sam", "vit_48x3", 256)
    image = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model.image_encoder(image), sam.image_encoder(image))
    torch.testing.assert_close(model.prompt_encoder.get_dense_pe(), sam.prompt_encoder.get_dense_pe())


def test_half_precision_weights_become_float32(state: dict[str, Tensor]) -> None:
    model = sam_from_state_dict({key: value.half() for key, value in state.items()})
    assert {p.dtype for p in model.mask_decoder.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in model.image_encoder.parameters())


def test_a_missing_tensor_is_named(state: dict[str, Tensor]) -> None:
    del state["image_encoder.blocks.1.attn.proj.bias"]
    with pytest.raises(InvalidInput, match=r"1 missing: blocks\.1\.attn\.proj\.bias") as caught:
        sam_from_state_dict(state)
    assert caught.value.violations[0].field == "path"


def test_an_unexpected_tensor_is_named(state: dict[str, Tensor]) -> None:
    state["mask_decoder.hf_token.weight"] = torch.zeros(1, 256)
    with pytest.raises(InvalidInput, match=r"1 unexpected: hf_token\.weight"):
        sam_from_state_dict(state)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(state: dict[str, Tensor]) -> None:
    state["mask_decoder.iou_token.weight"] = torch.zeros(1, 255)
    with pytest.raises(InvalidInput, match=r"iou_token\.weight \(1, 255\) instead of \(1, 256\)"):
        sam_from_state_dict(state)


def test_many_missing_tensors_are_counted_and_some_named(state: dict[str, Tensor]) -> None:
    kept = {key: value for key, value in state.items() if ".norm" not in key or not key.startswith("image_encoder")}
    with pytest.raises(InvalidInput, match=r"12 missing: blocks\.0\.norm1\.bias, .* and 4 more"):
        sam_from_state_dict(kept)


@pytest.mark.parametrize(
    "key",
    ["image_encoder.pos_embed", "prompt_encoder.no_mask_embed.weight", "mask_decoder.mask_tokens.weight"],
)
def test_a_missing_tensor_that_tells_a_size_is_named(state: dict[str, Tensor], key: str) -> None:
    del state[key]
    with pytest.raises(InvalidInput, match=key.partition(".")[2]):
        sam_from_state_dict(state)


def test_tensors_of_another_model_are_refused(state: dict[str, Tensor]) -> None:
    with pytest.raises(InvalidInput, match=r"vision_encoder\.layer"):
        sam_from_state_dict(state | {"vision_encoder.layer": torch.zeros(1)})


def test_values_that_are_not_finite_are_data_loss(state: dict[str, Tensor]) -> None:
    damaged = state["image_encoder.neck.2.weight"].clone()
    damaged[0, 0, 0, 0] = float("nan")
    with pytest.raises(DataLoss, match=r"neck\.2\.weight"):
        sam_from_state_dict(state | {"image_encoder.neck.2.weight": damaged})


def test_mobile_sam_is_recognised_and_its_classifier_dropped(tmp_path: Path) -> None:
    state = write_mobile_sam_checkpoint(tmp_path / "mobile_sam.pt")
    model = sam_from_state_dict(state)
    assert (model.family, model.architecture, model.input_size) == ("mobile_sam", "vit_t", 1024)
    assert model.prompt_encoder.image_embedding_size == (64, 64)
    kept = sum(v.numel() for v in model.image_encoder.state_dict().values())
    published = {
        k: v for k, v in prefixed(state, "image_encoder.").items() if not k.startswith(("head.", "norm_head."))
    }
    assert kept == sum(v.numel() for v in published.values())


PUBLISHERS_NUMBERS = [-1.965815, -0.173286, 0.699000, 2.530101]


def test_mobile_sam_gives_what_its_publishers_code_gives(tmp_path: Path) -> None:
    """The numbers were printed by MobileSAM's own TinyViT (commit 34bbbfd) for this file and this image."""
    model = sam_from_state_dict(write_mobile_sam_checkpoint(tmp_path / "mobile_sam.pt", seed=11))
    y, x = torch.meshgrid(torch.linspace(-1, 1, 1024), torch.linspace(-1, 1, 1024), indexing="ij")
    image = torch.stack([torch.sin(9 * x), torch.cos(7 * y), torch.sin(5 * x * y)])[None]
    with torch.no_grad():
        embedding = model.image_encoder(image)
    assert embedding.shape == (1, 256, 64, 64)
    torch.testing.assert_close(embedding[0, :4, 20, 41], torch.tensor(PUBLISHERS_NUMBERS), atol=2e-3, rtol=0)
