"""The direction that several references teach."""

import numpy as np
import pytest

from vplab.vision.matching import discriminant
from vplab.vision.matching.discriminant import fit_discriminant

NUM, WIDTH = 600, 8
NOTHING_KNOWN = np.zeros(NUM, np.float32)


def rows(seed=0, shift=0.4):
    """Features whose first axis tells foreground, under nuisances twice as strong; the last axis is always there."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(NUM) % 6 == 0).astype(np.float32)
    features = 0.2 * rng.normal(size=(NUM, WIDTH))
    features[:, 0] = 0.1 * rng.normal(size=NUM) + shift * labels
    features[:, -1] = 1
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32), labels


def balanced_loss(odds, labels):
    losses = np.logaddexp(0, odds) - labels * odds
    return losses[labels > 0].mean() + losses[labels == 0].mean()


def test_the_direction_tells_rows_of_other_images_apart():
    direction = fit_discriminant(*rows(), NOTHING_KNOWN, seed=0)
    features, labels = rows(seed=1)
    found = features @ direction > 0
    assert direction.shape == (WIDTH,)
    assert direction.dtype == np.float32
    assert found[labels > 0].mean() > 0.9
    assert found[labels == 0].mean() < 0.1


def test_what_is_known_already_is_not_learned_again():
    features, labels = rows()
    known = features @ fit_discriminant(features, labels, NOTHING_KNOWN, seed=0)
    again = fit_discriminant(features, labels, known, seed=0)
    first = fit_discriminant(features, labels, NOTHING_KNOWN, seed=0)
    # Not nothing: the penalty, which held the first back, begins anew.
    assert np.abs(features @ again).mean() < 0.5 * np.abs(features @ first).mean()


@pytest.mark.parametrize("odds", [20.0, -20.0])
def test_offsets_that_are_sure_and_wrong_are_mended(odds):
    features, labels = rows()
    wrong = np.full(NUM, odds, np.float32) * (1 - 2 * labels)
    direction = fit_discriminant(features, labels, wrong, seed=0)
    assert balanced_loss(wrong + features @ direction, labels) <= balanced_loss(wrong, labels)
    assert np.isfinite(direction).all()


def test_partly_covered_patches_lie_between():
    features, labels = rows(shift=0.6)
    half = labels * 0.5
    sure, unsure = (fit_discriminant(features, c, NOTHING_KNOWN, seed=0) for c in (labels, half))
    assert (features @ unsure)[labels > 0].mean() < (features @ sure)[labels > 0].mean()


def test_foreground_and_background_that_nothing_confuses_give_a_finite_direction():
    features = np.eye(2, WIDTH, dtype=np.float32)[np.arange(NUM) % 2]
    direction = fit_discriminant(features, (np.arange(NUM) % 2).astype(np.float32), NOTHING_KNOWN, seed=0)
    assert np.isfinite(direction).all()
    assert direction[0] < 0 < direction[1]


def test_rows_beyond_the_most_are_drawn_by_the_seed(monkeypatch):
    monkeypatch.setattr(discriminant, "MAX_ROWS", 50)
    features, labels = rows()
    one, two, other = (fit_discriminant(features, labels, NOTHING_KNOWN, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)
