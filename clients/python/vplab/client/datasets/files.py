"""The files of a data set version: ``dataset.json``, and the pictures and masks it names.

``images/NNNNNN.<ext>`` are the images as they came; ``masks/NNNNNN_cCCC.png`` has one bit a pixel. A class that is not
on an image has no file there.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from vplab.client.datasets.checks import check_dataset
from vplab.client.datasets.names import suffix_of
from vplab.client.datasets.values import Dataset, DatasetItem, DatasetLimits, PackedMasks
from vplab.client.segmentation.values import SegmentClass
from vplab.errors import InvalidInput
from vplab.vision.mask_formats import mask_to_png, png_to_mask

INDEX: Final = "dataset.json"
_SCHEMA: Final = 1


def dataset_index(dataset: Dataset) -> dict[str, Any]:
    """Return the content of ``dataset.json``."""
    return {
        "schema": _SCHEMA,
        "classes": [{"class_id": c.class_id, "display_name": c.display_name} for c in dataset.classes],
        "images": [
            {
                "file_name": item.file_name,
                "image": _image_path(index, item),
                "height": item.size_hw[0],
                "width": item.size_hw[1],
                "masks": [{"class_id": class_id, "mask": _mask_path(index, class_id)} for class_id in item.masks],
            }
            for index, item in enumerate(dataset.items)
        ],
    }


def dataset_files(dataset: Dataset) -> Iterator[tuple[str, bytes]]:
    """Yield path and content of each file of a version, the index last."""
    for index, item in enumerate(dataset.items):
        yield _image_path(index, item), item.image
        for class_id, mask in item.masks.items():
            yield _mask_path(index, class_id), mask_to_png(mask, bits=1)
    yield INDEX, json.dumps(dataset_index(dataset), indent=1).encode()


def read_dataset(folder: str | Path, limits: DatasetLimits | None = None) -> Dataset:
    """Read a data set from the files of a version, such as a snapshot's folder.

    Raises InvalidInput naming the file that is missing, damaged or does not fit the others.
    """
    root = Path(folder)
    index = _read_index(root)
    try:
        classes = tuple(SegmentClass(int(c["class_id"]), str(c["display_name"])) for c in index["classes"])
        items = tuple(_read_item(root, entry, limits or DatasetLimits()) for entry in index["images"])
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"{INDEX} is not the index of a data set: {error!r}", field=INDEX) from error
    dataset = Dataset(classes, items)
    check_dataset(dataset, limits)
    return dataset


def _read_index(root: Path) -> dict[str, Any]:
    try:
        index = json.loads(_read(root, INDEX))
    except ValueError as error:
        raise InvalidInput(f"{INDEX} is not JSON: {error}", field=INDEX) from error
    if not isinstance(index, dict) or index.get("schema") != _SCHEMA:
        raise InvalidInput(f"{INDEX} is not the index of a data set of schema {_SCHEMA}", field=INDEX)
    return index


def _read_item(root: Path, entry: dict[str, Any], limits: DatasetLimits) -> DatasetItem:
    masks = {}
    for named in entry["masks"]:
        path = str(named["mask"])
        try:
            masks[int(named["class_id"])] = png_to_mask(_read(root, path), max_pixels=limits.image.max_pixels)
        except InvalidInput as error:
            raise InvalidInput(f"{path}: {error.message}", field=path) from error
    size_hw = (int(entry["height"]), int(entry["width"]))
    return DatasetItem(str(entry["file_name"]), _read(root, str(entry["image"])), size_hw, PackedMasks(masks))


def _read(root: Path, path: str) -> bytes:
    full = (root / path).resolve()
    if not full.is_relative_to(root.resolve()):
        raise InvalidInput(f"{path} is not below the data set's folder", field=path)
    try:
        return full.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror or error}", field=path) from error


def _image_path(index: int, item: DatasetItem) -> str:
    return f"images/{index:06d}.{suffix_of(item.image)}"


def _mask_path(index: int, class_id: int) -> str:
    return f"masks/{index:06d}_c{class_id:03d}.png"
