"""The recipe: what is drawn, what is held out, what is learned, and that a stopped run goes on as if it had not."""

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="making models needs the training extra")
pytest.importorskip("segment_anything", reason="making models needs the training extra")

from vplab.training.foundation.crops import ViewSampler  # noqa: E402
from vplab.training.foundation.losses import low_res_targets, plane_ious, segmenter_loss  # noqa: E402
from vplab.training.foundation.prompting import first_round, next_round, tight_boxes  # noqa: E402
from vplab.training.foundation.sources import (  # noqa: E402
    NATURAL_SOURCES,
    generate_procedural,
    held_out_ids,
    open_cache,
    write_cache,
)
from vplab.training.foundation.training import Stage, Trainer, TrainingConfig  # noqa: E402
from vplab.vision.nano.architecture import NanoSegmenter  # noqa: E402

CONFIG = TrainingConfig(stages=(Stage(64, 20, 1, 4, 1e-3, 1e-3),), mix={"procedural": 1.0}, warmup_steps=1)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache") / "procedural"
    assert write_cache(folder, generate_procedural(2, seed=0)) == 2
    return open_cache(folder)


def trainer(folder, source):
    torch.manual_seed(0)
    return Trainer(folder, CONFIG, [source], NanoSegmenter())


def test_a_resumed_run_takes_the_same_next_steps(tmp_path, source):
    whole = trainer(tmp_path / "whole", source)
    wanted = [m["loss"] for m in whole.run(until=3)]
    first = trainer(tmp_path, source)
    losses = [m["loss"] for m in first.run(until=2)]
    first.save()
    second = trainer(tmp_path, source)
    assert second.resume()
    losses += [m["loss"] for m in second.run(until=3)]
    assert losses == wanted
    for name, value in whole.average.items():
        assert torch.equal(value, second.average[name]), name


def test_a_run_without_a_checkpoint_does_not_resume(tmp_path, source):
    assert not trainer(tmp_path, source).resume()


def test_the_learning_rate_follows_the_stages():
    config = TrainingConfig(
        stages=(Stage(64, 10, 1, 4, 1.0, 1.0), Stage(128, 10, 1, 4, 1.0, 0.0)), mix={}, warmup_steps=5
    )
    assert config.stage_at(0)[1] == pytest.approx(0.2)
    assert config.stage_at(9) == (config.stages[0], 1.0)
    assert config.stage_at(15) == (config.stages[1], 0.5)
    assert TrainingConfig.from_json(config.to_json()) == config
    with pytest.raises(IndexError):
        config.stage_at(20)


def test_views_have_the_masks_of_the_segments_they_show(source):
    sampler = ViewSampler([source], {"procedural": 1.0}, 96, 3)
    first = [sampler.draw(np.random.default_rng(5)) for _ in range(2)]
    np.testing.assert_array_equal(first[0].image, first[1].image)
    for view in (sampler.draw(np.random.default_rng(i)) for i in range(8)):
        assert view.image.shape == (96, 96, 3)
        assert view.masks.shape == (3, 96, 96)
        assert view.masks.any((1, 2)).all()


def test_held_out_lists_name_known_ids_and_the_training_part_has_none_of_them(data_dir):
    import csv

    from vplab.training.foundation.sources import read_natural

    for name in NATURAL_SOURCES:
        held_out = held_out_ids(name)
        with (data_dir / name / "filelist.csv").open() as file:
            known = {row["id"] for row in csv.DictReader(file)}
        assert held_out < known
        assert 0.18 < len(held_out) / len(known) < 0.26
        seen = {image_id for image_id, _, _ in itertools.islice(read_natural(data_dir, name, held_out=False), 30)}
        assert seen
        assert not seen & held_out


@pytest.fixture
def data_dir():
    import os
    from pathlib import Path

    default = Path(__file__).parents[3] / ".." / "shared" / "data"
    folder = Path(os.environ.get("VPLAB_DATA", default))
    if not all((folder / name / "filelist.csv").is_file() for name in NATURAL_SOURCES):
        pytest.skip("VPLAB_DATA does not hold the natural image sets")
    return folder


def test_low_resolution_targets_keep_the_area_of_thin_and_of_wide_masks():
    masks = torch.zeros(2, 64, 64)
    masks[0, :, 30] = 1  # one pixel wide: a quarter of every cell it crosses
    masks[1, 8:40, 8:40] = 1
    targets = low_res_targets(masks, (16, 16))
    assert targets[0].sum() >= 4  # 64 pixels are four cells
    assert targets[0, :, 7].all()
    assert torch.equal(targets[1].nonzero().amin(0), torch.tensor([2, 2]))
    assert targets[1].sum() == 64


def test_the_loss_falls_with_the_right_mask_and_trains_only_the_best_of_three_much():
    target = torch.zeros(1, 8, 8)
    target[:, 2:6, 2:6] = 1
    right = (target * 2 - 1).unsqueeze(1) * 8
    good = torch.cat([right, right, -right, -right], dim=1).requires_grad_()
    loss, ious = segmenter_loss(good, torch.tensor([[1.0, 1.0, 0.0, 0.0]]), target)
    worse, _ = segmenter_loss(-good.detach(), torch.tensor([[1.0, 1.0, 0.0, 0.0]]), target)
    assert loss < worse
    assert ious.tolist() == [[1.0, 1.0, 0.0, 0.0]]
    assert plane_ious(right, target).tolist() == [[1.0]]
    loss.backward()
    strength = good.grad.abs().sum((0, 2, 3))
    assert (strength > 0).all()


def test_correcting_clicks_fall_on_errors_with_the_label_that_mends_them():
    masks = torch.zeros(4, 64, 64, dtype=torch.bool)
    masks[:, 16:48, 16:48] = True
    targets = low_res_targets(masks.float(), (16, 16))
    rng = torch.Generator().manual_seed(0)
    boxes, clicks = first_round(masks, targets, torch.zeros(4, dtype=torch.long), rng)
    assert boxes.labels.tolist() == [[2.0, 3.0]] * 2
    assert (clicks.labels[:, -1] == -1).all()
    everything = torch.full((2, 4, 16, 16), 5.0)
    mended = next_round(clicks, everything, torch.ones(2, 4), 64, rng)
    assert (mended.labels[:, 0] == 0).all()
    point = mended.coords[:, 0]
    assert not ((point > 15) & (point < 48)).all(1).any()
    missing = next_round(clicks, -everything, torch.ones(2, 4), 64, rng)
    assert (missing.labels[:, 0] == 1).all()
    assert ((missing.coords[:, 0] > 15) & (missing.coords[:, 0] < 48)).all()


def test_tight_boxes_hold_the_first_and_last_pixel():
    masks = torch.zeros(1, 20, 20, dtype=torch.bool)
    masks[0, 3:7, 5:15] = True
    assert tight_boxes(masks).tolist() == [[[5.0, 3.0], [14.0, 6.0]]]
