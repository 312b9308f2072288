"""A person's prompts, imitated: first boxes and clicks, then clicks on what is still wrong (SAM, arXiv 2304.02643 A).

A batch holds two groups, boxes and clicks, since prompts with different numbers of tokens are never padded together.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from vplab.vision.nano.architecture import RASTER
from vplab.vision.nano.prompt_raster import rasterize_prompts
from vplab.vision.sam.onnx_decoder import PromptDecoder

BOX_NOISE = 0.1
"""Standard deviation of a corner, as a share of the side (SAM's), at most 20 / 1024 of the frame."""
EXACT_BOX_SHARE = 0.35
NOISY_MASK_SHARE = 0.12
KEEP_MASK_SHARE = 0.5
"""Of the refinement rounds, how many hand the last logits back; the others draw all prompts so far."""


@dataclass(frozen=True)
class PromptGroup:
    """N prompts with P tokens each."""

    image_index: Tensor
    """(N,) int64."""
    targets: Tensor
    """(N, h, w) float32 of 0 and 1, on the logit grid."""
    coords: Tensor
    """(N, P, 2) float32, points first, then corners or padding."""
    labels: Tensor
    """(N, P) float32."""
    mask_input: Tensor
    """(N, 1, h, w) float32."""

    def decode(self, decoder: PromptDecoder, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (N, 4, h, w) and IoU predictions (N, 4), float32."""
        has_mask = torch.ones(len(self.image_index), device=embedding.device)
        logits, iou = decoder(embedding, self.image_index, self.coords, self.labels, self.mask_input, has_mask)
        return logits.float(), iou.float()


def first_round(masks: Tensor, targets: Tensor, image_index: Tensor, rng: torch.Generator) -> list[PromptGroup]:
    """Prompt half of the masks by a box and half by clicks.

    masks: (N, S, S) bool in the frame of the model's input; targets: (N, h, w).
    """
    size = masks.shape[-1]
    order = torch.randperm(len(masks), generator=rng)
    half = len(masks) // 2
    boxed, clicked = order[:half], order[half:]
    corners = _noisy_boxes(masks[boxed], rng)
    box_labels = torch.tensor([2.0, 3.0]).expand(half, 2)

    num_positive = int(torch.tensor([1, 1, 1, 2, 3])[torch.randint(5, (1,), generator=rng)])
    num_negative = int(torch.tensor([0, 0, 0, 1, 2])[torch.randint(5, (1,), generator=rng)])
    count = len(clicked)
    positive = _points_in(masks[clicked], num_positive, rng)
    negative = _points_in(~masks[clicked], num_negative, rng)
    coords = torch.cat([positive, negative, torch.zeros(count, 1, 2)], dim=1)
    labels = torch.cat(
        [torch.ones(count, num_positive), torch.zeros(count, num_negative), -torch.ones(count, 1)], dim=1
    )
    groups = []
    for index, points, kinds in ((boxed, corners, box_labels), (clicked, coords, labels)):
        drawn = rasterize_prompts(points, kinds, _hw(targets), size, RASTER)
        noisy = _noisy_masks(targets[index], rng) + _drawn_clicks(points, kinds, targets, size)
        uses_mask = torch.rand(len(index), 1, 1, 1, generator=rng) < NOISY_MASK_SHARE
        mask_input = torch.where(uses_mask, noisy, drawn)
        groups.append(PromptGroup(image_index[index], targets[index], points, kinds, mask_input))
    return groups


def next_round(
    group: PromptGroup, logits: Tensor, predicted_iou: Tensor, input_size: int, rng: torch.Generator
) -> PromptGroup:
    """Add a click where the best-scored mask is wrong: label 1 on what is missed, 0 on what is too much.

    logits: (N, 4, h, w) and predicted_iou: (N, 4), of the round before.
    """
    rows = torch.arange(len(logits))
    best = logits[rows, predicted_iou[:, 1:].argmax(1) + 1] if group.labels.shape[1] == 2 else logits[:, 0]
    wanted = group.targets > 0
    wrong = ((best > 0) != wanted).float()
    # Larger patches of error are clicked first, and rather inside them than at their rim.
    weight = wrong * F.avg_pool2d(wrong.unsqueeze(1), 7, 1, 3).squeeze(1) ** 2 + 1e-9 * wanted.float() + 1e-12
    cell = torch.multinomial(weight.flatten(1), 1, generator=rng).squeeze(1)
    height, width = _hw(group.targets)
    step = input_size / width
    jitter = torch.rand(len(cell), 2, generator=rng)
    point = (torch.stack([cell % width, cell // width], dim=1) + jitter) * step - 0.5
    label = wanted.flatten(1)[rows, cell].float()
    coords = torch.cat([point.unsqueeze(1), group.coords], dim=1)
    labels = torch.cat([label.unsqueeze(1), group.labels], dim=1)
    drawn = rasterize_prompts(coords, labels, (height, width), input_size, RASTER)
    keeps = torch.rand(len(cell), 1, 1, 1, generator=rng) < KEEP_MASK_SHARE
    handed_back = best.unsqueeze(1).clamp(-32, 32) + _drawn_clicks(coords, labels, group.targets, input_size)
    mask_input = torch.where(keeps, handed_back, drawn)
    return replace(group, coords=coords, labels=labels, mask_input=mask_input)


def _drawn_clicks(coords: Tensor, labels: Tensor, targets: Tensor, input_size: int) -> Tensor:
    """Draw the clicks alone: a mask that is handed back already knows where the box was."""
    clicks = torch.where(labels >= 2, -1.0, labels)
    return rasterize_prompts(coords, clicks, _hw(targets), input_size, RASTER)


def _hw(targets: Tensor) -> tuple[int, int]:
    return targets.shape[-2], targets.shape[-1]


def _points_in(masks: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Draw pixels of each mask, half of the masks uniformly and half away from the border; (N, count, 2)."""
    if count == 0:
        return torch.zeros(len(masks), 0, 2)
    size = masks.shape[-1]
    inside = masks.float()
    coarse = F.avg_pool2d(F.avg_pool2d(inside.unsqueeze(1), 4), 5, 1, 2) ** 3
    depth = F.interpolate(coarse, scale_factor=4.0).squeeze(1)
    central = torch.rand(len(masks), 1, 1, generator=rng) < 0.5
    weight = torch.where(central, inside * depth, inside) + 1e-12
    pixel = torch.multinomial(weight.flatten(1), count, replacement=True, generator=rng)
    return torch.stack([pixel % size, pixel // size], dim=-1).float()


def _noisy_boxes(masks: Tensor, rng: torch.Generator) -> Tensor:
    size = masks.shape[-1]
    boxes = tight_boxes(masks)
    sides = (boxes[:, 1] - boxes[:, 0] + 1).unsqueeze(1)
    limit = 20 / 1024 * size
    noise = (torch.randn(boxes.shape, generator=rng) * BOX_NOISE * sides).clamp(-limit, limit)
    keep = torch.rand(len(boxes), 1, 1, generator=rng) >= EXACT_BOX_SHARE
    noisy: Tensor = (boxes + noise * keep).clamp(0, size - 1)
    return noisy


def tight_boxes(masks: Tensor) -> Tensor:
    """Return the pixel boxes of non-empty masks (N, S, S) as corners (N, 2, 2): (x, y) first and last pixel."""
    columns, rows = masks.any(1), masks.any(2)  # (N, S)
    size = masks.shape[-1]
    low = torch.stack([columns.float().argmax(1), rows.float().argmax(1)], dim=1)
    high = size - 1 - torch.stack([columns.flip(1).float().argmax(1), rows.flip(1).float().argmax(1)], dim=1)
    return torch.stack([low, high], dim=1).float()


def _noisy_masks(targets: Tensor, rng: torch.Generator) -> Tensor:
    """Return coarse logits of the target: blurred, with its border pushed about by smooth noise; (N, 1, h, w)."""
    blurred = F.avg_pool2d(targets.unsqueeze(1), 7, 1, 3)
    noise = torch.randn(len(targets), 1, *_hw(targets), generator=rng)
    noise = F.avg_pool2d(noise, 9, 1, 4) * 9  # averaging 81 values divides the deviation by 9
    return (blurred - 0.5 + 0.25 * noise) * 16
