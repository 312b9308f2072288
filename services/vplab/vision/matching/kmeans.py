"""Spherical k-means: centres of directions, by cosine."""

import numpy as np
from numpy.typing import NDArray

_MAX_ROUNDS = 25


def cosine_kmeans(
    rows: NDArray[np.float32], weights: NDArray[np.float32], num_centres: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Return at most ``num_centres`` unit centres (K, D) of ``rows`` (N, D), N at least 1; equal seeds, equal centres.

    rows: L2-normalised. weights: (N,) positive. Starts as k-means++ (Arthur and Vassilvitskii 2007) does.
    """
    if len(rows) <= num_centres:
        return rows.copy()
    centres = _spread_start(rows, weights, num_centres, rng)
    nearest = np.full(len(rows), -1)
    for _ in range(_MAX_ROUNDS):
        previous, nearest = nearest, (rows @ centres.T).argmax(axis=1)
        if (nearest == previous).all():
            break
        members = np.where(nearest == np.arange(len(centres))[:, None], weights, np.float32(0))  # (K, N)
        sums = members @ rows
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(lengths > 1e-12, sums / np.maximum(lengths, 1e-12), centres)
    return centres


def _spread_start(
    rows: NDArray[np.float32], weights: NDArray[np.float32], num_centres: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    chosen = [int(rng.choice(len(rows), p=weights / weights.sum(dtype=np.float64)))]
    distance = np.maximum(1 - rows @ rows[chosen[0]], 0).astype(np.float64)
    while len(chosen) < num_centres:
        odds = distance * weights
        total = odds.sum()
        if total <= 1e-12:
            break
        chosen.append(int(rng.choice(len(rows), p=odds / total)))
        distance = np.minimum(distance, np.maximum(1 - rows @ rows[chosen[-1]], 0))
    return rows[chosen].copy()
