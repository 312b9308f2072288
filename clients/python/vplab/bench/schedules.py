"""When the calls of an open loop are to start."""

import numpy as np
from numpy.typing import NDArray


def poisson_arrivals(rate_per_s: float, duration_s: float, seed: int) -> NDArray[np.float64]:
    """Return the arrival times, in seconds from 0 and below ``duration_s``, of a Poisson process.

    They are fixed before the first call, so a server that stalls is charged for every call that was to start meanwhile;
    a generator that waits for answers would leave those out (coordinated omission).
    """
    if rate_per_s <= 0 or duration_s < 0:
        raise ValueError("a rate is above 0 and a duration not below")
    rng = np.random.default_rng(seed)
    # Given their number, the arrivals of a Poisson process are uniform over the time.
    return np.sort(rng.uniform(0.0, duration_s, rng.poisson(rate_per_s * duration_s)))
