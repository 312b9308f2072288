"""Defects and parts: where they cover the surface, how deep they cut and how they colour it.

A style is drawn once for a set of images, so that one defect class looks like itself; places and shapes differ.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vplab.vision.synthesis.fields import (
    Field,
    blob_outline,
    coordinates,
    fractal_noise,
    polygon_coverage,
    polyline_coverage,
    smooth_noise,
)


@dataclass(frozen=True)
class DefectStyle:
    """What the instances of one defect class share."""

    size: float
    """Relative size, about 0.6 to 1.6."""
    gain: float
    """Factor on the reflectance below the defect."""
    colour: NDArray[np.float32]
    """(3,) own reflectance of the defect."""
    opacity: float
    """Share of the own colour, 0..1."""
    depth: float
    """Depth in units; negative stands out."""

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "DefectStyle":
        """Draw a style that is visible on a surface of middling reflectance."""
        is_dark = rng.random() < 0.65
        gain = rng.uniform(0.25, 0.75) if is_dark else rng.uniform(1.3, 2.0)
        colour = rng.uniform(0.02, 0.3, 3) if is_dark else rng.uniform(0.6, 1.0, 3)
        opacity = rng.uniform(0.1, 0.6)
        return cls(rng.uniform(0.6, 1.6), gain, colour.astype(np.float32), opacity, rng.uniform(-2, 5))

    def fainter(self, strength: float) -> "DefectStyle":
        """Return the style at ``strength`` of its contrast, 0 invisible to 1 as it is."""
        return DefectStyle(
            self.size, 1 + (self.gain - 1) * strength, self.colour, self.opacity * strength, self.depth * strength
        )


@dataclass(frozen=True)
class Defect:
    """One instance on the surface."""

    coverage: Field
    """(H, W) share of each pixel, 0..1; the mask is where it reaches one half."""
    texture: Field
    """(H, W) multiplies the reflectance inside; ones where the defect is plain."""
    depth: float
    """In pixels."""


def _place(size_hw: tuple[int, int], rng: np.random.Generator, margin: float = 0.1) -> NDArray[np.float64]:
    height, width = size_hw
    return rng.uniform(margin, 1 - margin, 2) * (width, height)


def _plain(coverage: Field, depth: float) -> Defect:
    return Defect(coverage, np.ones_like(coverage), depth)


def scratch(size_hw: tuple[int, int], unit: float, style: DefectStyle, rng: np.random.Generator) -> Defect:
    """A slightly bent line that tapers to both ends."""
    length = rng.uniform(80, 320) * unit * style.size
    heading, bend = rng.uniform(0, 2 * np.pi), rng.normal(0, 0.25)
    t = np.linspace(-0.5, 0.5, 24)
    angles = heading + bend * t
    steps = np.column_stack([np.cos(angles), np.sin(angles)]) * length / len(t)
    points = _place(size_hw, rng, 0.2) + np.cumsum(steps, axis=0) - steps.sum(0) / 2
    widths = rng.uniform(2.5, 7) * unit * style.size * np.clip(1.2 - 2 * np.abs(t), 0.3, 1)
    return _plain(polyline_coverage(size_hw, points, np.maximum(widths, 1.2)), style.depth * unit)


def crack(size_hw: tuple[int, int], unit: float, style: DefectStyle, rng: np.random.Generator) -> Defect:
    """A wandering line with branches."""
    coverage = np.zeros(size_hw, np.float32)
    starts = [(_place(size_hw, rng, 0.15), rng.uniform(0, 2 * np.pi), int(rng.integers(30, 80)), 1.0)]
    while starts:
        position, heading, steps, share = starts.pop()
        points = [position]
        turn, main = 0.0, heading
        for step in range(steps):
            turn = 0.5 * turn + rng.normal(0, 0.3)
            heading += turn - 0.25 * (heading - main)  # wanders about its main direction
            points.append(points[-1] + 6 * unit * style.size * np.array([np.cos(heading), np.sin(heading)]))
            if share > 0.5 and rng.random() < 0.035:
                side = heading + rng.choice([-1, 1]) * rng.uniform(0.5, 1.1)
                starts.append((points[-1], side, (steps - step) // 2 + 4, share * 0.6))
        widths = np.linspace(rng.uniform(2.5, 5.5), 1.5, len(points)) * unit * style.size * share
        widths = widths * rng.uniform(0.7, 1.3, len(points))
        coverage = np.maximum(coverage, polyline_coverage(size_hw, np.array(points), np.maximum(widths, 1.2)))
    return _plain(coverage, abs(style.depth) * unit)


def pore(size_hw: tuple[int, int], unit: float, style: DefectStyle, rng: np.random.Generator) -> Defect:
    """A round hole."""
    radius = rng.uniform(5, 16) * unit * style.size
    outline = blob_outline(tuple(_place(size_hw, rng)), radius, rng, 0.12, rng.uniform(1, 1.5))
    return _plain(polygon_coverage(size_hw, outline), abs(style.depth) * unit + unit)


def stain(size_hw: tuple[int, int], unit: float, style: DefectStyle, rng: np.random.Generator) -> Defect:
    """A flat discoloured patch with an irregular border."""
    radius = rng.uniform(22, 70) * unit * style.size
    outline = blob_outline(tuple(_place(size_hw, rng)), radius, rng, 0.5, rng.uniform(1, 2))
    mottle = 1 + 0.12 * fractal_noise(size_hw, 20 * unit, rng, 3)
    return Defect(polygon_coverage(size_hw, outline), np.asarray(mottle, np.float32), 0.0)


def patch(size_hw: tuple[int, int], unit: float, style: DefectStyle, rng: np.random.Generator) -> Defect:
    """Scale or corrosion: a ragged region of its own roughness."""
    x, y = coordinates(size_hw)
    centre = _place(size_hw, rng) - np.array(size_hw[::-1]) / 2
    radius = rng.uniform(35, 100) * unit * style.size
    distance = np.hypot(x - centre[0], y - centre[1]) / radius
    ragged = distance + 0.25 * fractal_noise(size_hw, 40 * unit, rng, 5) - 1
    coverage = np.clip(0.5 - ragged * radius / 4, 0, 1).astype(np.float32)
    rough = 1 + 0.2 * fractal_noise(size_hw, 5 * unit, rng, 2)
    return Defect(coverage, np.asarray(rough, np.float32), style.depth * 0.3 * unit)


def inclusion(size_hw: tuple[int, int], unit: float, style: DefectStyle, rng: np.random.Generator) -> Defect:
    """A drawn-out foreign streak with a ragged border."""
    radius = rng.uniform(7, 20) * unit * style.size
    outline = blob_outline(tuple(_place(size_hw, rng)), radius, rng, 0.45, rng.uniform(2.5, 8))
    return _plain(polygon_coverage(size_hw, outline), style.depth * 0.5 * unit)


def dent(size_hw: tuple[int, int], unit: float, style: DefectStyle, rng: np.random.Generator) -> Defect:
    """A shallow bowl that mostly shows by its shading."""
    radius = rng.uniform(16, 45) * unit * style.size
    outline = blob_outline(tuple(_place(size_hw, rng)), radius, rng, 0.08, rng.uniform(1, 1.4))
    return _plain(polygon_coverage(size_hw, outline), 9 * unit * np.sign(style.depth or 1.0))


def part(size_hw: tuple[int, int], unit: float, style: DefectStyle, rng: np.random.Generator) -> Defect:
    """A mounted or loose part: a regular polygon, a rounded box or a ring that stands above the surface."""
    centre = _place(size_hw, rng, 0.12)
    radius = rng.uniform(18, 60) * unit * style.size
    kind, turn = rng.integers(3), rng.uniform(0, np.pi)
    if kind == 0:
        angles = turn + np.arange(6) * np.pi / 3
        points = centre + radius * np.column_stack([np.cos(angles), np.sin(angles)])
        coverage = polygon_coverage(size_hw, points)
    else:
        angles = np.linspace(0, 2 * np.pi, 72, endpoint=False)
        power = 2.0 if kind == 1 else 6.0
        shape = (np.abs(np.cos(angles)) ** power + np.abs(np.sin(angles)) ** power) ** (-1 / power)
        aspect = np.array([1.0, rng.uniform(0.4, 1.0) if kind == 2 else 1.0])
        local = radius * shape[:, None] * np.column_stack([np.cos(angles), np.sin(angles)]) * aspect
        rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        coverage = polygon_coverage(size_hw, centre + local @ rotation)
        if kind == 1 and rng.random() < 0.5:
            coverage = coverage - polygon_coverage(size_hw, centre + 0.5 * local @ rotation)
    tone = 1 + 0.06 * smooth_noise(size_hw, 30 * unit, rng)
    return Defect(coverage, np.asarray(tone, np.float32), -4 * unit)


def band(size_hw: tuple[int, int], unit: float, style: DefectStyle, rng: np.random.Generator) -> Defect:
    """A strip that crosses the whole picture, streaked along its length: a roll mark or a torn-up scratch."""
    heading = rng.choice([0, np.pi / 2]) + rng.normal(0, 0.08) if rng.random() < 0.7 else rng.uniform(0, np.pi)
    along, across = coordinates(size_hw, heading)
    length = float(np.hypot(*size_hw))
    width = rng.uniform(8, 45) * unit * style.size
    offset = rng.uniform(-0.4, 0.4) * min(size_hw)
    t = np.linspace(-length, length, 2 * int(length / (12 * unit)) + 2)
    wander, ragged = (np.cumsum(rng.normal(0, 1, t.size)) for _ in range(2))
    middle = np.interp(along, t, offset + 0.6 * unit * (wander - wander.mean()))
    half = np.interp(along, t, width / 2 * np.clip(1 + 0.06 * (ragged - ragged.mean()), 0.4, 1.8))
    coverage = np.clip(half - np.abs(across - middle) + 0.5, 0, 1).astype(np.float32)
    if rng.random() < 0.35:  # it may also end inside the picture
        coverage *= np.clip((along - rng.uniform(-0.3, 0.3) * length / 2) / (4 * unit), 0, 1).astype(np.float32)
    streaks = np.interp(
        across, np.arange(-length, length, 3 * unit), rng.normal(0, 1, np.arange(-length, length, 3 * unit).size)
    )
    texture = 1 + rng.uniform(0.03, 0.15) * streaks + 0.08 * smooth_noise(size_hw, 12 * unit, rng)
    return Defect(coverage, np.asarray(np.maximum(texture, 0.2), np.float32), style.depth * 0.5 * unit)


def fleck(size_hw: tuple[int, int], unit: float, style: DefectStyle, rng: np.random.Generator) -> Defect:
    """A small pointed sliver, lying near one of the picture's axes as slag drawn out by rolling does."""
    length = rng.uniform(14, 110) * unit * style.size
    width = np.clip(length * rng.uniform(0.12, 0.4), 4 * unit, 22 * unit)
    heading = rng.choice([0, np.pi / 2]) + rng.normal(0, 0.12)
    t = np.linspace(0, np.pi, 14)
    tip = rng.uniform(0.5, 1.2)
    sides = [width / 2 * np.sin(t) ** tip * (1 + rng.normal(0, 0.15, t.size)) for _ in range(2)]
    x = np.concatenate([-np.cos(t), np.cos(t)]) * length / 2
    y = np.concatenate([sides[0], -sides[1]])
    cos, sin = np.cos(heading), np.sin(heading)
    outline = _place(size_hw, rng, 0.05) + np.column_stack([x * cos - y * sin, x * sin + y * cos])
    return _plain(polygon_coverage(size_hw, outline), style.depth * 0.2 * unit)


def sprig(size_hw: tuple[int, int], unit: float, style: DefectStyle, rng: np.random.Generator) -> Defect:
    """A star of narrow lobes round a centre: a weed, a splash, a branching crystal."""
    centre = _place(size_hw, rng)
    reach = rng.uniform(18, 75) * unit * style.size
    coverage = np.zeros(size_hw, np.float32)
    for angle in rng.uniform(0, 2 * np.pi) + np.cumsum(rng.uniform(0.5, 1.5, int(rng.integers(3, 9)))):
        t = np.linspace(0, 1, 12)
        bend = angle + rng.normal(0, 0.5) * t
        length = reach * rng.uniform(0.5, 1)
        points = centre + np.cumsum(np.column_stack([np.cos(bend), np.sin(bend)]), axis=0) * length / len(t)
        widths = length * rng.uniform(0.12, 0.4) * np.sin(np.pi * np.clip(t, 0.12, 0.97)) ** 0.8
        coverage = np.maximum(coverage, polyline_coverage(size_hw, points, np.maximum(widths, 1.5 * unit)))
    tone = 1 + 0.12 * smooth_noise(size_hw, 10 * unit, rng)
    return Defect(coverage, np.asarray(np.maximum(tone, 0.2), np.float32), -2 * unit)


DEFECTS: dict[str, Callable[[tuple[int, int], float, DefectStyle, np.random.Generator], Defect]] = {
    "scratch": scratch,
    "crack": crack,
    "pore": pore,
    "stain": stain,
    "patch": patch,
    "inclusion": inclusion,
    "dent": dent,
    "part": part,
    "band": band,
    "fleck": fleck,
    "sprig": sprig,
}
