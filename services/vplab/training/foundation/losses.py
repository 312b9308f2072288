"""What the segmenter is trained to: SAM's focal and dice losses with an IoU head (arXiv 2304.02643, appendix A)."""

import torch
from torch import Tensor
from torch.nn import functional as F

FOCAL_WEIGHT = 20.0
"""SAM's 20 : 1 of focal to dice."""
FOCAL_GAMMA = 2.0
OTHER_PLANES = 0.05
"""Share of the mean loss of all three planes beside the best one, so that none is left without a gradient."""


def low_res_targets(masks: Tensor, low_res_hw: tuple[int, int]) -> Tensor:
    """Bring masks to the logit grid so that each keeps its area.

    masks: (N, H, W) float32 of 0 and 1. Returns (N, h, w) float32 of 0 and 1: the cells of largest coverage, as many as
    the area asks for. A plain threshold of one half would erase what is thinner than a cell.
    """
    coverage = F.adaptive_avg_pool2d(masks.unsqueeze(1), low_res_hw).flatten(1)  # (N, h*w)
    wanted = coverage.sum(1).round().long().clamp(1, coverage.shape[1])
    ordered = coverage.sort(dim=1, descending=True).values
    threshold = ordered.gather(1, (wanted - 1).unsqueeze(1)).clamp_min(1e-3)
    return (coverage >= threshold).float().reshape(-1, *low_res_hw)


def plane_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the focal + dice loss of each plane; logits: (N, M, h, w), targets: (N, h, w); result (N, M)."""
    wanted = targets.unsqueeze(1).expand_as(logits)
    entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    focal = (entropy * (1 - torch.exp(-entropy)) ** FOCAL_GAMMA).mean((2, 3))  # exp(-entropy) is p of the true class
    probability = logits.sigmoid()
    overlap = (probability * wanted).sum((2, 3))
    dice = 1 - (2 * overlap + 1) / (probability.sum((2, 3)) + wanted.sum((2, 3)) + 1)
    return FOCAL_WEIGHT * focal + dice


def plane_ious(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the IoU of each plane thresholded at zero with its target, (N, M)."""
    predicted, wanted = logits > 0, targets.unsqueeze(1) > 0
    union = (predicted | wanted).sum((2, 3)).clamp_min(1)
    return (predicted & wanted).sum((2, 3)) / union


def segmenter_loss(logits: Tensor, predicted_iou: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scalar loss and the planes' IoU (N, 4).

    Plane 0 answers for itself; of planes 1 to 3 the best one is trained, which leaves room for the several meanings of
    one click. The IoU head is regressed on all planes.
    """
    losses = plane_losses(logits, targets)
    ious = plane_ious(logits.detach(), targets)
    multi = losses[:, 1:]
    mask_loss = losses[:, 0] + multi.min(1).values + OTHER_PLANES * multi.mean(1)
    iou_loss = (predicted_iou - ious).square().mean(1)
    return (mask_loss + iou_loss).mean(), ious
