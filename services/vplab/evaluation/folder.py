"""A folder of images/ with true masks/, read, checked and turned into what methods take.

Masks are label images named like their images: values are classes, or with ``is_binary`` anything but 0 is the class.
In JPEG and WebP they are binary, above 127, and are taken without ``is_binary`` only where that is plain to see.
A folder ``instances/`` beside them, where it exists, tells objects of one class apart.
"""

import hashlib
import io
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vplab.errors import FieldViolation, InvalidInput
from vplab.evaluation.values import BoolArray, LabelledImage
from vplab.vision.images import decode_image
from vplab.vision.lossy_masks import is_lossy, lossy_mask
from vplab.vision.measures import largest_piece

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})
_MAX_CLASSES = 20
_MAX_LISTED = 10
# Segments of a full segmentation that stand for objects: no specks, and not most of the picture.
_SEGMENT_SHARE = (0.01, 0.5)

_Pair = tuple[Path, Path | None, Path | None]
"""An image, its mask, and what tells its objects apart."""


@dataclass(frozen=True)
class FolderOptions:
    """How a folder is to be read."""

    values: tuple[int, ...] = ()
    """Mask values to look for, in this order; empty takes all but 0. 0 itself may be a class."""
    is_binary: bool = False
    """Any value but 0 is the one class."""
    is_segments: bool = False
    """Values number segments that mean nothing beyond their image: for clicks and boxes only."""
    mask_suffix: str = ""
    """What a mask's name has after its image's."""
    ids: tuple[str, ...] | None = None
    """Only images of these names, without the ending."""
    limit: int | None = None
    """At most this many images, evenly from the list."""
    max_side: int | None = None
    """Images above this side are reduced to it, with their masks, for every method."""

    @property
    def masks_are_binary(self) -> bool | None:
        """Whether masks have one class; None where each file shows it."""
        return False if self.is_segments else self.is_binary or None


@dataclass(frozen=True)
class TargetClass:
    """One class to be found."""

    class_id: int
    """1, 2, ...: its value in ``LabelledImage.labels``."""
    value: int | None
    """Its value in the mask files; None for any value but 0."""
    name: str


@dataclass(frozen=True)
class FolderImage:
    """One image with its mask, as the first look at the files found them."""

    name: str
    path: Path
    mask_path: Path
    instances_path: Path | None
    size_hw: tuple[int, int]
    """As methods get it: after ``max_side``."""
    num_pixels: dict[int, int]
    """Mask value to its number of pixels in the file."""
    digest: str
    """sha256 of image and mask."""


@dataclass(frozen=True)
class LabelledFolder:
    """All images of a folder, by name, and the classes to find in them."""

    root: Path
    options: FolderOptions
    classes: tuple[TargetClass, ...]
    images: dict[str, FolderImage]

    @property
    def digest(self) -> str:
        """sha256 over the names and bytes of all images and masks."""
        parts = (f"{image.name} {image.digest}" for image in self.images.values())
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def area_of(self, name: str, target: TargetClass) -> int:
        """Return how many pixels of the mask file are of a class."""
        counts = self.images[name].num_pixels
        if target.value is None:
            return sum(count for value, count in counts.items() if value)
        return counts.get(target.value, 0)

    def read(self, name: str) -> LabelledImage:
        """Return an image with its classes. Raises InvalidInput if the files changed for the worse meanwhile."""
        image = self.images[name]
        values = read_values(image.mask_path, self.options.masks_are_binary)
        labels = np.zeros(values.shape, np.uint8)
        for target in self.classes:
            labels[values > 0 if target.value is None else values == target.value] = target.class_id
        pixels = decode_image(image.path.read_bytes())
        if pixels.shape[:2] != labels.shape:
            raise InvalidInput(f"{image.path} changed its size while it was evaluated", field="images")
        return LabelledImage(name, _reduced(pixels, image.size_hw, cv2.INTER_AREA), _to_size(labels, image.size_hw))

    def read_object(self, name: str, target: TargetClass, labelled: LabelledImage) -> BoolArray | None:
        """Return one object's (H, W) mask: the largest instance or connected piece; None where there is none.

        Of a full segmentation it is one segment between 1 and 50 % of the image, picked by the image's name.
        """
        image = self.images[name]
        if self.options.is_segments:
            return self._one_segment(image)
        mask = labelled.mask_of(target.class_id)
        if not mask.any():
            return None
        if image.instances_path is None:
            return largest_piece(mask)
        ids = _to_size(read_values(image.instances_path, False), image.size_hw)
        counts = np.bincount(ids[mask])
        counts[0] = 0
        return largest_piece(mask) if not counts.any() else np.asarray((ids == counts.argmax()) & mask)

    def encoded(self, name: str) -> bytes:
        """Return the picture as a file that decodes to what ``read`` gives: the original unless it was reduced."""
        data = self.images[name].path.read_bytes()
        if self.options.max_side is None:
            return data
        pixels = decode_image(data)
        if pixels.shape[:2] == self.images[name].size_hw:
            return data
        reduced = _reduced(pixels, self.images[name].size_hw, cv2.INTER_AREA)
        return bytes(cv2.imencode(".png", np.ascontiguousarray(reduced[..., ::-1]))[1].tobytes())

    def _one_segment(self, image: FolderImage) -> BoolArray | None:
        values = _to_size(read_values(image.mask_path, False), image.size_hw)
        ids, counts = np.unique(values[values > 0], return_counts=True)
        shares = counts / values.size
        fitting = ids[(shares >= _SEGMENT_SHARE[0]) & (shares <= _SEGMENT_SHARE[1])]
        if not len(fitting):
            return None
        drawn = int(hashlib.sha256(image.name.encode()).hexdigest(), 16) % len(fitting)
        return largest_piece(np.asarray(values == fitting[drawn]))


def read_folder(root: Path, options: FolderOptions) -> LabelledFolder:
    """Look at every file of a folder; cost: each image is decoded once.

    Raises InvalidInput naming the files: images without a mask, unreadable ones, sizes that differ, ids that do not
    exist, classes that no mask holds.
    """
    if options.is_binary and options.values:
        raise InvalidInput("--binary makes one class of all values: leave --classes out", field="--binary")
    pairs = _pairs(root, options)
    images: dict[str, FolderImage] = {}
    problems: list[FieldViolation] = []
    with ThreadPoolExecutor(4) as pool:
        for pair, found in zip(pairs, pool.map(partial(_examine, options), pairs), strict=True):
            if isinstance(found, FolderImage):
                images[found.name] = found
            else:
                problems.append(FieldViolation(str(pair[0].relative_to(root)), found))
    _refuse(problems, f"of {len(pairs)} images cannot be used")
    return LabelledFolder(root, options, _classes(root, options, images.values()), images)


def read_values(path: Path, is_binary: bool | None = None) -> NDArray[np.int32]:
    """Return (H, W) int32 values of a label image of 1, 8 or 16 bits. Raises InvalidInput naming the file.

    is_binary: what a JPEG or WebP is taken for, as ``lossy_mask`` has it; its values then are 0 and 255.
    """
    try:
        data = path.read_bytes()
        if is_lossy(data):
            return np.where(lossy_mask(data, is_binary=is_binary), 255, 0).astype(np.int32)
        with Image.open(io.BytesIO(data)) as image:
            if image.mode == "RGB" and (grey := _grey_of(image)) is not None:
                return grey
            if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
                raise InvalidInput(f"is no label image: its mode is {image.mode}", field=path.name)
            # A 1-bit file's white is 1 in the array and 255 to everybody who looks at it; both are "not 0".
            return np.asarray(image.convert("L") if image.mode == "1" else image).astype(np.int32)
    except (OSError, SyntaxError, ValueError) as error:
        raise InvalidInput(f"cannot be read: {error}", field=path.name) from error


def _grey_of(image: Image.Image) -> NDArray[np.int32] | None:
    """Return the values of a grey picture that was saved in colour; None of a coloured one."""
    colours = np.asarray(image)
    return colours[..., 0].astype(np.int32) if (colours == colours[..., :1]).all() else None


def _pairs(root: Path, options: FolderOptions) -> list[_Pair]:
    for part in ("images", "masks"):
        if not (root / part).is_dir():
            raise InvalidInput(f"{root} has no folder {part}/", field="folder")
    images = _by_name(root / "images")
    masks, instances = _by_name(root / "masks"), _by_name(root / "instances")
    if not images:
        raise InvalidInput(f"no image in {root / 'images'}", field="folder")
    names = sorted(images)
    if options.ids is not None:
        unknown = [name for name in options.ids if name not in images]
        _refuse([FieldViolation(name, "no image of this name") for name in unknown], "of the ids do not exist")
        names = sorted(set(options.ids))
    if options.limit is not None and len(names) > options.limit:
        names = [names[int(index)] for index in np.linspace(0, len(names) - 1, options.limit)]
    return [(images[name], masks.get(name + options.mask_suffix), instances.get(name)) for name in names]


def _by_name(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in SUFFIXES or path.name.startswith(".") or not path.is_file():
            continue
        if path.stem in found:
            raise InvalidInput(f"{found[path.stem].name} and {path.name} have one name", field=str(folder))
        found[path.stem] = path
    return found


def _examine(options: FolderOptions, pair: _Pair) -> FolderImage | str:
    """Return the image as it is found, or what is wrong with it."""
    path, mask_path, instances_path = pair
    if mask_path is None:
        return f"has no mask {path.stem}{options.mask_suffix}.png"
    try:
        data = path.read_bytes()
        size_hw = decode_image(data).shape[:2]
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    except InvalidInput as error:
        return error.message
    digest = hashlib.sha256(data)
    counts: dict[int, int] = {}
    for file in (mask_path, instances_path):
        if file is None:
            continue
        try:
            values = read_values(file, options.masks_are_binary if file is mask_path else False)
        except InvalidInput as error:
            return f"{file.parent.name}/{file.name} {error.message}"
        if values.shape != size_hw:
            seen, wanted = (f"{shape[1]}x{shape[0]}" for shape in (values.shape, size_hw))
            return f"is {wanted}, its {file.parent.name}/{file.name} {seen}"
        digest.update(file.read_bytes())
        if file is mask_path:
            found, numbers = np.unique(values, return_counts=True)
            counts = {int(value): int(number) for value, number in zip(found, numbers, strict=True)}
    scale = 1.0 if options.max_side is None else min(1.0, options.max_side / max(size_hw))
    reduced = (max(1, round(size_hw[0] * scale)), max(1, round(size_hw[1] * scale)))
    return FolderImage(path.stem, path, mask_path, instances_path, reduced, counts, digest.hexdigest())


def _classes(root: Path, options: FolderOptions, images: Iterable[FolderImage]) -> tuple[TargetClass, ...]:
    present = sorted({value for image in images for value in image.num_pixels})
    if options.is_segments:
        return (TargetClass(1, None, "segment"),)
    if options.is_binary:
        if not any(present):
            raise InvalidInput(f"every mask of {root} is empty", field="folder")
        return (TargetClass(1, None, "object"),)
    values: Sequence[int] = options.values or [value for value in present if value]
    missing = [value for value in values if value not in present]
    if missing or not values:
        shown = ", ".join(map(str, present[:_MAX_CLASSES]))
        wanted = ", ".join(map(str, missing)) or "any class"
        raise InvalidInput(f"no mask holds {wanted}; values found: {shown}", field="--classes")
    if len(set(values)) != len(values):
        raise InvalidInput("a class is named twice", field="--classes")
    if len(values) > _MAX_CLASSES:
        message = (
            f"the masks hold {len(values)} values besides 0: name classes with --classes, or say --binary where any "
            "value but 0 is the object"
        )
        raise InvalidInput(message, field="--classes")
    is_one = tuple(values) in ((255,), (1,)) and set(present) <= {0, values[0]}
    return tuple(
        TargetClass(number, value, "object" if is_one else f"class {value}")
        for number, value in enumerate(values, start=1)
    )


def _reduced(pixels: NDArray[np.uint8], size_hw: tuple[int, int], interpolation: int) -> NDArray[np.uint8]:
    if pixels.shape[:2] == size_hw:
        return pixels
    return np.asarray(cv2.resize(pixels, size_hw[::-1], interpolation=interpolation), np.uint8)


def _to_size(values: NDArray[Any], size_hw: tuple[int, int]) -> NDArray[Any]:
    if values.shape == size_hw:
        return values
    kept = values if values.dtype == np.uint8 else values.astype(np.float32)  # OpenCV resizes no int32
    return np.asarray(cv2.resize(kept, size_hw[::-1], interpolation=cv2.INTER_NEAREST_EXACT)).astype(values.dtype)


def _refuse(problems: Sequence[FieldViolation], what: str) -> None:
    if not problems:
        return
    listed = list(problems[:_MAX_LISTED])
    if len(problems) > len(listed):
        listed.append(FieldViolation("...", f"and {len(problems) - len(listed)} more"))
    raise InvalidInput(f"{len(problems)} {what}", violations=listed)
