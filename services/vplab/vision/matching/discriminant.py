"""What several references say together about foreground and background: a linear correction of the nearest centres.

Source: logistic regression with an offset (McCullagh and Nelder, Generalized Linear Models, 1989, section 4.3), solved
by Newton's method. The offset is what the centres say, so the fit learns only what they get wrong.

Deviation: SoftMatcher, Matcher and GF-SAM add references to each other; here two or more also teach a direction, fitted
to the patches of all of them at once.
"""

import numpy as np
from numpy.typing import NDArray

MAX_ROWS = 4096
"""Rows fitted of foreground and of background each, drawn at random beyond: 0.14 G multiplications a step for 128
channels."""
_RIDGE = 3e-4
"""Penalty beside the mean loss of a row, chosen on generated defects and held-out natural images."""
_MAX_STEPS = 12
_MAX_HALVINGS = 6
_TOLERANCE = 1e-5
_LEAST_CURVATURE = 1e-3
"""Of the loss of a row: where all rows are told apart, the Hessian is nothing but the ridge."""


def fit_discriminant(
    features: NDArray[np.float32], coverage: NDArray[np.float32], offsets: NDArray[np.float32], seed: int
) -> NDArray[np.float32]:
    """Return the direction (D,) float32 whose product with a patch, added to its offset, is its log-odds.

    features: (N, D) float32. coverage: (N,) float32 in 0..1, the share that is foreground; some rows have 0 and some
    more. offsets: (N,) float32 log-odds that are known already, of references that did not have the patch. Rows weigh
    so that foreground and background stand between their true shares and halves. Deterministic for a seed.
    """
    rows, mass = _draw(coverage, np.random.default_rng(seed))
    design = features[rows].astype(np.float64)
    labels, offset = coverage[rows].astype(np.float64), offsets[rows].astype(np.float64)
    weight = _weigh(labels, mass)
    solution = _newton(np.concatenate([design, np.ones((len(rows), 1))], axis=1), labels, weight, offset)
    # Matchers have no constant to add: the direction whose product with these references is nearest to one stands in.
    gram = (design * weight[:, None]).T @ design + 1e-6 * np.eye(design.shape[1])
    constant = np.linalg.solve(gram, weight @ design)
    return np.asarray(solution[:-1] + solution[-1] * constant, np.float32)


def _draw(coverage: NDArray[np.float32], rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return rows of foreground and background, and how many rows each stands for."""
    rows, mass = [], []
    for indices in (np.flatnonzero(coverage > 0), np.flatnonzero(coverage <= 0)):
        drawn = indices if len(indices) <= MAX_ROWS else np.sort(rng.choice(indices, MAX_ROWS, replace=False))
        rows.append(drawn)
        mass.append(np.full(len(drawn), len(indices) / len(drawn)))
    return np.concatenate(rows), np.concatenate(mass)


def _weigh(labels: NDArray[np.float64], mass: NDArray[np.float64]) -> NDArray[np.float64]:
    share = float(mass @ labels / mass.sum())
    weight = mass * (labels / np.sqrt(share) + (1 - labels) / np.sqrt(max(1 - share, 1e-6)))
    return np.asarray(weight / weight.sum())


def _newton(
    design: NDArray[np.float64], labels: NDArray[np.float64], weight: NDArray[np.float64], offset: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the minimum of the penalised loss; the last column, of ones, is not penalised.

    Steps are halved until the loss falls: a full one overshoots where the offset is sure and wrong.
    """
    ridge = np.full(design.shape[1], _RIDGE)
    ridge[-1] = 0

    def loss(solution: NDArray[np.float64]) -> float:
        odds = design @ solution + offset
        return float(weight @ (np.logaddexp(0, odds) - labels * odds) + 0.5 * ridge @ solution**2)

    solution = np.zeros(design.shape[1])
    best = loss(solution)
    for _ in range(_MAX_STEPS):
        probability = 1 / (1 + np.exp(-np.clip(design @ solution + offset, -50, 50)))
        gradient = design.T @ (weight * (probability - labels)) + ridge * solution
        curvature = weight * np.maximum(probability * (1 - probability), _LEAST_CURVATURE)
        hessian = (design * curvature[:, None]).T @ design + np.diag(ridge)
        step = np.linalg.solve(hessian, gradient)
        shares = [0.5**halving for halving in range(_MAX_HALVINGS)]
        found = next(((share, value) for share in shares if (value := loss(solution - share * step)) < best), None)
        if found is None:
            break
        solution = solution - found[0] * step
        if best - found[1] < _TOLERANCE * best:
            break
        best = found[1]
    return solution
