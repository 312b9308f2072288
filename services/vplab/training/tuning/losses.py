"""What an adapter is trained to: soft IoU, a little BCE on uncertain points, and the predicted IoU of each plane.

Sources: Kirillov et al., "PointRend" (arXiv 1912.08193) for the points, HQ-SAM (arXiv 2306.01567, ``train/utils/
loss_mask.py``) for 112 x 112 of them over a 256 x 256 grid.

Deviation: HQ-SAM has BCE + dice at the points in equal parts. With that the masks of cracks shrank to half their size,
since a probability below one half is right where a line may lie here or there, and the IoU fell on the very images that
were trained on.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

POINT_SHARE = 112 * 112 / 1024**2
"""Points over pixels of the input: 12,544 for SAM's 1024 x 1024, 3,136 for 512 x 512."""
OVERSAMPLING = 3
UNCERTAIN_SHARE = 0.75
"""The rest is uniform; none are drawn on the object itself."""
ENTROPY_WEIGHT = 0.2
"""Of the BCE beside the soft IoU."""
STEEPNESS = 4.0
"""What logits are multiplied by in the loss. The steeper the sigmoid, the nearer the soft IoU is to the IoU of the mask
that is cut at zero, and the less there is to gain by logits that only grow. At 1 they doubled and tripled in size
within thirty steps, and the colours and pixels whose say serving adds to them were no longer heard."""
OVERLAP_STRIDE = 2
"""Input pixels over cells of the grid on which the soft IoU is taken, along each side."""
OTHER_PLANES = 0.6
"""Share of the mean loss of the multimask planes beside the best one's. The foundation recipe has 0.05, which leaves
room for parts and wholes; a tuned decoder is told by its masks which of them is meant, and a click that takes another
plane than the one that learnt it gains nothing."""


def sample_points(logits: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Choose the points on which a prompt's loss is taken.

    logits: (N, M, h, w), without gradient. Returns (N, count, 2) float32 as (x, y) in 0..1. A point is as uncertain as
    its least certain plane.
    """
    num_uncertain = round(UNCERTAIN_SHARE * count)
    drawn = torch.rand(len(logits), OVERSAMPLING * count, 2, generator=rng).to(logits.device)
    doubt = -at_points(logits, drawn).abs().amin(1)  # (N, 3K)
    most = doubt.topk(num_uncertain, dim=1).indices.unsqueeze(-1).expand(-1, -1, 2)
    uniform = torch.rand(len(logits), count - num_uncertain, 2, generator=rng).to(logits.device)
    return torch.cat([drawn.gather(1, most), uniform], dim=1)


def at_points(planes: Tensor, points: Tensor) -> Tensor:
    """Read planes (N, M, h, w) at points (N, K, 2) in 0..1, bilinearly; (N, M, K)."""
    grid = (2 * points - 1).unsqueeze(2)
    return F.grid_sample(planes, grid, padding_mode="border", align_corners=False).squeeze(3)


def plane_losses(logits: Tensor, targets: Tensor, points: Tensor) -> Tensor:
    """Return the loss of each plane, (N, M); logits: (N, M, h, w), targets: (N, S, S).

    BCE at the points and soft IoU over the whole frame.
    """
    answered = at_points(logits, points)
    wanted = at_points(targets.unsqueeze(1), points).expand_as(answered)
    entropy = F.binary_cross_entropy_with_logits(answered, wanted, reduction="none").mean(2)
    return ENTROPY_WEIGHT * entropy + _overlap_losses(logits, targets)


def _overlap_losses(logits: Tensor, targets: Tensor) -> Tensor:
    size = (targets.shape[1] // OVERLAP_STRIDE, targets.shape[2] // OVERLAP_STRIDE)
    if logits.shape[-2:] != size:
        logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
    probability = logits.sigmoid()
    wanted = coverage(targets, size).unsqueeze(1)
    # As a product with the flat target: planes of the grid's size are made neither here nor on the way back.
    both = (probability.flatten(2) @ wanted.flatten(2).transpose(1, 2)).squeeze(2)
    either = probability.sum((2, 3)) + wanted.sum((2, 3)) - both
    return 1 - (both + 1) / (either + 1)


def plane_ious(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the IoU of each plane with its target on the logit grid, (N, M).

    logits: (N, M, h, w); targets: (N, h, w) of 0 and 1. Of an empty target the IoU is 0 whatever was answered, so that
    the score of a proposal on no object goes to 0.
    """
    predicted, wanted = logits > 0, targets.unsqueeze(1) > 0
    union = (predicted | wanted).sum((2, 3)).clamp_min(1)
    return (predicted & wanted).sum((2, 3)) / union


def low_res_targets(targets: Tensor, low_res_hw: tuple[int, int]) -> Tensor:
    """Bring targets (N, S, S) to the logit grid so that each keeps its area; an empty one stays empty."""
    covered = coverage(targets, low_res_hw).flatten(1)
    count = covered.shape[1]
    wanted = covered.sum(1).round().long().clamp(1, count)
    # numpy sorts far faster than torch on a CPU.
    ordered = torch.from_numpy(np.sort(covered.cpu().numpy(), axis=1)).to(covered.device)
    threshold = ordered.gather(1, (count - wanted).unsqueeze(1)).clamp_min(1e-3)
    return (covered >= threshold).float().reshape(-1, *low_res_hw)


def coverage(targets: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the mean of targets (N, S, S) over each cell of a coarser grid of ``size``, (N, h, w)."""
    strides = targets.shape[1] // size[0], targets.shape[2] // size[1]
    if (size[0] * strides[0], size[1] * strides[1]) != targets.shape[1:]:
        return F.adaptive_avg_pool2d(targets.unsqueeze(1), size).squeeze(1)
    # Every so many rows, then columns, added up, which takes far less time than torch's pooling on a CPU.
    rows = sum((targets[:, first :: strides[0]] for first in range(1, strides[0])), targets[:, :: strides[0]])
    cells = sum((rows[:, :, first :: strides[1]] for first in range(1, strides[1])), rows[:, :, :: strides[1]])
    return cells / (strides[0] * strides[1])


def tuning_loss(logits: Tensor, predicted_iou: Tensor, targets: Tensor, rng: torch.Generator) -> Tensor:
    """Return the mean loss of N prompts; logits: (N, M, h, w), predicted_iou: (N, M), targets: (N, S, S).

    Plane 0 answers for itself; of the others, which answer a click, the best one is trained most.
    A prompt with an empty target trains the IoU alone: its score falls, and serving drops it. Whether its mask should
    be trained to be empty as well was not measured apart.
    """
    logits = STEEPNESS * logits
    points = sample_points(logits.detach(), round(POINT_SHARE * targets.shape[1] * targets.shape[2]), rng)
    losses = plane_losses(logits, targets, points)
    masks = losses[:, 0]
    if losses.shape[1] > 1:
        masks = 0.5 * (masks + losses[:, 1:].amin(1) + OTHER_PLANES * losses[:, 1:].mean(1))
    masks = masks * (targets.flatten(1).amax(1) > 0)
    ious = plane_ious(logits.detach(), low_res_targets(targets, (logits.shape[-2], logits.shape[-1])))
    return (masks + (predicted_iou - ious).square().mean(1)).mean()
