"""Whole scenes: a surface with defects, lit and photographed, with the exact mask of every instance."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from vplab.errors import InvalidInput
from vplab.vision.synthesis.camera import Camera
from vplab.vision.synthesis.defects import DEFECTS, Defect, DefectStyle
from vplab.vision.synthesis.grains import PHASES, grain_map
from vplab.vision.synthesis.surfaces import SURFACES, Surface

MIN_SIDE = 64
MASK_COVERAGE = 0.5
"""A pixel belongs to a defect that covers at least this share of it."""
_MIN_INSTANCE_PX = 12
_NUMEROUS = ("pore", "part", "inclusion", "fleck", "sprig")
_FAINT_SHARE = 0.4


@dataclass(frozen=True)
class InspectionImage:
    """One image of a set."""

    image_rgb: NDArray[np.uint8]
    """(H, W, 3)."""
    mask: NDArray[np.bool_]
    """(H, W), every pixel of the class."""
    class_name: str


@dataclass(frozen=True)
class LabelledScene:
    """One image with instances of several classes."""

    image_rgb: NDArray[np.uint8]
    """(H, W, 3)."""
    segments: NDArray[np.uint16]
    """(H, W) instance ids from 1, 0 for plain surface; a later instance lies over an earlier one."""
    class_names: tuple[str, ...]
    """Class of instance i + 1."""


def synthesize_inspection_set(
    num_images: int,
    size_hw: tuple[int, int] = (512, 512),
    defect: str = "patch",
    seed: int = 0,
    *,
    surface: str | None = None,
) -> list[InspectionImage]:
    """Generate images of one product with one class of defect, one to three instances in each.

    Surface, style of the defect, light and camera are one for the whole set, as on a line. The first k images of a set
    do not depend on ``num_images``.
    Raises InvalidInput naming the argument: an unknown ``defect`` or ``surface``, a side below 64, no image.
    """
    _check(num_images, size_hw, defect, surface)
    common = np.random.default_rng([seed, 0])
    surface = surface or str(common.choice(sorted(SURFACES)))
    unit = _unit(size_hw)
    style, camera = DefectStyle.draw(common), Camera.draw(common, unit)
    sheet_hw = (size_hw[0] * 3 // 2, size_hw[1] * 3 // 2)
    sheet = SURFACES[surface](sheet_hw, unit, common)
    images = []
    for index in range(num_images):
        rng = np.random.default_rng([seed, 1 + index])
        base = _cut(sheet, size_hw, rng)
        mask = np.zeros(size_hw, np.bool_)
        for _ in range(int(rng.integers(1, 4))):
            instance = _instance(defect, size_hw, unit, style, rng)
            base = _apply(base, instance, style)
            mask |= instance.coverage >= MASK_COVERAGE
        images.append(InspectionImage(camera.take(base, rng), mask, defect))
    return images


def synthesize_scene(size_hw: tuple[int, int], rng: np.random.Generator) -> LabelledScene:
    """Generate one scene with instances of one to three classes on any surface.

    Raises InvalidInput for a side below 64.
    """
    _check(1, size_hw, "patch", None)
    unit = _unit(size_hw)
    base = SURFACES[str(rng.choice(sorted(SURFACES)))](size_hw, unit, rng)
    camera = Camera.draw(rng, unit)
    segments = np.zeros(size_hw, np.uint16)
    names: list[str] = []
    for name in rng.choice(sorted(DEFECTS), size=int(rng.integers(1, 4)), replace=False):
        style = DefectStyle.draw(rng)
        if rng.random() < _FAINT_SHARE:
            style = style.fainter(float(rng.uniform(0.15, 0.6)))
        most = 12 if name in _NUMEROUS and rng.random() < 0.5 else 4
        for _ in range(int(rng.integers(1, most + 1))):
            instance = _instance(str(name), size_hw, unit, style, rng)
            base = _apply(base, instance, style)
            names.append(str(name))
            segments[instance.coverage >= MASK_COVERAGE] = len(names)
    return LabelledScene(camera.take(base, rng), segments, tuple(names))


def synthesize_section(size_hw: tuple[int, int], rng: np.random.Generator) -> LabelledScene:
    """Generate the section of a granular material: a grey or tinted picture in which every grain is an instance.

    Raises InvalidInput for a side below 64.
    """
    _check(1, size_hw, "patch", None)
    tone, segments, phases = grain_map(size_hw, _unit(size_hw), rng)
    tint = np.ones(3) if rng.random() < 0.6 else rng.uniform(0.6, 1.2, 3)
    image = np.clip(255 * tone[..., None] * tint, 0, 255).astype(np.uint8)
    return LabelledScene(image, segments, tuple(PHASES[phase] for phase in phases))


def _check(num_images: int, size_hw: tuple[int, int], defect: str, surface: str | None) -> None:
    if num_images < 1:
        raise InvalidInput("at least one image is needed", field="num_images")
    if min(size_hw) < MIN_SIDE:
        raise InvalidInput(f"sides below {MIN_SIDE} pixels hold no defect", field="size_hw")
    if defect not in DEFECTS:
        raise InvalidInput(f"unknown defect {defect!r}; known are {', '.join(sorted(DEFECTS))}", field="defect")
    if surface is not None and surface not in SURFACES:
        raise InvalidInput(f"unknown surface {surface!r}; known are {', '.join(sorted(SURFACES))}", field="surface")


def _unit(size_hw: tuple[int, int]) -> float:
    return max(size_hw) / 512


def _instance(name: str, size_hw: tuple[int, int], unit: float, style: DefectStyle, rng: np.random.Generator) -> Defect:
    """Draw until the instance shows: one that fell outside the picture is no instance."""
    while True:
        instance = DEFECTS[name](size_hw, unit, style, rng)
        if int((instance.coverage >= MASK_COVERAGE).sum()) >= _MIN_INSTANCE_PX:
            return instance


def _apply(surface: Surface, defect: Defect, style: DefectStyle) -> Surface:
    cover = defect.coverage[..., None]
    inside = surface.albedo * np.float32(style.gain) * (1 - np.float32(style.opacity)) + style.colour * style.opacity
    inside = np.clip(inside * defect.texture[..., None], 0.01, 1)
    albedo = surface.albedo * (1 - cover) + inside.astype(np.float32) * cover
    # A smooth bowl, not a step: depth follows the distance from the border.
    depth = cv2.GaussianBlur(defect.coverage, (0, 0), max(1.0, abs(defect.depth)))
    relief = surface.relief - np.float32(defect.depth) * depth
    return Surface(np.asarray(relief, np.float32), np.asarray(albedo, np.float32), surface.gloss)


def _cut(sheet: Surface, size_hw: tuple[int, int], rng: np.random.Generator) -> Surface:
    """Cut a piece of that size out of a larger sheet, at a random place and flipped at random."""
    top, left = (int(rng.integers(0, full - side + 1)) for full, side in zip(sheet.relief.shape, size_hw, strict=True))
    window = (slice(top, top + size_hw[0]), slice(left, left + size_hw[1]))
    flips = tuple(axis for axis in (0, 1) if rng.random() < 0.5)
    relief, albedo = np.flip(sheet.relief[window], flips), np.flip(sheet.albedo[window], flips)
    return Surface(np.ascontiguousarray(relief), np.ascontiguousarray(albedo), sheet.gloss)
