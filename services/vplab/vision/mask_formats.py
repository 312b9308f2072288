"""Masks as others read them: polygons, COCO run lengths and PNG files.

Source of the COCO encoding: cocoapi, common/maskApi.c (column-major counts; compressed counts are six bits a character,
from the third count on as differences to the count before the last).
"""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from vplab.errors import InvalidInput

_MAX_PIXELS = 1 << 28


@dataclass(frozen=True)
class Polygon:
    """One 4-connected piece of a mask."""

    exterior: NDArray[np.float32]
    """(N, 2) x, y of the outline's corners along pixel edges, clockwise on the screen; not closed by a repeat."""
    holes: tuple[NDArray[np.float32], ...] = field(default=())
    """Outlines of the holes, counter-clockwise."""


def mask_to_polygons(mask: NDArray[np.bool_], *, tolerance_px: float = 0.0) -> list[Polygon]:
    """Return the outlines of a mask's pieces, largest first.

    mask: (H, W) bool. The outlines follow pixel edges, so at tolerance 0 they are lossless: a pixel is foreground
    exactly when its centre is inside. ``tolerance_px`` lets the outline deviate that far to save corners.
    """
    _, labels = cv2.connectedComponents(np.ascontiguousarray(mask, np.uint8), connectivity=4)
    outlines: dict[int, tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]]] = {}
    for corners, (row, column) in _trace(np.asarray(mask, np.bool_)):
        exteriors, holes = outlines.setdefault(int(labels[row, column]), ([], []))
        (exteriors if _signed_area(corners) > 0 else holes).append(corners)
    polygons = [
        Polygon(_simplify(exteriors[0], tolerance_px), tuple(_simplify(h, tolerance_px) for h in holes))
        for exteriors, holes in outlines.values()
    ]
    return sorted(polygons, key=lambda p: -_signed_area(p.exterior))


def mask_to_coco_rle(mask: NDArray[np.bool_], *, compressed: bool = True) -> dict[str, object]:
    """Return ``{"size": [H, W], "counts": ...}`` as COCO's tools read it; counts is text, or a list uncompressed."""
    flat = np.asarray(mask, np.bool_).T.reshape(-1)
    edges = np.concatenate([[0] * (1 + bool(flat.size and flat[0])), np.flatnonzero(np.diff(flat)) + 1, [flat.size]])
    counts = np.diff(edges).tolist()
    return {"size": list(mask.shape), "counts": _compress(counts) if compressed else counts}


def coco_rle_to_mask(rle: Mapping[str, object], *, max_pixels: int = _MAX_PIXELS) -> NDArray[np.bool_]:
    """Return the (H, W) bool mask of a COCO run-length object with compressed or plain counts.

    Raises InvalidInput where size or counts are missing, malformed, do not add up, or exceed ``max_pixels``.
    """
    size, counts = rle.get("size"), rle.get("counts")
    if not isinstance(size, Sequence) or len(size) != 2 or not all(isinstance(s, int) and s > 0 for s in size):
        raise InvalidInput("size is [height, width], both at least 1", field="size")
    height, width = int(size[0]), int(size[1])
    if height * width > max_pixels:
        raise InvalidInput(f"the mask of {width} x {height} exceeds {max_pixels} pixels", field="size")
    if isinstance(counts, str | bytes):
        numbers = _decompress(counts.encode("ascii", "replace") if isinstance(counts, str) else counts)
    elif isinstance(counts, Sequence) and all(isinstance(c, int) for c in counts):
        numbers = list(counts)
    else:
        raise InvalidInput("counts is text or a list of whole numbers", field="counts")
    if any(c < 0 for c in numbers) or sum(numbers) != height * width:
        raise InvalidInput(f"the counts do not add up to {height * width} pixels", field="counts")
    flat = np.repeat(np.arange(len(numbers)) & 1 == 1, np.array(numbers, np.int64))
    return np.ascontiguousarray(flat.reshape(width, height).T)


def coco_polygons_to_mask(polygons: Sequence[Sequence[float]], size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the union of COCO polygons, [x, y, x, y, ...] each, pixel for pixel as ``pycocotools`` draws them.

    Returns (H, W) bool. Source: ``rleFrPoly`` of cocoapi, common/maskApi.c. Raises InvalidInput for a polygon of fewer
    than three corners, an odd count, or corners that lie further outside the image than it is long.
    """
    mask = np.zeros(size_hw, np.bool_)
    reach = max(size_hw)
    for index, numbers in enumerate(polygons):
        field = f"segmentation[{index}]"
        is_list = isinstance(numbers, Sequence) and not isinstance(numbers, str)
        if not is_list or not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
            raise InvalidInput("a polygon is a list of numbers", field=field)
        if len(numbers) < 6 or len(numbers) % 2:
            raise InvalidInput(f"a polygon has x and y of at least 3 corners, not {len(numbers)} numbers", field=field)
        corners = np.array(numbers, np.float64).reshape(-1, 2)
        if (corners < -reach).any() or (corners > 2 * reach).any():
            raise InvalidInput(f"a corner is more than {reach} pixels outside the image", field=field)
        mask |= _fill(corners, size_hw)
    return mask


def mask_to_png(mask: NDArray[np.bool_], *, bits: int = 8) -> bytes:
    """Return a grey PNG: background 0, foreground white; 1 or 8 bits a pixel."""
    if bits not in (1, 8):
        raise InvalidInput(f"a mask PNG has 1 or 8 bits, not {bits}", field="bits")
    from PIL import Image  # here, because line bundles carry this module and have no Pillow

    image = Image.fromarray(np.where(mask, 255, 0).astype(np.uint8))
    file = io.BytesIO()
    (image.convert("1", dither=Image.Dither.NONE) if bits == 1 else image).save(file, "PNG")
    return file.getvalue()


def png_to_mask(data: bytes, *, max_pixels: int = _MAX_PIXELS) -> NDArray[np.bool_]:
    """Return the (H, W) bool mask of a PNG: foreground where the value, palette index or any colour is not 0.

    Alpha is ignored. Raises InvalidInput for what is no PNG, is damaged, or exceeds ``max_pixels``.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.width * image.height > max_pixels:
                size = f"{image.width} x {image.height}"
                raise InvalidInput(f"the mask of {size} exceeds {max_pixels} pixels", field="mask")
            pixels = np.asarray(image)
            has_alpha = image.mode in ("LA", "RGBA")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InvalidInput(f"the mask is no readable PNG: {error}", field="mask") from error
    if pixels.ndim == 2:
        return np.asarray(pixels != 0)
    colours = pixels[..., :-1] if has_alpha else pixels
    return np.asarray((colours != 0).any(axis=-1))


_FILL_SCALE = 5
"""``rleFrPoly`` walks the outline on a grid five times as fine as the pixels."""


def _fill(corners: NDArray[np.float64], size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Return (H, W) bool of one polygon. corners: (N, 2) x, y; the last is joined to the first."""
    height, width = size_hw
    fine = np.trunc(_FILL_SCALE * corners + 0.5).astype(np.int64)
    steps = [_steps(start, end) for start, end in zip(fine, np.roll(fine, -1, axis=0), strict=True)]
    u, v = np.concatenate(steps, axis=1)
    crosses = np.flatnonzero(u[1:] != u[:-1]) + 1
    x = (np.where(u[crosses] < u[crosses - 1], u[crosses], u[crosses] - 1) + 0.5) / _FILL_SCALE - 0.5
    y = np.ceil(np.clip((np.minimum(v[crosses], v[crosses - 1]) + 0.5) / _FILL_SCALE - 0.5, 0, height))
    counts = (np.floor(x) == x) & (x >= 0) & (x <= width - 1)
    # Down each column, a pixel is inside after an odd number of crossings.
    at = (x[counts] * height + y[counts]).astype(np.int64)
    inside = np.cumsum(np.bincount(at, minlength=height * width + 1)[: height * width]) & 1 == 1
    return np.ascontiguousarray(inside.reshape(width, height).T)


def _steps(start: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return (2, n) x, y of the points from one corner to the next, along the longer axis."""
    delta = end - start
    axis = 0 if abs(delta[0]) >= abs(delta[1]) else 1
    length = int(abs(delta[axis]))
    is_flipped = delta[axis] < 0  # the original always walks upwards, which decides how halves are rounded
    low, high = (end, start) if is_flipped else (start, end)
    along = np.arange(length + 1, dtype=np.int64)
    slope = (high[1 - axis] - low[1 - axis]) / length if length else 0.0
    across = np.trunc(low[1 - axis] + slope * along + 0.5).astype(np.int64)
    points = np.stack([low[axis] + along, across] if axis == 0 else [across, low[axis] + along])
    return points[:, ::-1] if is_flipped else points


def _trace(mask: NDArray[np.bool_]) -> list[tuple[NDArray[np.float32], tuple[int, int]]]:
    """Return each outline's corners with the (row, column) of a foreground pixel beside it.

    Every edge between foreground and background is walked with the foreground on its right, so that on a screen (y
    down) exteriors run clockwise; where two pieces meet at a corner the walk turns right and stays with its piece.
    """
    # Vertex (r, c) is the upper left corner of pixel (r, c); its number is r * stride + c.
    stride = mask.shape[1] + 1
    steps = (1, stride, -1, -stride)  # east, south, west, north
    starts, headings, pixels = _border_edges(mask, stride)
    edge_at = {key: index for index, key in enumerate(zip(starts, headings, strict=True))}
    visited = bytearray(len(starts))
    outlines = []
    for first in range(len(starts)):
        if visited[first]:
            continue
        corners: list[int] = []
        edge, last_heading = first, -1
        while not visited[edge]:
            visited[edge] = 1
            vertex, heading = starts[edge], headings[edge]
            if heading != last_heading:
                corners.append(vertex)
            last_heading = heading
            vertex += steps[heading]
            edge = next(edge_at[k] for turn in (1, 0, 3) if (k := (vertex, (heading + turn) & 3)) in edge_at)
        if headings[first] == last_heading:
            del corners[0]
        rows, columns = np.divmod(np.array(corners), stride)
        outlines.append((np.stack([columns, rows], axis=1).astype(np.float32), pixels[first]))
    return outlines


def _border_edges(mask: NDArray[np.bool_], stride: int) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    """Return start vertex, heading and foreground pixel (row, column) of every edge between foreground and not."""
    padded = np.pad(mask, 1)
    here, above, left = padded[1:, 1:], padded[:-1, 1:], padded[1:, :-1]
    sides = (
        (here & ~above, 0, (0, 0)),  # a pixel's top edge, walked east
        (~here & left, 0, (0, -1)),  # its right edge, walked south
        (~here & above, 1, (-1, 0)),  # its bottom edge, walked west
        (here & ~left, stride, (0, 0)),  # its left edge, walked north
    )
    starts: list[int] = []
    headings: list[int] = []
    pixels: list[tuple[int, int]] = []
    for heading, (found, vertex_offset, (row_offset, column_offset)) in enumerate(sides):
        rows, columns = np.nonzero(found)
        starts += (rows * stride + columns + vertex_offset).tolist()
        headings += [heading] * rows.size
        pixels += zip((rows + row_offset).tolist(), (columns + column_offset).tolist(), strict=True)
    return starts, headings, pixels


def _signed_area(corners: NDArray[np.float32]) -> float:
    x, y = corners[:, 0].astype(np.float64), corners[:, 1].astype(np.float64)
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def _simplify(corners: NDArray[np.float32], tolerance_px: float) -> NDArray[np.float32]:
    if tolerance_px <= 0:
        return corners
    simpler = np.asarray(cv2.approxPolyDP(corners.reshape(-1, 1, 2), tolerance_px, True), np.float32).reshape(-1, 2)
    return simpler if len(simpler) >= 3 else corners


def _compress(counts: list[int]) -> str:
    text = bytearray()
    for index, count in enumerate(counts):
        value = count - counts[index - 2] if index > 2 else count
        more = True
        while more:
            bits = value & 0x1F
            value >>= 5
            more = value != -1 if bits & 0x10 else value != 0
            text.append((bits | 0x20 if more else bits) + 48)
    return text.decode("ascii")


def _decompress(text: bytes) -> list[int]:
    counts: list[int] = []
    value, shift = 0, 0
    for character in text:
        bits = character - 48
        if not 0 <= bits < 64 or shift > 35:
            raise InvalidInput("counts is not compressed COCO text", field="counts")
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value |= -1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value, shift = 0, 0
    if shift:
        raise InvalidInput("counts ends within a number", field="counts")
    return counts
