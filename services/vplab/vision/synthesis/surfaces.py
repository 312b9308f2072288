"""Surfaces as an inspection camera sees them before anything is wrong: relief, reflectance and gloss.

Lengths scale with the image: ``unit`` is one five-hundred-twelfth of the long side, in pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from vplab.vision.synthesis.fields import Field, coordinates, fractal_noise, polyline_coverage, smooth_noise


@dataclass(frozen=True)
class Surface:
    """What the light falls on."""

    relief: Field
    """(H, W) height in pixels."""
    albedo: NDArray[np.float32]
    """(H, W, 3) reflectance of red, green and blue, 0..1."""
    gloss: float
    """Strength of the mirror-like part of the reflection, 0..1."""


def _tinted(tone: Field, colour: NDArray[np.floating]) -> NDArray[np.float32]:
    return np.clip(tone[..., None] * colour.astype(np.float32), 0.02, 1).astype(np.float32)


def _grey(rng: np.random.Generator, low: float = 0.35, high: float = 0.7, tint: float = 0.03) -> NDArray[np.floating]:
    return np.clip(rng.uniform(low, high) * (1 + rng.normal(0, tint, 3)), 0.05, 1)


def rolled_metal(size_hw: tuple[int, int], unit: float, rng: np.random.Generator) -> Surface:
    """Fine streaks along the rolling direction."""
    streaks = fractal_noise(size_hw, 3 * unit, rng, 3, stretch=rng.uniform(8, 40))
    slow = smooth_noise(size_hw, 150 * unit, rng)
    if rng.random() < 0.5:
        streaks = np.ascontiguousarray(_turned(streaks, size_hw, rng))
    tone = 1 + 0.06 * streaks + 0.05 * slow
    return Surface(0.25 * unit * streaks, _tinted(tone, _grey(rng)), rng.uniform(0.2, 0.6))


def _turned(field: Field, size_hw: tuple[int, int], rng: np.random.Generator) -> Field:
    height, width = size_hw
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), float(rng.uniform(0, 180)), 1.0)
    warped = cv2.warpAffine(field, matrix, (width, height), borderMode=cv2.BORDER_REFLECT)
    return np.asarray(warped, np.float32)


def turned_metal(size_hw: tuple[int, int], unit: float, rng: np.random.Generator) -> Surface:
    """Concentric marks of a lathe, the centre in the picture or far outside."""
    x, y = coordinates(size_hw)
    offset = rng.uniform(-600, 600, 2) * unit
    radius = np.hypot(x - offset[0], y - offset[1])
    wobble = smooth_noise(size_hw, 80 * unit, rng)
    marks = np.sin(2 * np.pi * radius / (rng.uniform(4, 12) * unit) + 0.4 * wobble).astype(np.float32)
    grain = fractal_noise(size_hw, 3 * unit, rng, 2)
    tone = np.asarray(1 + 0.05 * marks + 0.03 * grain, np.float32)
    return Surface(0.3 * unit * marks, _tinted(tone, _grey(rng)), rng.uniform(0.3, 0.7))


def cast(size_hw: tuple[int, int], unit: float, rng: np.random.Generator) -> Surface:
    """Sand-cast or blasted skin: isotropic relief of several sizes."""
    relief = fractal_noise(size_hw, rng.uniform(6, 16) * unit, rng, 4)
    return Surface(0.7 * unit * relief, _tinted(1 + 0.05 * relief, _grey(rng, 0.25, 0.6)), rng.uniform(0, 0.2))


def concrete(size_hw: tuple[int, int], unit: float, rng: np.random.Generator) -> Surface:
    """Cement or asphalt: stains of all sizes and mineral grains of two tones."""
    clouds = fractal_noise(size_hw, 120 * unit, rng, 6)
    grains = fractal_noise(size_hw, rng.uniform(2.5, 6) * unit, rng, 2)
    coarse = np.clip(grains, -0.5, 2.2)
    tone = np.asarray(1 + 0.09 * clouds + rng.uniform(0.05, 0.2) * coarse, np.float32)
    colour = _grey(rng, 0.3, 0.65) * np.array([1.03, 1.0, 0.95])
    return Surface(0.4 * unit * coarse, _tinted(tone, colour), 0.0)


def fabric(size_hw: tuple[int, int], unit: float, rng: np.random.Generator) -> Surface:
    """A plain weave: warp over weft and weft over warp, with uneven yarns."""
    x, y = coordinates(size_hw, rng.uniform(0, np.pi))
    pitch = rng.uniform(6, 14) * unit
    shift = 0.15 * pitch * smooth_noise(size_hw, 40 * unit, rng)
    u, v = np.pi * (x + shift) / pitch, np.pi * (y + shift) / pitch
    over = (np.floor(u / np.pi) + np.floor(v / np.pi)) % 2 == 0
    yarn = np.where(over, np.abs(np.sin(u)), np.abs(np.sin(v))).astype(np.float32)
    uneven = smooth_noise(size_hw, pitch * 2, rng, stretch=4)
    tone = np.asarray((0.65 + 0.35 * yarn) * (1 + 0.06 * uneven), np.float32)
    return Surface(0.12 * pitch * yarn, _tinted(tone, rng.uniform(0.2, 0.9, 3)), 0.0)


def wood(size_hw: tuple[int, int], unit: float, rng: np.random.Generator) -> Surface:
    """Growth rings cut lengthwise."""
    x, y = coordinates(size_hw, rng.uniform(0, np.pi))
    bend = 30 * unit * smooth_noise(size_hw, 200 * unit, rng)
    rings = np.sin(2 * np.pi * (y + bend) / (rng.uniform(14, 40) * unit) + 0.002 * x / unit).astype(np.float32)
    fibre = fractal_noise(size_hw, 2 * unit, rng, 2, stretch=12)
    tone = np.asarray(1 + 0.13 * rings**3 + 0.05 * fibre, np.float32)
    return Surface(0.2 * unit * fibre, _tinted(tone, np.array([0.7, 0.5, 0.32]) * rng.uniform(0.7, 1.2)), 0.05)


def circuit_board(size_hw: tuple[int, int], unit: float, rng: np.random.Generator) -> Surface:
    """Solder mask over straight copper traces with round pads."""
    height, width = size_hw
    copper, tin = np.zeros(size_hw, np.float32), np.zeros(size_hw, np.float32)
    for _ in range(int(rng.integers(10, 26))):
        start = rng.uniform(0, 1, 2) * (width, height)
        points = [start]
        heading = rng.integers(8)
        for _ in range(int(rng.integers(1, 4))):
            angle = np.pi / 4 * heading
            points.append(points[-1] + rng.uniform(40, 220) * unit * np.array([np.cos(angle), np.sin(angle)]))
            heading += rng.choice([-1, 1])
        line = np.array(points)
        thickness = np.full(len(line), rng.uniform(3, 8) * unit)
        copper = np.maximum(copper, polyline_coverage(size_hw, line, thickness))
        for end in (line[0], line[-1]):
            radius = rng.uniform(5, 9) * unit
            x, y = coordinates(size_hw)
            distance = np.hypot(x + width / 2 - end[0], y + height / 2 - end[1])
            tin = np.maximum(tin, np.clip(radius - distance + 0.5, 0, 1).astype(np.float32))
    mask = np.array([[0.05, 0.35, 0.18], [0.06, 0.14, 0.4], [0.12, 0.12, 0.12], [0.45, 0.08, 0.08]])[rng.integers(4)]
    base = _tinted(1 + 0.04 * fractal_noise(size_hw, 4 * unit, rng, 2), mask)
    albedo = base * (1 + 0.7 * copper[..., None])
    albedo = albedo * (1 - tin[..., None]) + tin[..., None] * np.float32(0.75)
    return Surface(1.2 * unit * (copper + tin), np.clip(albedo, 0, 1).astype(np.float32), 0.25)


def moulded_plastic(size_hw: tuple[int, int], unit: float, rng: np.random.Generator) -> Surface:
    """A smooth coloured moulding with a little texture."""
    relief = fractal_noise(size_hw, rng.uniform(2, 5) * unit, rng, 2)
    waves = smooth_noise(size_hw, 180 * unit, rng)
    tone = np.asarray(1 + 0.015 * relief + 0.03 * waves, np.float32)
    return Surface(
        0.15 * unit * relief + 3 * unit * waves, _tinted(tone, rng.uniform(0.1, 0.95, 3)), rng.uniform(0, 0.5)
    )


def leather(size_hw: tuple[int, int], unit: float, rng: np.random.Generator) -> Surface:
    """Grain of convex cells between creases."""
    height, width = size_hw
    cell = rng.uniform(8, 18) * unit
    seeds = np.full(size_hw, 255, np.uint8)
    count = max(8, round(height * width / cell**2))
    seeds[rng.integers(0, height, count), rng.integers(0, width, count)] = 0
    distance = np.asarray(cv2.distanceTransform(seeds, cv2.DIST_L2, 5), np.float32) / np.float32(cell)
    bump = np.clip(1 - distance**2, 0, 1).astype(np.float32)
    tone = np.asarray(0.75 + 0.3 * bump + 0.04 * smooth_noise(size_hw, 60 * unit, rng), np.float32)
    return Surface(0.2 * cell * bump, _tinted(tone, rng.uniform(0.1, 0.6) * np.array([1.0, 0.75, 0.55])), 0.1)


def radiograph(size_hw: tuple[int, int], unit: float, rng: np.random.Generator) -> Surface:
    """Transmission through a body of varying thickness: soft shadows and grain, no relief to shade."""
    thickness = fractal_noise(size_hw, rng.uniform(80, 200) * unit, rng, 3)
    grain = smooth_noise(size_hw, max(1.5, 2 * unit), rng)
    tone = np.asarray(0.45 + 0.16 * thickness + 0.02 * grain, np.float32)
    return Surface(np.zeros(size_hw, np.float32), _tinted(np.clip(tone, 0.05, 0.95), np.ones(3)), 0.0)


SURFACES: dict[str, Callable[[tuple[int, int], float, np.random.Generator], Surface]] = {
    "rolled_metal": rolled_metal,
    "turned_metal": turned_metal,
    "cast": cast,
    "concrete": concrete,
    "fabric": fabric,
    "wood": wood,
    "circuit_board": circuit_board,
    "moulded_plastic": moulded_plastic,
    "leather": leather,
    "radiograph": radiograph,
}
