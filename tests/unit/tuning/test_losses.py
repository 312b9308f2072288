import pytest
import torch

from vplab.training.tuning.losses import (
    at_points,
    coverage,
    low_res_targets,
    plane_ious,
    plane_losses,
    sample_points,
    tuning_loss,
)


def square(size: int = 64) -> torch.Tensor:
    target = torch.zeros(1, size, size)
    target[:, size // 4 : size // 2, size // 4 : size // 2] = 1
    return target


def logits_like(target: torch.Tensor, strength: float) -> torch.Tensor:
    low = torch.nn.functional.avg_pool2d(target.unsqueeze(1), 2)
    return (2 * low - 1).expand(-1, 4, -1, -1) * strength


def loss_of(logits: torch.Tensor, iou: torch.Tensor, target: torch.Tensor) -> float:
    return float(tuning_loss(logits, iou, target, torch.Generator().manual_seed(0)))


def test_a_better_mask_has_less_loss():
    target, iou = square(), torch.full((1, 4), 0.5)
    losses = [loss_of(logits_like(target, s), iou, target) for s in (-6.0, 0.1, 6.0)]
    assert losses[0] > losses[1] > losses[2]


def test_a_mask_that_is_right_gains_nothing_by_larger_logits():
    target, iou = square(), torch.ones(1, 4)
    right, larger = (loss_of(logits_like(target, strength), iou, target) for strength in (2.0, 8.0))
    assert right <= larger


def test_a_better_iou_prediction_has_less_loss():
    target = square()
    logits = logits_like(target, 6.0)  # all planes have an IoU of 1
    losses = [loss_of(logits, torch.full((1, 4), v), target) for v in (0.0, 0.6, 1.0)]
    assert losses[0] > losses[1] > losses[2]


def test_an_empty_target_wants_no_confidence_and_leaves_the_mask_alone():
    target = torch.zeros(1, 64, 64)
    full, empty = torch.full((1, 4, 32, 32), 4.0), torch.full((1, 4, 32, 32), -4.0)
    no, yes = torch.zeros(1, 4), torch.ones(1, 4)
    assert loss_of(full, no, target) < loss_of(full, yes, target)
    assert loss_of(full, no, target) == loss_of(empty, no, target)
    assert plane_ious(full, torch.zeros(1, 32, 32)).tolist() == [[0.0] * 4]


def test_an_empty_target_has_no_gradient_for_masks():
    logits = torch.zeros(2, 4, 32, 32, requires_grad=True)
    targets = torch.cat([torch.zeros(1, 64, 64), square()])
    tuning_loss(logits, torch.zeros(2, 4), targets, torch.Generator().manual_seed(0)).backward()
    assert logits.grad is not None
    assert not logits.grad[0].any()
    assert logits.grad[1].any()


def test_losses_have_gradients_for_masks_and_scores():
    target = square()
    logits, iou = logits_like(target, 0.3).clone().requires_grad_(), torch.full((1, 4), 0.2, requires_grad=True)
    tuning_loss(logits, iou, target, torch.Generator().manual_seed(0)).backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum((0, 2, 3)).min() > 0  # no plane is left out
    assert iou.grad is not None
    assert (iou.grad < 0).all()  # the true IoU is 1, above what is predicted


def test_most_points_lie_where_the_decoder_is_unsure():
    logits = torch.full((1, 1, 32, 32), 9.0)
    logits[..., 12:20] = 0.1  # a quarter of the columns
    points = sample_points(logits, 200, torch.Generator().manual_seed(0))
    unsure = (at_points(logits, points).abs() < 5).float().mean()
    assert unsure > 0.6  # at random it were a quarter


def test_planes_are_read_between_their_cells():
    plane = torch.arange(16.0).reshape(1, 1, 4, 4)
    points = torch.tensor([[[0.125, 0.125], [0.25, 0.125], [0.125, 0.25], [1.0, 1.0]]])
    assert at_points(plane, points).tolist() == [[[0.0, 0.5, 2.0, 15.0]]]


def test_a_perfect_plane_has_hardly_any_loss():
    target = square()
    points = sample_points(logits_like(target, 20.0), 200, torch.Generator().manual_seed(0))
    losses = plane_losses(logits_like(target, 20.0), target, points)
    assert losses.shape == (1, 4)
    assert losses.max() < 0.2


def test_targets_keep_their_area_on_the_logit_grid():
    thin = torch.zeros(2, 64, 64)
    thin[0, :, 30] = 1  # half a cell wide
    low = low_res_targets(thin, (32, 32))
    assert low[0].sum() == pytest.approx(16, abs=16)
    assert low[0].any()
    assert not low[1].any()


@pytest.mark.parametrize("size", [(16, 16), (32, 8), (20, 20), (64, 64)])
def test_coverage_is_the_mean_over_each_cell(size):
    targets = (torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)) > 0.6).float()
    wanted = torch.nn.functional.adaptive_avg_pool2d(targets.unsqueeze(1), size).squeeze(1)
    torch.testing.assert_close(coverage(targets, size), wanted)
