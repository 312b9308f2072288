"""Pictures for people: masks laid over an image, and sheets of many of them."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vplab.vision.label_images import colour_of

_FILL = 0.45
"""Share of the colour inside a mask; the surface must stay visible under it."""
_CAPTION_PX = 20
_GAP_PX = 6
_BACKGROUND = (32, 34, 37)
_INK = (235, 235, 235)


@dataclass(frozen=True)
class Cell:
    """One picture of a sheet."""

    image_rgb: NDArray[np.uint8]
    """(H, W, 3)."""
    caption: str


def overlay(
    image_rgb: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    points_xy: Sequence[tuple[float, float]] = (),
    point_labels: Sequence[int] = (),
    box_xyxy: tuple[float, float, float, float] | None = None,
) -> NDArray[np.uint8]:
    """Lay class colours over an image, with outlines, clicks (green in, red out) and a box.

    image_rgb: (H, W, 3) uint8. labels: (H, W) uint8 class ids, 0 for none. Returns a new (H, W, 3) uint8.
    """
    picture = image_rgb.copy()
    thickness = max(1, round(max(labels.shape) / 400))
    for class_id in np.unique(labels[labels > 0]).tolist():
        mask = labels == class_id
        colour = np.array(colour_of(class_id), np.float32)
        picture[mask] = np.round(picture[mask] * (1 - _FILL) + colour * _FILL).astype(np.uint8)
        outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outlines, -1, colour_of(class_id), thickness)
    radius = max(3, round(max(labels.shape) / 120))
    for (x, y), label in zip(points_xy, point_labels, strict=True):
        centre = (round(x), round(y))
        cv2.circle(picture, centre, radius + thickness, (255, 255, 255), -1, cv2.LINE_AA)
        cv2.circle(picture, centre, radius, (20, 160, 60) if label else (200, 30, 30), -1, cv2.LINE_AA)
    if box_xyxy is not None:
        x_min, y_min, x_max, y_max = (round(value) for value in box_xyxy)
        cv2.rectangle(picture, (x_min, y_min), (x_max, y_max), (255, 255, 255), thickness + 1)
    return picture


def contact_sheet(cells: Sequence[Cell], *, columns: int = 4, cell_px: int = 320) -> NDArray[np.uint8]:
    """Put pictures into a grid with captions; each is scaled to fit a square of ``cell_px``. At least one cell."""
    columns = max(1, min(columns, len(cells)))
    num_rows = -(-len(cells) // columns)
    pitch_x, pitch_y = cell_px + _GAP_PX, cell_px + _CAPTION_PX + _GAP_PX
    sheet = Image.new("RGB", (columns * pitch_x + _GAP_PX, num_rows * pitch_y + _GAP_PX), _BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for index, cell in enumerate(cells):
        left = _GAP_PX + (index % columns) * pitch_x
        top = _GAP_PX + (index // columns) * pitch_y
        picture = Image.fromarray(cell.image_rgb)
        picture.thumbnail((cell_px, cell_px), Image.Resampling.LANCZOS)
        sheet.paste(picture, (left + (cell_px - picture.width) // 2, top + (cell_px - picture.height) // 2))
        draw.text((left + 2, top + cell_px + 3), _fit(cell.caption, draw, font, cell_px - 4), fill=_INK, font=font)
    return np.asarray(sheet)


def thumbnail(picture: NDArray[np.uint8], side_px: int) -> NDArray[np.uint8]:
    """Return a picture scaled down so that its long side is at most ``side_px``."""
    scale = side_px / max(picture.shape[:2])
    if scale >= 1:
        return picture
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)


def save_picture(picture: NDArray[np.uint8], path: Path) -> None:
    """Write a picture as PNG or JPEG, by the path's suffix; a reader never sees half of it. Raises OSError."""
    file = io.BytesIO()
    is_jpeg = path.suffix.lower() in (".jpg", ".jpeg")
    Image.fromarray(picture).save(file, format="JPEG" if is_jpeg else "PNG", **({"quality": 88} if is_jpeg else {}))
    write_whole(path, file.getvalue())


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is there as a whole or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(data)
    part.replace(path)


def _fit(text: str, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    while text and draw.textlength(text, font=font) > width:
        text = text[:-2].rstrip("…") + "…"
        if len(text) <= 2:
            break
    return text
