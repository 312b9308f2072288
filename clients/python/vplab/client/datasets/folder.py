"""Data sets as folders that people edit: ``images/NAME.*`` beside ``masks/NAME.*``, as ``vplab segment`` writes."""

import csv
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vplab.client.datasets.checks import Problems, check_amount, check_classes, check_duplicates
from vplab.client.datasets.names import SUFFIXES, picture_names, write_new
from vplab.client.datasets.values import MAX_CLASSES, Dataset, DatasetItem, DatasetLimits, PackedMasks
from vplab.client.segmentation.values import SegmentClass
from vplab.errors import InvalidInput
from vplab.vision.images import decode_image
from vplab.vision.label_images import decode_edited_labels, label_png
from vplab.vision.lossy_masks import is_lossy, lossy_mask

CLASSES_FILE = "classes.csv"
_CLASS_TABLES = (CLASSES_FILE, "results.csv")


def read_folder(
    folder: str | Path,
    *,
    classes: Sequence[SegmentClass] = (),
    is_binary: bool | None = None,
    limits: DatasetLimits | None = None,
) -> Dataset:
    """Read and check pairs of an image and its mask.

    A mask holds class ids (grey or palette), or the classes' colours, or is binary. classes: empty reads them from
    ``classes.csv`` or ``results.csv`` (columns class_id and class) and else takes those that the masks hold.
    is_binary: any value but 0 is the one class (of JPEG and WebP, any above 127); None finds out: masks of nothing but
    0 and 255 are, in JPEG and WebP but for the edges; other lossy masks are refused.
    Raises InvalidInput with a violation for each file that is wrong.
    """
    root = Path(folder)
    limits = limits or DatasetLimits()
    problems = Problems()
    pairs = _pairs(root, problems)
    known = tuple(sorted(classes or _read_classes(root), key=lambda item: item.class_id))
    if known:
        check_classes(known, problems)
    if is_binary and len(known) > 1:
        problems.add("classes", f"binary masks have one class, not {len(known)}")
    check_amount([image.stat().st_size for image, _ in pairs], limits, problems)
    problems.raise_if_any()
    read = []
    for image, mask in pairs:
        found = _read_pair(root, image, mask, is_binary, limits, problems)
        if found is not None:
            read.append(found)
    check_duplicates([(item.file_name, item.image) for item, _ in read], problems)
    problems.raise_if_any()
    return _assemble(read, known, is_binary, problems)


def write_folder(dataset: Dataset, folder: str | Path) -> None:
    """Write ``images/``, ``masks/NAME.png`` with class ids and colours, and ``classes.csv``, as ``read_folder`` reads.

    Raises InvalidInput where classes overlap, which a label image cannot hold, or the folder cannot be written,
    FailedPrecondition where a file is there already.
    """
    root = Path(folder)
    names = picture_names(dataset.items)
    for item in dataset.items:
        cover = np.zeros(item.size_hw, np.uint8)
        for mask in item.masks.values():
            cover += mask
        if cover.max() > 1:
            raise InvalidInput(f"classes overlap on {item.file_name}: export it as COCO", field=item.file_name)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["class_id", "class"])
    writer.writerows([item.class_id, item.display_name] for item in dataset.classes)
    write_new(root / CLASSES_FILE, table.getvalue().encode())
    for name, item in zip(names, dataset.items, strict=True):
        labels = np.zeros(item.size_hw, np.uint8)
        for class_id, mask in item.masks.items():
            labels[mask] = class_id
        write_new(root / "images" / name, item.image)
        write_new(root / "masks" / f"{Path(name).stem}.png", label_png(labels))


Read = tuple[DatasetItem, str]
"""An item whose masks hold every value of its mask file, and that file's name."""


def _pairs(root: Path, problems: Problems) -> list[tuple[Path, Path]]:
    images, masks = (_pictures(root / name, problems) for name in ("images", "masks"))
    problems.raise_if_any()
    by_stem: dict[str, Path] = {}
    for mask in masks:
        first = by_stem.setdefault(mask.stem, mask)
        if first is not mask:
            problems.add(_key(root, mask), f"{_key(root, first)} is a mask of the same image")
    stems = {image.stem for image in images}
    for image in images:
        if image.stem not in by_stem:
            problems.add(_key(root, image), f"has no mask masks/{image.stem}.png")
    for stem, mask in by_stem.items():
        if stem not in stems:
            problems.add(_key(root, mask), f"has no image images/{stem}.*")
    return [(image, by_stem[image.stem]) for image in images if image.stem in by_stem]


def _pictures(folder: Path, problems: Problems) -> list[Path]:
    if not folder.is_dir():
        problems.add(folder.name, f"{folder} is no folder; a data set is images/NAME.* beside masks/NAME.png")
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def _read_classes(root: Path) -> list[SegmentClass]:
    path = next((root / name for name in _CLASS_TABLES if (root / name).is_file()), None)
    if path is None:
        return []
    names: dict[int, str] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for row in csv.DictReader(file):
                names.setdefault(int(row["class_id"]), row["class"])
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise InvalidInput(
            f"{path} has no columns class_id and class that can be read: {error}", field=path.name
        ) from error
    return [SegmentClass(class_id, name) for class_id, name in names.items()]


def _read_pair(
    root: Path, image: Path, mask: Path, is_binary: bool | None, limits: DatasetLimits, problems: Problems
) -> Read | None:
    before = len(problems)
    try:
        data = image.read_bytes()
        height, width = decode_image(data, limits.image).shape[:2]
    except OSError as error:
        problems.add(_key(root, image), f"cannot be read: {error.strerror or error}")
    except InvalidInput as error:
        problems.add_error(_key(root, image), error)
    try:
        labels = _labels(mask.read_bytes(), is_binary, limits)
    except OSError as error:
        problems.add(_key(root, mask), f"cannot be read: {error.strerror or error}")
    except InvalidInput as error:
        problems.add_error(_key(root, mask), error)
    if len(problems) > before:
        return None
    if labels.shape != (height, width):
        size = f"{labels.shape[1]} x {labels.shape[0]}"
        problems.add(_key(root, mask), f"is {size}, its image {_key(root, image)} {width} x {height}")
        return None
    masks = PackedMasks({value: labels == value for value in np.unique(labels).tolist() if value})
    return DatasetItem(image.name, data, (height, width), masks), _key(root, mask)


def _labels(data: bytes, is_binary: bool | None, limits: DatasetLimits) -> NDArray[np.uint8]:
    if is_lossy(data):
        return np.where(lossy_mask(data, limits.image, is_binary=is_binary), 255, 0).astype(np.uint8)
    if not is_binary:
        return decode_edited_labels(data, limits.image)
    return np.where(decode_edited_labels(data, limits.image) > 0, 255, 0).astype(np.uint8)


def _assemble(
    read: Sequence[Read], known: tuple[SegmentClass, ...], is_binary: bool | None, problems: Problems
) -> Dataset:
    values = {value for item, _ in read for value in item.masks}
    ids = {item.class_id for item in known}
    if not values:
        raise InvalidInput("no mask holds any class: there is nothing to learn from", field="masks")
    if is_binary is None and values == {MAX_CLASSES} and MAX_CLASSES not in ids and len(ids) <= 1:
        is_binary = True
    if is_binary:
        classes = known or (SegmentClass(1, "foreground"),)
        class_id = classes[0].class_id
        items = [
            replace(item, masks=PackedMasks({class_id: item.masks[MAX_CLASSES]} if item.masks else {}))
            for item, _ in read
        ]
        return Dataset(classes, tuple(items))
    for item, mask_file in read:
        foreign = sorted(set(item.masks) - ids) if ids else []
        if foreign:
            listed = ", ".join(map(str, foreign[:10]))
            known_ids = ", ".join(map(str, sorted(ids)))
            problems.add(mask_file, f"holds class {listed}; the classes are {known_ids}")
    problems.raise_if_any()
    classes = known or tuple(SegmentClass(class_id, f"class {class_id}") for class_id in sorted(values))
    return Dataset(classes, tuple(item for item, _ in read))


def _key(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()
