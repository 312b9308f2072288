import pytest

from vplab.errors import InvalidInput
from vplab.training.tuning.schedule import (
    candidates_at,
    check_steps,
    choose,
    gain,
    learning_rate,
    mean_metrics,
    plan_runs,
)
from vplab.training.tuning.values import BASE, Candidate, TuningMetrics, TuningOptions

OPTIONS = TuningOptions(num_steps=40, num_checks=4, num_folds=2, warmup_steps=4)


def test_fewer_than_three_images_are_all_trained_on():
    assert [run.left_out for run in plan_runs([0, 1, 1], False, OPTIONS)] == [frozenset()]


def test_folds_leave_different_images_out():
    runs = plan_runs([0, 0, 1, 2, 3, 4, 4], False, OPTIONS)
    assert [len(run.left_out) for run in runs] == [2, 2]
    assert not runs[0].left_out & runs[1].left_out
    assert all(run.is_fold for run in runs)


def test_images_given_for_validation_make_folds_needless():
    assert [run.is_fold for run in plan_runs(range(9), True, OPTIONS)] == [False]


def test_checks_end_with_the_run():
    assert check_steps(OPTIONS) == [10, 20, 30, 40]
    assert check_steps(TuningOptions(num_steps=2, num_checks=4, warmup_steps=0)) == [1, 2]


def test_three_images_are_left_out_one_by_one():
    assert [len(run.left_out) for run in plan_runs(range(3), False, OPTIONS)] == [1, 1]


def measured(box: float, point: float = 0.5, proposal: float | None = 0.5) -> TuningMetrics:
    return TuningMetrics(box, point, proposal, None)


def test_what_gains_most_is_chosen():
    curve = [(BASE, 0.3), *zip(candidates_at(40, OPTIONS), (0.6, 0.61, 0.4), strict=True)]
    assert choose([(candidate, measured(box)) for candidate, box in curve]) == Candidate(40, 0.75)


def test_shares_are_tried_after_all_steps():
    assert candidates_at(20, OPTIONS) == [Candidate(20, 1.0)]
    assert [share for _, share in candidates_at(40, OPTIONS)] == [0.5, 0.75, 1.0]


def test_without_a_gain_worth_it_the_base_stays():
    for boxes in ((0.7, 0.6, 0.5), (0.7, 0.705, 0.699)):
        assert choose([(Candidate(10 * i, 1.0), measured(box)) for i, box in enumerate(boxes)]) == BASE


def test_every_kind_of_prompt_has_the_same_say():
    start, traded = measured(0.8, proposal=0.5), measured(0.7, proposal=0.58)
    assert choose([(BASE, start), (Candidate(10, 1.0), traded)]) == BASE
    assert choose([(BASE, start), (Candidate(10, 1.0), measured(0.7, proposal=0.65))]).step == 10


def test_what_was_not_measured_has_no_say_in_the_gain():
    assert gain(measured(0.6, 0.6, None), measured(0.5, 0.4, None)) == pytest.approx(0.15)


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


def test_one_fold_alone_is_refused_since_it_would_leave_images_out_of_all_training():
    with pytest.raises(InvalidInput) as caught:
        TuningOptions(num_folds=1)
    assert caught.value.violations[0].field == "options.num_folds"


def test_no_image_is_left_out_by_all_folds():
    for count in (3, 4, 5, 12, 40):
        runs = plan_runs(range(count), False, TuningOptions.for_method("e_peft", count))
        assert not frozenset.intersection(*(run.left_out for run in runs))


@pytest.mark.parametrize("wrong", [{"shares": ()}, {"shares": (0.5, 0.0)}, {"unchecked_share": 1.5}])
def test_shares_lie_between_the_base_and_what_was_trained(wrong):
    with pytest.raises(InvalidInput) as caught:
        TuningOptions(**wrong)
    assert caught.value.violations[0].field == "options.shares"


def test_each_part_of_an_ensemble_has_a_rate_of_its_own():
    options = TuningOptions.for_method("e_peft", 5)
    lora, ia3 = (options.rate_factor(f"{part}.layers.0.self_attn.q_proj.scale") for part in ("lora", "ia3"))
    assert ia3 > lora == 1
    assert options.rate_factor("prompt_tokens.layers.0.self_attn.gate") == 5


def test_a_part_rate_of_zero_is_refused():
    with pytest.raises(InvalidInput) as caught:
        TuningOptions(part_rates=(("ia3.", 0.0),))
    assert caught.value.violations[0].field == "options.part_rates"


def test_more_images_get_more_steps_and_fewer_views():
    few, many = (TuningOptions.for_method("e_peft", n) for n in (5, 40))
    assert many.num_steps >= few.num_steps
    assert many.num_views < few.num_views
