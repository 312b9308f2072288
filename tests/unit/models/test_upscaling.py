"""Cells that upscale by themselves give what SAM's own upscaling gives."""

import pytest
import torch
from segment_anything.modeling import MaskDecoder, TwoWayTransformer

from vplab.vision.sam.half_precision import halve
from vplab.vision.sam.upscaling import as_planes, convolution_weight, fine_cells

GRID_HW = (3, 5)


@pytest.fixture
def decoder() -> MaskDecoder:
    torch.manual_seed(0)
    transformer = TwoWayTransformer(depth=1, embedding_dim=64, num_heads=2, mlp_dim=32)
    decoder = MaskDecoder(transformer_dim=64, transformer=transformer).eval()
    with torch.no_grad():
        for value in decoder.output_upscaling[1].parameters():
            value.normal_()  # the norm's own start says nothing of the order of its channels
    return decoder


def cells() -> torch.Tensor:
    return torch.randn(2, GRID_HW[0] * GRID_HW[1], 64, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def test_it_is_sams_upscaling(decoder: MaskDecoder) -> None:
    expected = decoder.output_upscaling(cells().transpose(1, 2).unflatten(2, GRID_HW))
    found = as_planes(fine_cells(decoder.output_upscaling, cells()).transpose(1, 2), GRID_HW)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_in_float16_it_is_near_what_float32_gives(decoder: MaskDecoder) -> None:
    large = 300 * cells()
    expected = fine_cells(decoder.output_upscaling, large)
    found = fine_cells(halve(decoder).output_upscaling, large.half())
    assert found.dtype == torch.float16
    assert (found.float() - expected).abs().max() < 0.02 * expected.abs().max()


def test_a_convolution_comes_back_from_its_product(decoder: MaskDecoder) -> None:
    weight = decoder.output_upscaling[0].weight.detach()
    assert torch.equal(convolution_weight(weight.permute(0, 2, 3, 1).flatten(1)), weight)
