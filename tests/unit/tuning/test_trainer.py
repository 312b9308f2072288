from dataclasses import replace

import numpy as np
import pytest
import torch

from fakes.tiny_tuning import SEGMENTER, WholeDecoder, disc, discs, examples_of, tiny_decoder, view_of
from vplab.errors import Cancelled, InvalidInput
from vplab.training.tuning import trainer
from vplab.training.tuning.checkpoints import FileCheckpoint
from vplab.training.tuning.trainer import forward_dtype, tune
from vplab.training.tuning.values import BASE, Candidate, TuningOptions, TuningProgress
from vplab.vision.adapters.adapt import adapt
from vplab.vision.adapters.spec import LoraSpec

SHORT = TuningOptions(num_steps=4, warmup_steps=1, batch_size=6, num_folds=2, num_checks=2, checkpoint_every=1)


class MemoryCheckpoint:
    def __init__(self) -> None:
        self.all: list[bytes] = []

    def load(self) -> bytes | None:
        return self.all[-1] if self.all else None

    def save(self, data: bytes) -> None:
        self.all.append(data)


def same(left, right) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_training_raises_the_iou_of_what_it_is_trained_on():
    options = TuningOptions(num_steps=100, learning_rate=3e-3, batch_size=12)
    result = tune(WholeDecoder(), examples_of(discs(2)), SEGMENTER, options)
    assert result.validation_kind == "training"
    assert result.metrics_after.iou > result.metrics_before.iou + 0.3
    assert result.metrics_after.iou > 0.6


def test_an_adapter_learns_and_leaves_its_base_alone():
    base = tiny_decoder()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    decoder = adapt(base, LoraSpec(rank=2), seed=3)
    losses: list[float] = []
    options = TuningOptions(num_steps=40, learning_rate=1e-2, batch_size=12)
    tune(decoder, examples_of(discs(2)), SEGMENTER, options, on_progress=lambda p: losses.append(p.loss))
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert same(before, base.state_dict())


def test_without_images_to_check_on_part_of_the_way_is_gone():
    examples = examples_of(discs(2))
    whole, part = (tune(WholeDecoder(), examples, SEGMENTER, replace(SHORT, unchecked_share=s)) for s in (1.0, 0.5))
    initial = WholeDecoder().adapter_state()
    assert part.chosen == (SHORT.num_steps, 0.5)
    for name, value in part.adapter_state.items():
        torch.testing.assert_close(value, (initial[name] + whole.adapter_state[name]) / 2)


def test_equal_seeds_give_bit_identical_adapters_and_others_do_not():
    examples = examples_of(discs(3))
    options = replace(SHORT, num_folds=0)  # which would all end at the base, after so few steps
    one, two = (tune(WholeDecoder(), examples, SEGMENTER, options).adapter_state for _ in range(2))
    other = tune(WholeDecoder(), examples, SEGMENTER, replace(options, seed=1)).adapter_state
    assert same(one, two)
    assert not same(one, other)


@pytest.mark.parametrize("num_images", [1, 3])
def test_whatever_step_it_is_interrupted_at_the_adapter_is_the_same(num_images):
    examples = examples_of(discs(num_images))
    undisturbed, kept = tune(WholeDecoder(), examples, SEGMENTER, SHORT), MemoryCheckpoint()
    assert same(
        tune(WholeDecoder(), examples, SEGMENTER, SHORT, checkpoint=kept).adapter_state, undisturbed.adapter_state
    )
    assert len(kept.all) >= SHORT.num_steps
    for data in kept.all:
        resumed_from = MemoryCheckpoint()
        resumed_from.save(data)
        steps: list[int] = []
        decoder = WholeDecoder()
        result = tune(
            decoder,
            examples,
            SEGMENTER,
            SHORT,
            checkpoint=resumed_from,
            on_progress=lambda p, steps=steps: steps.append(p.step),
        )
        assert same(result.adapter_state, undisturbed.adapter_state)
        assert same(decoder.adapter_state(), undisturbed.adapter_state)
        assert (result.metrics_before, result.metrics_after) == (undisturbed.metrics_before, undisturbed.metrics_after)
        assert result.curve == undisturbed.curve
        assert steps == sorted(set(steps))
        assert 1 not in steps  # what was done is not done again


def test_a_killed_run_goes_on_from_its_last_checkpoint():
    examples, kept = examples_of(discs(2)), MemoryCheckpoint()
    options = replace(SHORT, checkpoint_every=2)
    with pytest.raises(Cancelled):
        tune(
            WholeDecoder(),
            examples,
            SEGMENTER,
            options,
            checkpoint=kept,
            is_cancelled=iter([False, False, False, True]).__next__,
        )
    steps: list[int] = []
    result = tune(
        WholeDecoder(), examples, SEGMENTER, options, checkpoint=kept, on_progress=lambda p: steps.append(p.step)
    )
    assert steps == [3, 4]
    assert same(result.adapter_state, tune(WholeDecoder(), examples, SEGMENTER, options).adapter_state)


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"noise" * 100, lambda data: b""])
def test_a_damaged_checkpoint_means_training_anew(damage):
    examples, kept = examples_of(discs(1)), MemoryCheckpoint()
    expected = tune(WholeDecoder(), examples, SEGMENTER, SHORT, checkpoint=kept).adapter_state
    damaged = MemoryCheckpoint()
    damaged.save(damage(kept.all[1]))
    assert same(tune(WholeDecoder(), examples, SEGMENTER, SHORT, checkpoint=damaged).adapter_state, expected)


def test_a_checkpoint_of_another_job_is_passed_over():
    kept = MemoryCheckpoint()
    tune(WholeDecoder(), examples_of(discs(1)), SEGMENTER, SHORT, checkpoint=kept)
    others = examples_of([view_of({1: disc((40, 20), 7)})])
    result = tune(WholeDecoder(), others, SEGMENTER, SHORT, checkpoint=kept)
    assert same(result.adapter_state, tune(WholeDecoder(), others, SEGMENTER, SHORT).adapter_state)


def test_a_checkpoint_file_is_replaced_whole(tmp_path):
    store = FileCheckpoint(tmp_path / "tuning.pt")
    assert store.load() is None
    store.save(b"first")
    store.save(b"second")
    assert store.load() == b"second"
    assert [p.name for p in tmp_path.iterdir()] == ["tuning.pt"]


def test_cancelling_is_noticed_before_the_next_step():
    steps: list[int] = []
    with pytest.raises(Cancelled):
        tune(
            WholeDecoder(),
            examples_of(discs(1)),
            SEGMENTER,
            SHORT,
            on_progress=lambda p: steps.append(p.step),
            is_cancelled=lambda: len(steps) == 2,
        )
    assert steps == [1, 2]


def test_from_three_images_folds_find_the_number_of_steps():
    seen: list[TuningProgress] = []
    result = tune(WholeDecoder(), examples_of(discs(4)), SEGMENTER, SHORT, on_progress=seen.append)
    assert result.validation_kind == "held_out"
    assert [candidate for candidate, _ in result.curve] == [BASE, (2, 1), (4, 0.5), (4, 0.75), (4, 1)]
    assert [p.run for p in seen] == ["fold 1 of 2"] * SHORT.num_steps + ["fold 2 of 2"] * SHORT.num_steps
    assert [p.step for p in seen] == list(range(1, len(seen) + 1))
    assert {p.num_steps for p in seen} == {len(seen)}
    assert [bool(p.validation) for p in seen] == [False, True, False, True] * 2
    assert result.metrics_before.iou == pytest.approx(result.curve[0][1])
    assert result.metrics_after.iou == pytest.approx(dict(result.curve)[result.chosen])


def test_the_adapter_is_the_mean_of_the_folds(monkeypatch):
    monkeypatch.setattr(trainer, "choose", lambda curve: Candidate(4, 0.5))
    examples, ended = examples_of(discs(4)), list[dict[str, torch.Tensor]]()
    decoder = WholeDecoder()
    initial = {name: value.clone() for name, value in decoder.adapter_state().items()}

    def note(progress: TuningProgress) -> None:
        if progress.step % SHORT.num_steps == 0:
            ended.append({name: value.clone() for name, value in decoder.adapter_state().items()})

    result = tune(decoder, examples, SEGMENTER, SHORT, on_progress=note)
    first, second = ended
    assert not same(first, second)
    for name, value in result.adapter_state.items():
        mean = (first[name] + second[name]) / 2
        torch.testing.assert_close(value, (initial[name] + mean) / 2)
    assert same(decoder.adapter_state(), result.adapter_state)


def test_the_best_step_on_given_images_is_kept():
    result = tune(WholeDecoder(), examples_of(discs(3)), SEGMENTER, SHORT, validation=examples_of(discs(6)[4:]))
    assert result.validation_kind == "given"
    best = max(value for _, value in result.curve)
    assert dict(result.curve)[result.chosen] >= best - 0.005
    assert result.metrics_after.iou == pytest.approx(dict(result.curve)[result.chosen])


def test_a_rate_that_ruins_the_decoder_is_undone_by_early_stopping():
    decoder = WholeDecoder()
    good = tune(decoder, examples_of(discs(2)), SEGMENTER, TuningOptions(num_steps=60, learning_rate=3e-3))
    ruinous = replace(SHORT, learning_rate=1.0, clip_norm=100.0)
    result = tune(decoder, examples_of(discs(3)), SEGMENTER, ruinous, validation=examples_of(discs(6)[3:]))
    assert result.chosen == BASE
    assert same(result.adapter_state, good.adapter_state)
    assert same(decoder.adapter_state(), good.adapter_state)


def test_previews_have_the_size_of_their_images():
    views = [view_of({1: disc((20, 20), 9, (40, 60))}, 0)]
    seen: list[TuningProgress] = []
    tune(WholeDecoder(), examples_of(views), SEGMENTER, SHORT, on_progress=seen.append)
    assert [p.mask.shape for p in seen[-1].previews] == [(40, 60)]


def test_two_classes_and_an_image_of_neither_are_trained_together():
    views = [
        view_of({1: disc((18, 18), 9), 2: disc((46, 46), 9)}, 0),
        view_of({1: disc((40, 20), 9), 2: np.zeros((64, 64), bool)}, 1),
        view_of({3: np.zeros((64, 64), bool)}, 2),
    ]
    result = tune(WholeDecoder(), examples_of(views, (1, 2, 3)), SEGMENTER, SHORT)
    assert all(torch.isfinite(value).all() for value in result.adapter_state.values())


def test_without_patch_features_clicks_and_boxes_are_trained_on():
    views = [view_of({1: disc((20, 20), 9)}, i, has_patches=False) for i in range(3)]
    result = tune(WholeDecoder(), examples_of(views), SEGMENTER, SHORT)
    assert result.metrics_after.proposal_iou is None
    assert result.metrics_after.rejected is None


def test_images_without_any_object_cannot_be_trained_on():
    examples = examples_of([view_of({1: disc((20, 20), 9)}, 0), view_of({1: np.zeros((64, 64), bool)}, 1)])
    with pytest.raises(InvalidInput) as caught:
        tune(WholeDecoder(), examples[1:], SEGMENTER, SHORT)
    assert caught.value.violations[0].field == "images"


def test_the_number_of_threads_is_put_back():
    before, inside = torch.get_num_threads(), list[int]()
    torch.set_num_threads(before + 1)
    try:
        tune(
            WholeDecoder(),
            examples_of(discs(1)),
            SEGMENTER,
            SHORT,
            num_threads=before,
            on_progress=lambda _: inside.append(torch.get_num_threads()),
        )
        assert set(inside) == {before}
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_tiny_numbers_are_zero_while_it_trains_only():
    inside = list[float]()
    tune(
        WholeDecoder(),
        examples_of(discs(1)),
        SEGMENTER,
        SHORT,
        on_progress=lambda _: inside.append(float(torch.tensor(1e-39) * 0.5)),
    )
    assert set(inside) == {0.0}
    assert float(torch.tensor(1e-39) * 0.5) > 0


def test_half_precision_embeddings_train_in_single_precision():
    result = tune(WholeDecoder(), examples_of(discs(1)), SEGMENTER, SHORT)
    assert {value.dtype for value in result.adapter_state.values()} == {torch.float32}


class NotingDecoder(WholeDecoder):
    """Notes what its answers are computed in."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits, iou = super().forward(*inputs)
        self.dtypes.add(logits.dtype)
        return logits, iou


def test_decoders_compute_in_half_precision_on_gpus_alone():
    assert [forward_dtype(device) for device in ("cpu", "cuda", "cuda:1")] == [
        torch.float32,
        torch.bfloat16,
        torch.bfloat16,
    ]
    decoder = NotingDecoder()
    tune(decoder, examples_of(discs(1)), SEGMENTER, SHORT)
    assert decoder.dtypes == {torch.float32}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA device")
def test_on_a_gpu_the_decoder_computes_in_bfloat16_and_the_adapter_stays_float32():
    decoder, losses = NotingDecoder(), list[float]()
    options = TuningOptions(num_steps=40, learning_rate=3e-3, batch_size=12)
    examples = examples_of(discs(2))
    result = tune(decoder, examples, SEGMENTER, options, device="cuda:0", on_progress=lambda p: losses.append(p.loss))
    assert decoder.dtypes == {torch.bfloat16}
    assert {(value.dtype, value.device.type) for value in result.adapter_state.values()} == {(torch.float32, "cpu")}
    assert {parameter.dtype for parameter in decoder.adapter_parameters()} == {torch.float32}
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


class FusingDecoder(WholeDecoder):
    """Takes early features, and notes what it was given and in which mode."""

    needs_early_features = True

    def __init__(self) -> None:
        super().__init__()
        self.early_shapes: set[tuple[int, ...]] = set()
        self.modes: set[bool] = set()

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        *usual, early = inputs
        self.early_shapes.add(tuple(early.shape[1:]))
        self.modes.add(self.training)
        return super().forward(*usual)


def test_early_features_reach_the_methods_that_fuse_them_and_no_others():
    early = np.zeros((5, 8, 8), np.float16)
    examples = [replace(e, early_features=early) for e in examples_of(discs(2))]
    fusing = FusingDecoder()
    tune(fusing, examples, SEGMENTER, SHORT)
    assert fusing.early_shapes == {(5, 8, 8)}
    plain = tune(WholeDecoder(), examples, SEGMENTER, SHORT).adapter_state
    assert same(fusing.adapter_state(), plain)


def test_methods_know_whether_they_are_trained_or_measured():
    examples = [replace(e, early_features=np.zeros((5, 8, 8), np.float16)) for e in examples_of(discs(1))]
    decoder = FusingDecoder()
    tune(decoder, examples, SEGMENTER, SHORT)
    assert decoder.modes == {True, False}
    assert not decoder.training
