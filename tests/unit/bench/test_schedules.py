import numpy as np
import pytest

from vplab.bench.schedules import poisson_arrivals


def test_arrivals_are_in_order_and_within_the_time() -> None:
    arrivals = poisson_arrivals(100, 20, seed=1)
    assert (np.diff(arrivals) >= 0).all()
    assert arrivals[0] >= 0
    assert arrivals[-1] < 20


def test_arrivals_have_the_rate_and_the_spread_of_a_poisson_process() -> None:
    counts = [len(poisson_arrivals(50, 10, seed)) for seed in range(400)]
    assert np.mean(counts) == pytest.approx(500, rel=0.01)
    assert np.var(counts) == pytest.approx(500, rel=0.2)
    gaps = np.diff(poisson_arrivals(50, 400, seed=3))
    # Gaps are exponential: their mean is their standard deviation, unlike those of a metronome.
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)


def test_a_seed_gives_its_arrivals_again() -> None:
    np.testing.assert_array_equal(poisson_arrivals(10, 5, 7), poisson_arrivals(10, 5, 7))
    assert len(poisson_arrivals(10, 0, 7)) == 0


def test_no_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="rate"):
        poisson_arrivals(0, 5, 1)
