"""Light and camera: from a surface to the picture a line-side camera would give."""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from vplab.vision.synthesis.fields import Field, coordinates
from vplab.vision.synthesis.surfaces import Surface

Light = Literal["diffuse", "bar", "ring", "dark_field"]
LIGHTS: tuple[Light, ...] = ("diffuse", "bar", "ring", "dark_field")


@dataclass(frozen=True)
class Camera:
    """One set-up; a line keeps it for all its images."""

    light: Light
    azimuth: float
    """Direction the light comes from, radians."""
    elevation: float
    """Its height over the surface, radians."""
    falloff: float
    """How much the light fades over the picture, 0..1."""
    is_mono: bool
    gain_rgb: NDArray[np.float32]
    """White balance."""
    exposure: float
    """Where the automatic exposure puts the median pixel, linear, 0..1."""
    gamma: float
    blur_px: float
    """Standard deviation of the defocus."""
    motion_px: float
    """Length of the motion blur along x."""
    noise: float
    """Standard deviation of the read noise, in grey levels; shot noise comes on top."""
    vignette: float

    @classmethod
    def draw(cls, rng: np.random.Generator, unit: float) -> "Camera":
        """Draw one of the lights and a camera of ordinary quality."""
        is_mono = bool(rng.random() < 0.45)
        return cls(
            light=LIGHTS[int(rng.choice(len(LIGHTS), p=[0.35, 0.35, 0.2, 0.1]))],
            azimuth=float(rng.uniform(0, 2 * np.pi)),
            elevation=float(rng.uniform(0.4, 1.2)),
            falloff=float(rng.uniform(0, 0.5)),
            is_mono=is_mono,
            gain_rgb=np.ones(3, np.float32) if is_mono else np.exp(rng.normal(0, 0.06, 3)).astype(np.float32),
            exposure=float(rng.uniform(0.15, 0.55)),
            gamma=float(rng.uniform(0.6, 1.0)),
            blur_px=float(rng.uniform(0.3, 1.1) * max(unit, 0.5)),
            motion_px=float(rng.choice([0, 0, 0, rng.uniform(1, 5) * unit])),
            noise=float(rng.uniform(0.5, 5)),
            vignette=float(rng.uniform(0, 0.4)),
        )

    def take(self, surface: Surface, rng: np.random.Generator) -> NDArray[np.uint8]:
        """Return the picture, (H, W, 3) uint8 RGB; only the noise is random."""
        shade, glint = _shade(surface.relief, self)
        radiance = surface.albedo * shade[..., None] + np.float32(surface.gloss) * glint[..., None]
        x, y = coordinates((shade.shape[0], shade.shape[1]))
        reach = np.float32(max(shade.shape) / 2)
        toward = (x * np.float32(np.cos(self.azimuth)) + y * np.float32(np.sin(self.azimuth))) / reach
        lit = (1 + self.falloff * toward) * (1 - self.vignette * np.clip((x**2 + y**2) / (2 * reach**2), 0, 1))
        picture = radiance * lit[..., None].astype(np.float32) * self.gain_rgb
        picture *= np.float32(self.exposure) / max(float(np.median(picture)), 1e-3)
        if self.is_mono:
            picture = np.repeat(picture.mean(2, keepdims=True), 3, axis=2)
        picture = cv2.GaussianBlur(picture, (0, 0), self.blur_px)
        if self.motion_px >= 2:
            picture = cv2.blur(picture, (round(self.motion_px), 1))
        values = 255 * np.clip(picture, 0, 1) ** np.float32(self.gamma)
        channels = 1 if self.is_mono else 3
        grain = rng.standard_normal((*shade.shape, channels), dtype=np.float32)
        spread = np.sqrt(np.float32(self.noise**2) + np.float32(0.06) * values)  # read noise and shot noise
        return np.asarray(np.clip(values + grain * spread, 0, 255), np.uint8)


def _shade(relief: Field, camera: Camera) -> tuple[Field, Field]:
    """Return the diffuse (about one on a flat surface) and the mirror-like part of the light each pixel sends up."""
    slope_x = cv2.Sobel(relief, cv2.CV_32F, 1, 0, ksize=3, scale=1 / 8)
    slope_y = cv2.Sobel(relief, cv2.CV_32F, 0, 1, ksize=3, scale=1 / 8)
    steepness = np.sqrt(slope_x**2 + slope_y**2)
    if camera.light == "diffuse":
        return np.asarray(1 - 0.15 * np.clip(steepness, 0, 2), np.float32), np.zeros_like(relief)
    if camera.light == "dark_field":
        return np.asarray(0.35 + 0.9 * np.clip(steepness, 0, 1.5), np.float32), np.zeros_like(relief)
    if camera.light == "ring":
        return np.asarray(1 - 0.35 * np.clip(steepness, 0, 2), np.float32), np.exp(-8 * steepness**2) * np.float32(0.3)
    toward = slope_x * np.float32(np.cos(camera.azimuth)) + slope_y * np.float32(np.sin(camera.azimuth))
    flat = np.float32(np.sin(camera.elevation))
    across = np.float32(np.cos(camera.elevation))
    diffuse = np.clip((flat - across * toward) / np.sqrt(1 + steepness**2), 0, None) / flat
    glint = np.clip(-toward - np.float32(0.35), 0, 1.5)
    return np.asarray(np.clip(diffuse, 0, 2), np.float32), np.asarray(glint, np.float32)
