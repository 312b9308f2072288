"""Data sets as COCO annotations, which CVAT, Label Studio and most other annotation tools import and export.

Source of the format: cocodataset.org, "Data format", object detection; what its tools make of it: pycocotools.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from vplab.client.datasets.checks import Problems, check_amount, check_dataset
from vplab.client.datasets.names import picture_names, write_new
from vplab.client.datasets.values import MAX_CLASSES, Dataset, DatasetItem, DatasetLimits, PackedMasks
from vplab.client.segmentation.values import SegmentClass
from vplab.errors import InvalidInput
from vplab.vision.images import decode_image
from vplab.vision.mask_formats import (
    coco_polygons_to_mask,
    coco_rle_to_mask,
    mask_to_coco_rle,
    mask_to_polygons,
)

ANNOTATIONS: Final = "annotations.json"
# Label Studio puts eight hex digits before the names of files that were uploaded to it.
_UPLOAD_PREFIX = re.compile(r"[0-9a-f]{8}-")


def write_coco(dataset: Dataset, folder: str | Path, *, tolerance_px: float = 0.0) -> Path:
    """Write ``annotations.json`` beside ``images/`` and return its path; at tolerance 0 nothing is lost.

    Each 4-connected piece of a class is one annotation: a polygon, or run lengths where it has holes. tolerance_px lets
    outlines deviate to save corners. Raises InvalidInput when the folder cannot be written or holds annotations.
    """
    names = picture_names(dataset.items)
    content: dict[str, Any] = {
        "info": {"description": "validated masks"},
        "categories": [{"id": c.class_id, "name": c.display_name, "supercategory": ""} for c in dataset.classes],
        "images": [],
        "annotations": [],
    }
    root = Path(folder)
    for image_id, (name, item) in enumerate(zip(names, dataset.items, strict=True), start=1):
        height, width = item.size_hw
        content["images"].append({"id": image_id, "file_name": name, "height": height, "width": width})
        for class_id, mask in item.masks.items():
            for annotation in _annotations_of(mask, tolerance_px):
                annotation_id = len(content["annotations"]) + 1
                content["annotations"].append(
                    {"id": annotation_id, "image_id": image_id, "category_id": class_id, "iscrowd": 0, **annotation}
                )
        write_new(root / "images" / name, item.image)
    path = root / ANNOTATIONS
    write_new(path, json.dumps(content).encode())
    return path


def read_coco(
    annotations: str | Path,
    images: str | Path | None = None,
    *,
    classes: Sequence[SegmentClass] = (),
    limits: DatasetLimits | None = None,
) -> Dataset:
    """Read COCO annotations and their images; annotations of one class on one image are joined.

    images: folder of the image files, or of their ``images`` folder; None is that of the annotations. classes: where
    given, categories are told apart by name and must be among them; else category ids are class ids, and where one is
    not 1 to 255, as in files that count from 0, the categories are numbered from 1 in the order of their ids.
    Raises InvalidInput with a violation for each annotation and file that is wrong.
    """
    path, limits = Path(annotations), limits or DatasetLimits()
    content = _read_json(path, limits)
    problems = Problems()
    known = _classes_of(content["categories"], classes, problems)
    folder = path.parent if images is None else Path(images)
    subset = path.stem.partition("_")[2]  # CVAT and Datumaro: annotations/instances_default.json, images/default
    pictures = _read_images(content["images"], folder, subset, limits, problems)
    problems.raise_if_any()
    for index, annotation in enumerate(content["annotations"]):
        where = f"annotations[{index}]"
        try:
            _take(annotation, known, pictures, limits)
        except InvalidInput as error:
            problems.add(where, error.message)
        except (KeyError, TypeError, ValueError) as error:
            problems.add(where, f"is no annotation: {error!r}")
    problems.raise_if_any()
    items = tuple(
        DatasetItem(p.name, p.image, p.size_hw, PackedMasks({k: m for k, m in p.masks.items() if m.any()}))
        for p in pictures.values()
    )
    chosen = sorted({item.class_id: item for item in known.values()}.values(), key=lambda item: item.class_id)
    dataset = Dataset(tuple(chosen), items)
    check_dataset(dataset, limits)
    return dataset


@dataclass
class _Picture:
    name: str
    image: bytes
    size_hw: tuple[int, int]
    masks: dict[int, NDArray[np.bool_]] = field(default_factory=dict)


def _annotations_of(mask: NDArray[np.bool_], tolerance_px: float) -> list[dict[str, Any]]:
    annotations = []
    for polygon in mask_to_polygons(mask, tolerance_px=tolerance_px):
        outline = [polygon.exterior.reshape(-1).tolist()]
        piece = coco_polygons_to_mask(outline, mask.shape)
        for hole in polygon.holes:
            piece &= ~coco_polygons_to_mask([hole.reshape(-1).tolist()], mask.shape)
        if not piece.any():
            continue  # a sliver that the tolerance took
        rows, columns = np.flatnonzero(piece.any(axis=1)), np.flatnonzero(piece.any(axis=0))
        left, top = int(columns[0]), int(rows[0])
        annotations.append(
            {
                "segmentation": mask_to_coco_rle(piece) if polygon.holes else outline,
                "area": int(piece.sum()),
                "bbox": [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1],
            }
        )
    return annotations


def _read_json(path: Path, limits: DatasetLimits) -> dict[str, list[Any]]:
    try:
        if path.stat().st_size > limits.max_bytes:
            raise InvalidInput(f"{path} has more than {limits.max_bytes:,} bytes", field=path.name)
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror or error}", field=path.name) from error
    except ValueError as error:
        raise InvalidInput(f"{path} is not JSON: {error}", field=path.name) from error
    parts = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(part), list) for part in parts):
        raise InvalidInput(f"{path} is no COCO file: it needs the lists {', '.join(parts)}", field=path.name)
    return content


def _classes_of(
    categories: Sequence[Any], wanted: Sequence[SegmentClass], problems: Problems
) -> dict[int, SegmentClass]:
    """Return the class of each category id."""
    try:
        names = {int(category["id"]): str(category["name"]) for category in categories}
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"a category lacks its id or name: {error!r}", field="categories") from error
    if wanted:
        by_name = {item.display_name: item for item in wanted}
        for name in names.values():
            if name not in by_name:
                problems.add("categories", f"{name!r} is none of the classes {', '.join(by_name)}")
        return {category_id: by_name[name] for category_id, name in names.items() if name in by_name}
    is_kept = all(1 <= category_id <= MAX_CLASSES for category_id in names)
    return {
        category_id: SegmentClass(category_id if is_kept else number, names[category_id])
        for number, category_id in enumerate(sorted(names), start=1)
    }


def _read_images(
    entries: Sequence[Any], folder: Path, subset: str, limits: DatasetLimits, problems: Problems
) -> dict[int, _Picture]:
    pictures: dict[int, _Picture] = {}
    for index, entry in enumerate(entries):
        where = f"images[{index}]"
        try:
            image_id, name = int(entry["id"]), unquote(str(entry["file_name"])).replace("\\", "/")
            said = (int(entry["height"]), int(entry["width"])) if {"height", "width"} <= set(entry) else None
        except (KeyError, TypeError, ValueError) as error:
            problems.add(where, f"is no image: {error!r}")
            continue
        found = _find(folder, name, subset)
        if found is None:
            problems.add(where, f"there is no file {name} in {folder}")
            continue
        path, shown = found
        try:
            data = path.read_bytes()
            # Not the header alone: a file that was cut off on its way is found here and not when it is trained on.
            height, width = decode_image(data, limits.image).shape[:2]
        except OSError as error:
            problems.add(shown, f"cannot be read: {error.strerror or error}")
            continue
        except InvalidInput as error:
            problems.add_error(shown, error)
            continue
        size_hw = (height, width)
        if said is not None and said != size_hw:
            problems.add(shown, f"is {size_hw[1]} x {size_hw[0]}, its annotations are for {said[1]} x {said[0]}")
        if image_id in pictures:
            problems.add(where, f"the id {image_id} is there twice")
        pictures[image_id] = _Picture(shown, data, size_hw)
    check_amount([len(picture.image) for picture in pictures.values()], limits, problems)
    return pictures


def _find(folder: Path, name: str, subset: str) -> tuple[Path, str] | None:
    """Return the file that a COCO file names and what to call it: below the folder as written, or by its last part."""
    last = re.split(r"/|\?d=", name)[-1]  # Label Studio names files of a local storage /data/local-files/?d=PATH
    written = [name.removeprefix("images/")] if not name.startswith("/") and ".." not in name.split("/") else []
    candidates = [*written, last, _UPLOAD_PREFIX.sub("", last, count=1)]
    places = [*([folder / "images" / subset] if subset else []), folder / "images", folder]
    return next(((p / c, c) for c in candidates for p in places if c and (p / c).is_file()), None)


def _take(
    annotation: Mapping[str, Any],
    classes: Mapping[int, SegmentClass],
    pictures: Mapping[int, _Picture],
    limits: DatasetLimits,
) -> None:
    """Join an annotation to its image's mask. Raises InvalidInput."""
    image_id, category_id = int(annotation["image_id"]), int(annotation["category_id"])
    if image_id not in pictures:
        raise InvalidInput(f"there is no image {image_id}")
    if category_id not in classes:
        raise InvalidInput(f"there is no category {category_id}")
    picture, shape = pictures[image_id], annotation.get("segmentation")
    if isinstance(shape, Mapping):
        mask = coco_rle_to_mask(shape, max_pixels=limits.image.max_pixels)
        if mask.shape != picture.size_hw:
            raise InvalidInput(f"its run lengths are of another size than {picture.name}")
    elif isinstance(shape, list) and shape:
        mask = coco_polygons_to_mask(shape, picture.size_hw)
    else:
        raise InvalidInput(f"has no segmentation on {picture.name}; a box alone is no mask")
    class_id = classes[category_id].class_id
    picture.masks[class_id] = mask | picture.masks.get(class_id, np.False_)
