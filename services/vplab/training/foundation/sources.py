"""The training images as memory-mapped arrays: decoded once, read at no cost ever after.

One folder per source: ``images.raw`` (K, 512, 512, 3) uint8 with each picture at its top left, ``labels.raw``
(L, 512, 512) uint16 with segment ids, 0 for no segment, and ``index.json``.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from vplab.errors import FailedPrecondition
from vplab.vision.synthesis import synthesize_scene, synthesize_section

CANVAS = 512
NATURAL_SOURCES = ("bsds500", "ecssd", "camvid")
PROCEDURAL = "procedural"
_MIN_COMPONENT_PX = 60
_CAMVID_THINGS = (3, 7, 9, 10, 11)
"""Pole, sign, car, pedestrian, bicyclist: connected components are taken for objects; other classes stay whole."""

Labelled = tuple[str, NDArray[np.uint8], list[NDArray[np.uint16]]]
"""Id, RGB image (H, W, 3), and one segment map (H, W) per annotator."""


@dataclass(frozen=True)
class Entry:
    """One cached image."""

    id: str
    size_hw: tuple[int, int]
    label_rows: tuple[int, ...]
    """Rows of ``labels.raw``: one per annotator."""


@dataclass(frozen=True)
class Source:
    """A cached source, opened read-only."""

    name: str
    entries: tuple[Entry, ...]
    images: NDArray[np.uint8]
    labels: NDArray[np.uint16]


def held_out_ids(source: str) -> frozenset[str]:
    """Return the ids that no training step may see; empty for a source that is generated."""
    if source not in NATURAL_SOURCES:
        return frozenset()
    text = resources.files(__package__).joinpath("held_out", f"{source}.txt").read_text()
    return frozenset(text.split())


def read_natural(data_dir: Path, source: str, *, held_out: bool) -> Iterator[Labelled]:
    """Read one natural source, either its held-out part or all the rest.

    Raises FailedPrecondition if the folder is absent.
    """
    folder = data_dir / source
    if not (folder / "filelist.csv").is_file():
        raise FailedPrecondition(f"training data is missing: no {source}/filelist.csv in the data directory")
    excluded = held_out_ids(source)
    with (folder / "filelist.csv").open() as file:
        ids = [row["id"] for row in csv.DictReader(file)]
    for image_id in ids:
        if (image_id in excluded) == held_out:
            image = cv2.imread(str(folder / "images" / f"{image_id}.jpg"), cv2.IMREAD_COLOR)
            paths = sorted((folder / "masks").glob(f"{image_id}_a*.png")) or [folder / "masks" / f"{image_id}.png"]
            masks = [cv2.imread(str(p), cv2.IMREAD_UNCHANGED) for p in paths]
            if image is None or any(m is None for m in masks):
                raise FailedPrecondition(f"training data is damaged: {source} {image_id}")
            yield image_id, image[..., ::-1].astype(np.uint8), [_SEGMENTS[source](m) for m in masks if m is not None]


def _bsds_segments(mask: NDArray[np.generic]) -> NDArray[np.uint16]:
    return mask.astype(np.uint16)


def _ecssd_segments(mask: NDArray[np.generic]) -> NDArray[np.uint16]:
    return (np.asarray(mask) > 127).astype(np.uint16)


def _camvid_segments(mask: NDArray[np.generic]) -> NDArray[np.uint16]:
    classes = np.asarray(mask).astype(np.int32)
    segments = np.zeros(classes.shape, np.uint16)
    next_id = 1
    for value in np.unique(classes[classes > 0]):
        region = (classes == value).astype(np.uint8)
        if value not in _CAMVID_THINGS:
            segments[region > 0] = next_id
            next_id += 1
            continue
        count, components, stats, _ = cv2.connectedComponentsWithStats(region, connectivity=8)
        for component in range(1, count):
            if stats[component, cv2.CC_STAT_AREA] >= _MIN_COMPONENT_PX:
                segments[components == component] = next_id
                next_id += 1
    return segments


_SEGMENTS: dict[str, Callable[[NDArray[np.generic]], NDArray[np.uint16]]] = {
    "bsds500": _bsds_segments,
    "ecssd": _ecssd_segments,
    "camvid": _camvid_segments,
}


def write_cache(folder: Path, labelled: Iterable[Labelled]) -> int:
    """Write one source's arrays and return the number of images; larger pictures shrink to the canvas."""
    folder.mkdir(parents=True, exist_ok=True)
    entries: list[Entry] = []
    rows = 0
    # Raw, not .npy: the number of rows is known only at the end, and that header needs it first.
    with (folder / "images.raw").open("wb") as images, (folder / "labels.raw").open("wb") as labels:
        for image_id, image, maps in labelled:
            image, maps = _fit(image, maps)
            height, width = image.shape[:2]
            canvas = np.zeros((CANVAS, CANVAS, 3), np.uint8)
            canvas[:height, :width] = image
            images.write(canvas.tobytes())
            for segments in maps:
                plane = np.zeros((CANVAS, CANVAS), np.uint16)
                plane[:height, :width] = segments
                labels.write(plane.tobytes())
            entries.append(Entry(image_id, (height, width), tuple(range(rows, rows + len(maps)))))
            rows += len(maps)
    (folder / "index.json").write_text(json.dumps([asdict(e) for e in entries]))
    return len(entries)


def _fit(
    image: NDArray[np.uint8], maps: list[NDArray[np.uint16]]
) -> tuple[NDArray[np.uint8], list[NDArray[np.uint16]]]:
    height, width = image.shape[:2]
    scale = CANVAS / max(height, width)
    if scale >= 1:
        return image, maps
    size = (min(CANVAS, round(width * scale)), min(CANVAS, round(height * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
    return small, [cv2.resize(m, size, interpolation=cv2.INTER_NEAREST).astype(np.uint16) for m in maps]


def open_cache(folder: Path) -> Source:
    """Open a cached source. Raises FailedPrecondition if it was not written yet."""
    if not (folder / "index.json").is_file():
        raise FailedPrecondition(f"source {folder.name} is not cached yet: run the prepare step first")
    raw = json.loads((folder / "index.json").read_text())
    entries = tuple(Entry(e["id"], (e["size_hw"][0], e["size_hw"][1]), tuple(e["label_rows"])) for e in raw)
    num_labels = sum(len(e.label_rows) for e in entries)
    images = np.memmap(folder / "images.raw", np.uint8, "r", shape=(len(entries), CANVAS, CANVAS, 3))
    labels = np.memmap(folder / "labels.raw", np.uint16, "r", shape=(num_labels, CANVAS, CANVAS))
    return Source(folder.name, entries, images, labels)


def generate_procedural(count: int, seed: int) -> Iterator[Labelled]:
    """Generate labelled pictures of 512 pixels, one in five the section of a granular material.

    In one of four all instances of a class are one segment.
    """
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        size_hw = (CANVAS, CANVAS) if index % 2 else (int(rng.integers(256, CANVAS)), CANVAS)
        scene = synthesize_section(size_hw, rng) if index % 5 == 4 else synthesize_scene(size_hw, rng)
        segments = scene.segments
        if index % 4 == 0:
            classes = sorted(set(scene.class_names))
            lookup = np.array([0, *(1 + classes.index(name) for name in scene.class_names)], np.uint16)
            segments = lookup[segments]
        yield f"{index:05d}", scene.image_rgb, [segments]
