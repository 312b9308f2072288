"""Random fields that surfaces and defects are made of."""

import cv2
import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]
"""(H, W) float32."""


def smooth_noise(size_hw: tuple[int, int], cell_px: float, rng: np.random.Generator, stretch: float = 1.0) -> Field:
    """Return noise of zero mean and unit deviation that changes over about ``cell_px`` pixels.

    stretch: how much longer its features are along x than along y.
    """
    height, width = size_hw
    rows = max(2, round(height / cell_px) + 3)
    columns = max(2, round(width / (cell_px * stretch)) + 3)
    coarse = rng.standard_normal((rows, columns), dtype=np.float32)
    fine = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return standardised(np.asarray(fine, np.float32))


def fractal_noise(
    size_hw: tuple[int, int], cell_px: float, rng: np.random.Generator, octaves: int = 4, stretch: float = 1.0
) -> Field:
    """Return a sum of smooth noises, each of half the size and half the height of the one before; unit deviation."""
    total = np.zeros(size_hw, np.float32)
    for octave in range(octaves):
        cell = cell_px / 2**octave
        if cell < 1:
            break
        total += smooth_noise(size_hw, cell, rng, stretch) / np.float32(2**octave)
    return standardised(total)


def standardised(field: Field) -> Field:
    """Shift and scale to zero mean and unit deviation; a constant field becomes zero."""
    centred = field - field.mean()
    deviation = float(centred.std())
    return np.asarray(centred / deviation if deviation > 1e-6 else centred, np.float32)


def coordinates(size_hw: tuple[int, int], angle: float = 0.0) -> tuple[Field, Field]:
    """Return the (x, y) of every pixel in a frame turned by ``angle`` radians about the centre."""
    height, width = size_hw
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x -= width / 2
    y -= height / 2
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return x * cos + y * sin, y * cos - x * sin


def polyline_coverage(
    size_hw: tuple[int, int], points_xy: NDArray[np.floating], widths_px: NDArray[np.floating]
) -> Field:
    """Return the coverage 0..1 of a line through the points whose width may change along it.

    points_xy: (N, 2) pixels. widths_px: (N,); each piece is drawn with the mean of its ends.
    """
    height, width = size_hw
    # Drawn four times finer and averaged down: line widths in OpenCV are whole pixels.
    fine = np.zeros((height * 4, width * 4), np.uint8)
    ends = np.rint(points_xy * 4 + 1.5).astype(np.int32)
    for i in range(len(ends) - 1):
        thickness = max(1, round(2 * float(widths_px[i] + widths_px[i + 1])))
        cv2.line(fine, ends[i].tolist(), ends[i + 1].tolist(), 255, thickness)
    return np.asarray(cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA), np.float32) / np.float32(255)


def polygon_coverage(size_hw: tuple[int, int], points_xy: NDArray[np.floating]) -> Field:
    """Return the coverage 0..1 of the filled polygon; points_xy: (N, 2) pixels."""
    height, width = size_hw
    fine = np.zeros((height * 4, width * 4), np.uint8)
    cv2.fillPoly(fine, [np.rint(points_xy * 4 + 1.5).astype(np.int32)], 255)
    return np.asarray(cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA), np.float32) / np.float32(255)


def blob_outline(
    centre_xy: tuple[float, float], radius_px: float, rng: np.random.Generator, roughness: float, aspect: float = 1.0
) -> NDArray[np.float32]:
    """Return a closed, wavy outline (N, 2): an ellipse whose radius wanders by ``roughness`` of itself."""
    angles = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    wander = np.zeros_like(angles)
    for frequency in range(2, 9):
        wander += rng.normal(0, roughness / frequency) * np.cos(frequency * angles + rng.uniform(0, 2 * np.pi))
    radius = radius_px * np.clip(1 + wander, 0.3, 2.0)
    x, y = radius * np.cos(angles) * np.sqrt(aspect), radius * np.sin(angles) / np.sqrt(aspect)
    turn = rng.uniform(0, np.pi)
    cos, sin = np.cos(turn), np.sin(turn)
    points = np.column_stack([centre_xy[0] + x * cos - y * sin, centre_xy[1] + x * sin + y * cos])
    return points.astype(np.float32)
