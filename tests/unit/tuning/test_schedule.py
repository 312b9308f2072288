import pytest

from vplab.errors import InvalidInput
from vplab.training.tuning.schedule import check_steps, choose_step, learning_rate, mean_metrics, plan_runs
from vplab.training.tuning.values import TuningMetrics, TuningOptions

OPTIONS = TuningOptions(num_steps=40, num_checks=4, num_folds=2, warmup_steps=4)


def test_fewer_than_three_images_are_all_trained_on():
    assert [run.left_out for run in plan_runs([0, 1, 1], False, OPTIONS)] == [frozenset()]


def test_folds_leave_different_images_out_and_the_last_run_none():
    runs = plan_runs([0, 0, 1, 2, 3, 4, 4], False, OPTIONS)
    assert [len(run.left_out) for run in runs] == [1, 1, 0]
    assert not runs[0].left_out & runs[1].left_out
    assert [run.is_final for run in runs] == [False, False, True]


def test_images_given_for_validation_make_folds_needless():
    assert len(plan_runs(range(9), True, OPTIONS)) == 1


def test_checks_end_with_the_run():
    assert check_steps(OPTIONS) == [10, 20, 30, 40]
    assert check_steps(TuningOptions(num_steps=2, num_checks=4, warmup_steps=0)) == [1, 2]


def test_of_nearly_equal_steps_the_later_one_is_chosen():
    assert choose_step([(0, 0.3), (10, 0.6), (20, 0.599), (30, 0.4)]) == 20
    assert choose_step([(0, 0.7), (10, 0.6), (20, 0.5)]) == 0


def test_the_rate_warms_up_and_falls():
    rates = [learning_rate(step, OPTIONS) for step in range(40)]
    assert rates[0] < rates[4] <= OPTIONS.learning_rate
    assert rates[4] > rates[20] > rates[39] > 0


def test_the_mean_over_folds_passes_over_what_a_fold_lacks():
    folds = [TuningMetrics(0.2, 0.4, None, None), TuningMetrics(0.4, 0.8, 0.5, None)]
    mean = mean_metrics(folds)
    assert (mean.box_iou, mean.point_iou, mean.proposal_iou) == pytest.approx((0.3, 0.6, 0.5))
    assert mean.rejected is None


@pytest.mark.parametrize("name", ["num_steps", "batch_size", "learning_rate", "num_views", "checkpoint_every"])
def test_an_option_of_zero_is_refused_by_name(name):
    with pytest.raises(InvalidInput) as caught:
        TuningOptions(**{name: 0})
    assert caught.value.violations[0].field == f"options.{name}"


def test_more_images_get_more_steps_and_fewer_views():
    few, many = (TuningOptions.for_method("e_peft", n) for n in (5, 40))
    assert many.num_steps >= few.num_steps
    assert many.num_views < few.num_views
