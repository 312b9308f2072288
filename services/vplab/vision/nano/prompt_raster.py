"""Prompts drawn on the low-resolution logit grid, batched in torch for training.

The serving twin is ``vplab.vision.prompts.rasterize_prompt``; a test holds the two equal.
"""

import torch
from torch import Tensor

from vplab.vision.specs import PromptRaster


def rasterize_prompts(
    coords: Tensor, labels: Tensor, low_res_hw: tuple[int, int], input_size: int, raster: PromptRaster
) -> Tensor:
    """Draw N prompts.

    coords: (N, P, 2) float32, (x, y) pixels of the model's input. labels: (N, P), as the decoder takes them.
    Returns (N, 1, h, w) float32 logits. A cell is inside a box when its centre is, borders included.
    """
    height, width = low_res_hw
    step = coords.new_tensor([input_size / width, input_size / height])
    # A pixel's centre is half a pixel from its corner, as in SAM's prompt encoder.
    cells = (coords + 0.5) / step
    x = torch.arange(width, device=coords.device, dtype=torch.float32) + 0.5
    y = torch.arange(height, device=coords.device, dtype=torch.float32) + 0.5

    first, last = (labels == 2).float(), (labels == 3).float()
    has_box = (first.sum(1) * last.sum(1) > 0)[:, None, None]
    low = torch.einsum("np,npc->nc", first, cells)
    high = torch.einsum("np,npc->nc", last, cells)
    within_x = (x >= low[:, :1]) & (x <= high[:, :1])  # (N, w)
    within_y = (y >= low[:, 1:]) & (y <= high[:, 1:])  # (N, h)
    inside = within_y[:, :, None] & within_x[:, None, :]
    boxed = torch.where(inside, raster.box_inside, raster.box_outside)
    canvas = torch.where(has_box, boxed, torch.zeros_like(boxed))

    sign = (labels == 1).float() - (labels == 0).float()  # padding and corners count nothing
    scale = -0.5 / raster.click_sigma**2
    bump_x = torch.exp(scale * (x - cells[..., :1]) ** 2)  # (N, P, w)
    bump_y = torch.exp(scale * (y - cells[..., 1:]) ** 2)  # (N, P, h)
    bumps = torch.einsum("np,nph,npw->nhw", sign * raster.click_peak, bump_y, bump_x)
    return (canvas + bumps).unsqueeze(1)
