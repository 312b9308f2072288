"""SAM's upscaling of the image's cells, cell by cell.

Both of its transposed convolutions step by as much as they are wide, so that every cell makes finer cells by itself:
two products with the channels last, where a normalisation over channels is one over the last axis, and no image is laid
out until there are planes. The same numbers as ``MaskDecoder.output_upscaling`` for less time on a CPU.
"""

from typing import cast

import torch
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

STEP = 2
"""Of each transposed convolution, along each side."""


def fine_cells(upscaling: nn.Sequential, cells: Tensor) -> Tensor:
    """Return what each cell makes of itself: (N, h*w, C) to (N, h*w*16, C/8), finer cells of a cell side by side."""
    first, norm, activation, second, last_activation = upscaling
    channels_norm = cast(LayerNorm2d, norm)
    values = _split(cast(nn.ConvTranspose2d, first), cells)  # (N, h*w, 4, C/4)
    # ``halve`` leaves SAM's norms over channels in float32, and an operator takes one type.
    wide = values.to(channels_norm.weight.dtype)
    normed = F.layer_norm(wide, wide.shape[-1:], channels_norm.weight, channels_norm.bias, channels_norm.eps)
    values = activation(normed.to(values.dtype))
    fine: Tensor = last_activation(_split(cast(nn.ConvTranspose2d, second), values))  # (N, h*w, 4, 4, C/8)
    return fine.flatten(1, 3)


def as_planes(values: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """Lay values of fine cells out as planes: (N, M, h*w*16) to (N, M, 4h, 4w)."""
    height, width = grid_hw
    steps = values.unflatten(2, (height, width, STEP, STEP, STEP, STEP))
    rows_first = torch.permute(steps, (0, 1, 2, 4, 6, 3, 5, 7))
    return rows_first.reshape(*values.shape[:2], height * STEP**2, width * STEP**2)


def _split(convolution: nn.ConvTranspose2d, values: Tensor) -> Tensor:
    """Return the four cells that each becomes: (..., C) to (..., 4, D)."""
    weight = convolution.weight.permute(0, 2, 3, 1).flatten(1)  # (C, 4 D)
    assert convolution.bias is not None, "SAM's have one"
    product: Tensor = values @ weight + convolution.bias.repeat(STEP**2)
    return torch.unflatten(product, -1, (STEP**2, -1))


def convolution_weight(product: Tensor) -> Tensor:
    """Return the weight (C, D, 2, 2) of the transposed convolution that a product (C, 4 D) stands for."""
    return torch.permute(product.unflatten(1, (STEP, STEP, -1)), (0, 3, 1, 2))
