"""Sections of granular matter: packed grains of a few phases, with pores and a fine-grained filler between them.

What a microscope or a tomograph shows of rock, sintered parts, foam or tissue.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from vplab.vision.synthesis.fields import Field, coordinates, fractal_noise, smooth_noise

PHASES = ("grain", "rare grain", "pore", "filler")


def grain_map(
    size_hw: tuple[int, int], unit: float, rng: np.random.Generator
) -> tuple[Field, NDArray[np.uint16], NDArray[np.uint8]]:
    """Draw a section: tone (H, W) in 0..1, segment ids (H, W) from 1 with 0 between, and the phase of each segment.

    Phases are indices of ``PHASES``.
    """
    cell = rng.uniform(22, 75) * unit
    owner, edge = _cells(size_hw, cell, rng)
    gap = rng.uniform(1.2, 7) * unit
    between = edge < gap * (1 + 0.6 * smooth_noise(size_hw, cell / 2, rng))
    num_cells = int(owner.max()) + 1
    kind = rng.choice(4, size=num_cells, p=_shares(rng)).astype(np.uint8)
    phase = kind[owner]
    filled = smooth_noise(size_hw, 1.5 * cell, rng) > rng.uniform(-0.5, 1.5)
    phase[between] = np.where(filled[between], 3, 2)
    segments, phases = _segments(owner, phase, between)
    return _tones(size_hw, unit, phase, owner, num_cells, rng), segments, phases


def _shares(rng: np.random.Generator) -> NDArray[np.float64]:
    shares = np.array([rng.uniform(0.4, 0.9), rng.uniform(0, 0.1), rng.uniform(0.03, 0.3), rng.uniform(0, 0.2)])
    normalised: NDArray[np.float64] = shares / shares.sum()
    return normalised


def _cells(size_hw: tuple[int, int], cell: float, rng: np.random.Generator) -> tuple[NDArray[np.int32], Field]:
    """Return which cell of a jittered grid each pixel is in, with wavy borders, and about how far its border is."""
    height, width = size_hw
    rows, columns = int(height / cell) + 4, int(width / cell) + 4
    y, x = np.mgrid[:rows, :columns].astype(np.float32)
    jitter = rng.uniform(-0.45, 0.45, (2, rows, columns)).astype(np.float32)
    centres = np.stack([(x + jitter[0] - 1) * cell, (y + jitter[1] - 1) * cell], axis=-1)
    px, py = coordinates(size_hw)
    px = px + width / 2 + 0.18 * cell * smooth_noise(size_hw, cell / 2, rng)
    py = py + height / 2 + 0.18 * cell * smooth_noise(size_hw, cell / 2, rng)
    home_row, home_column = np.floor(py / cell).astype(int) + 1, np.floor(px / cell).astype(int) + 1
    distances, owners = [], []
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            r, c = np.clip(home_row + down, 0, rows - 1), np.clip(home_column + right, 0, columns - 1)
            distances.append(np.hypot(px - centres[r, c, 0], py - centres[r, c, 1]))
            owners.append(r * columns + c)
    stack = np.stack(distances)
    order = np.argpartition(stack, 1, axis=0)[:2]
    nearest = np.take_along_axis(stack, order, axis=0)
    owner = np.take_along_axis(np.stack(owners), order[:1], axis=0)[0]
    swapped = nearest[0] > nearest[1]
    if swapped.any():
        second = np.take_along_axis(np.stack(owners), order[1:], axis=0)[0]
        owner = np.where(swapped, second, owner)
    return owner.astype(np.int32), np.asarray(np.abs(nearest[0] - nearest[1]) / 2, np.float32)


def _segments(
    owner: NDArray[np.int32], phase: NDArray[np.uint8], between: NDArray[np.bool_]
) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """Make every whole grain a segment, and every connected piece of a pore or of the filler."""
    segments = np.zeros(owner.shape, np.uint16)
    phases: list[int] = []
    for value in (0, 1, 2, 3):
        region = phase == value
        if value < 2:
            pieces = np.where(region & ~between, owner + 1, 0)
        else:
            _, pieces = cv2.connectedComponents(region.astype(np.uint8), connectivity=4)
        for label in np.unique(pieces[pieces > 0]):
            phases.append(value)
            segments[pieces == label] = len(phases)
    return segments, np.array(phases, np.uint8)


def _tones(
    size_hw: tuple[int, int],
    unit: float,
    phase: NDArray[np.uint8],
    owner: NDArray[np.int32],
    num_cells: int,
    rng: np.random.Generator,
) -> Field:
    grain = rng.uniform(0.35, 0.7)
    levels = np.array([grain, rng.choice([0.05, 0.95]), rng.uniform(0.03, 0.2), grain * rng.uniform(0.45, 0.85)])
    if rng.random() < 0.25:
        levels[2] = rng.uniform(0.8, 0.98)  # bright pores: stained or lit from below
    own = rng.normal(0, rng.uniform(0.005, 0.06), num_cells)[owner]
    mottle = np.where(phase == 3, rng.uniform(0.02, 0.12), 0.015) * fractal_noise(size_hw, 6 * unit, rng, 3)
    tone = cv2.GaussianBlur((levels[phase] + own + mottle).astype(np.float32), (0, 0), float(rng.uniform(0.4, 1.3)))
    noise = rng.normal(0, rng.uniform(0.004, 0.04), size_hw)
    return np.clip(tone + noise, 0, 1).astype(np.float32)
