"""What the pixels of the references say that their patches are too coarse for: thin lines, edges, small objects.

A patch is 8 pixels of the encoder's input wide, and what it shows is blurred by its surroundings. A small network says
for every pixel of the colours how likely it is foreground, from colours, edges and texture at five scales and from the
similarity map, whose say it learns where it is weak: on each reference the map is that of the other references.

Source: pixel classification as in ilastik (Berg et al., Nature Methods 2019) and its features (colour, gradient
magnitude, eigenvalues of the Hessian, local deviation), here taken from an image pyramid.
Deviation: a multilayer perceptron in place of a random forest, because the map of deep features is one of its inputs
and lines and other programs have to compute it too; lighter, darker and flatter pictures are drawn while it learns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Self, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

NUM_LEVELS = 5
NUM_FEATURES = 7 * NUM_LEVELS
HIDDEN = 24
"""48 and a longer training were surer and less often right, 16 worse too."""
MAX_LOG_ODDS = 8.0
"""Of the similarity map, and of the answer."""
_MAP_SCALE = 3.0
_STEPS, _BATCH = 250, 1024
_RATE, _DECAY = 1e-2, 1e-3
_MAX_FOREGROUND, _MAX_BACKGROUND = 10_000, 20_000
"""Pixels learned from, of all references together."""
_GAIN, _OFFSET = 0.15, 0.06
"""Standard deviations of the light that is drawn: of its logarithm, and of what is added to colours in 0..1."""
_LIMIT = 4.0
"""Features further than so many deviations from their mean count as that far."""
_IS_COLOUR = np.tile(np.array([1, 1, 1, 0, 0, 0, 0], np.float64), NUM_LEVELS)
_BORDER = cv2.BORDER_REFLECT

Value = TypeVar("Value", np.float32, np.float64)


class PixelExample(NamedTuple):
    """One reference, or one tile of it."""

    colours: NDArray[np.float32]
    """(3, h, w) in 0..1, without padding."""
    map_odds: NDArray[np.float32]
    """(h, w) log-odds of the similarity map, of references without this one."""
    coverage: NDArray[np.float32]
    """(h, w) in 0..1: the share of each pixel that the object covers."""


@dataclass(frozen=True, eq=False)
class PixelClassifier:
    """A network with two hidden layers and a linear part beside them."""

    mean: NDArray[np.float32]
    """(F,) of the features."""
    deviation: NDArray[np.float32]
    """(F,)"""
    weights: tuple[NDArray[np.float32], ...]
    """(F + 1, 24), (24,), (24, 24), (24,), (24 + F + 1,), (1,)."""

    def log_odds(self, colours: NDArray[np.float32], map_odds: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return (h, w) float32 log-odds of foreground, at most 8 either way.

        colours: (3, h, w) in 0..1, without padding. map_odds: (h, w), of the similarity map.
        """
        rows = _inputs(pixel_features(colours), map_odds.reshape(-1, 1), self.mean, self.deviation)
        answer = _forward(rows, self.weights)[-1]
        return np.clip(answer, -MAX_LOG_ODDS, MAX_LOG_ODDS).reshape(map_odds.shape)

    @property
    def num_bytes(self) -> int:
        """What it holds in memory."""
        return 4 * _SIZES[-1]

    def to_vector(self) -> NDArray[np.float32]:
        """Return all numbers in one row."""
        return np.concatenate([values.reshape(-1) for values in (self.mean, self.deviation, *self.weights)])

    @classmethod
    def from_vector(cls, vector: NDArray[np.float32]) -> Self:
        """Return what ``to_vector`` was of."""
        parts = [vector[a:b].reshape(shape) for (a, b), shape in zip(pairwise(_SIZES), _SHAPES, strict=True)]
        return cls(parts[0], parts[1], tuple(parts[2:]))


_WEIGHT_SHAPES: tuple[tuple[int, ...], ...] = (
    (NUM_FEATURES + 1, HIDDEN),
    (HIDDEN,),
    (HIDDEN, HIDDEN),
    (HIDDEN,),
    (HIDDEN + NUM_FEATURES + 1,),
    (1,),
)
_SHAPES: tuple[tuple[int, ...], ...] = ((NUM_FEATURES,), (NUM_FEATURES,), *_WEIGHT_SHAPES)
_SIZES: list[int] = np.cumsum([0, *(int(np.prod(shape)) for shape in _SHAPES)]).tolist()


def pixel_features(colours: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (h * w, 35) float32: for each level of a pyramid the colours, the gradient's length, the larger and the
    smaller eigenvalue of the Hessian and the deviation of a 3 x 3 neighbourhood, all of the mean of the colours.

    colours: (3, h, w) in 0..1.
    """
    height, width = colours.shape[1:]
    level = np.ascontiguousarray(np.clip(colours, 0, 1).transpose(1, 2, 0), np.float32)
    level = np.dstack([level, level.mean(axis=2) ** 2])
    found = []
    for number in range(NUM_LEVELS):
        if number:
            smaller = max(2, -(-level.shape[1] // 2)), max(2, -(-level.shape[0] // 2))
            level = np.asarray(cv2.resize(level, smaller, interpolation=cv2.INTER_AREA), np.float32)
        features = _level_features(level)
        # Smoothly brought to the size of the first, so that the network sees no blocks.
        found.append(features if not number else cv2.resize(features, (width, height), interpolation=cv2.INTER_LINEAR))
    return np.concatenate([f.reshape(height * width, -1) for f in found], axis=1)


def _level_features(level: NDArray[np.float32]) -> NDArray[np.float32]:
    """level: (h, w, 4), the last the square of the first level's mean of colours."""
    rgb, square = level[..., :3], np.ascontiguousarray(level[..., 3])
    grey = np.ascontiguousarray(rgb.mean(axis=2))

    def derivative(x: int, y: int, scale: float) -> NDArray[np.float32]:
        return np.asarray(cv2.Sobel(grey, cv2.CV_32F, x, y, scale=scale, borderType=_BORDER), np.float32)

    length = np.hypot(derivative(1, 0, 1 / 8), derivative(0, 1, 1 / 8))
    across, along, mixed = derivative(2, 0, 1 / 16), derivative(0, 2, 1 / 16), derivative(1, 1, 1 / 4)
    middle, spread = (across + along) / 2, np.hypot((across - along) / 2, mixed)
    mean, mean_square = (cv2.blur(plane, (3, 3), borderType=_BORDER) for plane in (grey, square))
    deviation = np.sqrt(np.maximum(mean_square - mean**2, 0))
    return np.asarray(np.dstack([rgb, length, middle + spread, middle - spread, deviation]), np.float32)


def train_pixel_classifier(examples: Sequence[PixelExample], seed: int) -> PixelClassifier:
    """Train on references, some of which show the class. Deterministic for a seed."""
    rng = np.random.default_rng(seed)
    drawn = [_draw(example, len(examples), rng) for example in examples]
    features, map_odds, labels, mass = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
    mean, deviation = features.mean(axis=0), features.std(axis=0) + 1e-3
    is_foreground = labels > 0.5
    share = float(np.clip(mass[is_foreground].sum() / mass.sum(), 1e-6, 1 - 1e-6))
    # Between true shares and halves: small objects would be given up, or found everywhere.
    mass = mass * np.where(is_foreground, share**-0.5, (1 - share) ** -0.5)
    chances = np.cumsum(mass / mass.sum())
    network = _Adam(rng)
    for step in range(_STEPS):
        rows = np.minimum(np.searchsorted(chances, rng.random(_BATCH)), len(labels) - 1)
        gain = np.exp(_GAIN * rng.standard_normal((_BATCH, 1)))
        lit = features[rows] * gain + _OFFSET * rng.standard_normal((_BATCH, 1)) * _IS_COLOUR
        network.step(_inputs(lit, map_odds[rows], mean, deviation), labels[rows], step)
    weights = tuple(np.asarray(w, np.float32) for w in network.weights)
    return PixelClassifier(mean.astype(np.float32), deviation.astype(np.float32), weights)


def _draw(
    example: PixelExample, num_examples: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return pixels' features, map odds (N, 1), labels, and how much of the picture each stands for.

    In float64, so that equal references give equal classifiers wherever sums are taken in another order.
    """
    coverage = example.coverage.reshape(-1)
    is_foreground = coverage > min(0.5, 0.5 * float(coverage.max()))
    rows, mass = [], []
    for side, limit in ((is_foreground, _MAX_FOREGROUND), (~is_foreground, _MAX_BACKGROUND)):
        indices = np.flatnonzero(side)
        kept = np.sort(rng.permutation(indices)[: max(1, limit // num_examples)])
        rows.append(kept)
        mass.append(np.full(len(kept), len(indices) / max(1, len(kept)) / len(coverage)))
    chosen = np.concatenate(rows)
    features = pixel_features(example.colours)[chosen].astype(np.float64)
    map_odds = example.map_odds.reshape(-1, 1)[chosen].astype(np.float64)
    return features, map_odds, coverage[chosen].astype(np.float64), np.concatenate(mass)


def _inputs(
    features: NDArray[Value], map_odds: NDArray[Value], mean: NDArray[Value], deviation: NDArray[Value]
) -> NDArray[Value]:
    """Return (N, F + 1)."""
    known = np.clip((features - mean) / deviation, -_LIMIT, _LIMIT)
    return np.concatenate([known, np.clip(map_odds, -MAX_LOG_ODDS, MAX_LOG_ODDS) / _MAP_SCALE], axis=1)


def _forward(
    rows: NDArray[Value], weights: Sequence[NDArray[Value]]
) -> tuple[NDArray[Value], NDArray[Value], NDArray[Value]]:
    """Return the first and second hidden layer, and the log-odds (N,)."""
    first = np.maximum(rows @ weights[0] + weights[1], 0)
    second = np.maximum(first @ weights[2] + weights[3], 0)
    return first, second, second @ weights[4][:HIDDEN] + rows @ weights[4][HIDDEN:] + weights[5]


class _Adam:
    """The weights while they are learned: logistic loss, Adam with decoupled decay, the rate falling as a cosine."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.weights = [np.zeros(shape) for shape in _WEIGHT_SHAPES]
        for layer in (0, 2):
            shape = _WEIGHT_SHAPES[layer]
            self.weights[layer] = rng.standard_normal(shape) * np.sqrt(2 / shape[0])
        self._moments = [(np.zeros(shape), np.zeros(shape)) for shape in _WEIGHT_SHAPES]

    def step(self, rows: NDArray[np.float64], labels: NDArray[np.float64], number: int) -> None:
        rate = 0.5 * _RATE * (1 + np.cos(np.pi * (number + 1) / _STEPS))
        for index, slope in enumerate(self._slopes(rows, labels)):
            first, second = self._moments[index]
            first += 0.1 * (slope - first)
            second += 0.01 * (slope**2 - second)
            unbiased = first / (1 - 0.9 ** (number + 1)), second / (1 - 0.99 ** (number + 1))
            weight = self.weights[index]
            weight -= rate * (unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8) + _DECAY * weight)

    def _slopes(self, rows: NDArray[np.float64], labels: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        first, second, odds = _forward(rows, self.weights)
        slope = (1 / (1 + np.exp(-np.clip(odds, -50, 50))) - labels) / len(labels)
        to_second = np.outer(slope, self.weights[4][:HIDDEN]) * (second > 0)
        to_first = (to_second @ self.weights[2].T) * (first > 0)
        last = np.concatenate([second.T @ slope, rows.T @ slope])
        return [
            rows.T @ to_first,
            to_first.sum(axis=0),
            first.T @ to_second,
            to_second.sum(axis=0),
            last,
            slope.sum(keepdims=True),
        ]
