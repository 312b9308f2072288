"""What makes a data set wrong, reported file by file."""

import hashlib
from collections.abc import Iterable
from pathlib import PurePosixPath

from vplab.client.datasets.values import MAX_CLASSES, Dataset, DatasetLimits
from vplab.client.segmentation.values import SegmentClass
from vplab.errors import FieldViolation, InvalidInput
from vplab.vision.images import read_size_hw

_MAX_NAMED = 100
_MAX_IN_MESSAGE = 5
_MAX_NAME = 500
_MAX_DISPLAY_NAME = 200


class Problems:
    """Collects what is wrong, so that its author learns everything at once."""

    def __init__(self) -> None:
        """Begin with none."""
        self._found: list[FieldViolation] = []

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._found)

    def add(self, file: str, description: str) -> None:
        """Note what is wrong with a file."""
        self._found.append(FieldViolation(file, description))

    def add_error(self, file: str, error: InvalidInput) -> None:
        """Note why a file was refused."""
        self.add(file, error.message)

    def raise_if_any(self) -> None:
        """Raise InvalidInput that names the first hundred files."""
        if not self._found:
            return
        named = "; ".join(f"{v.field}: {v.description}" for v in self._found[:_MAX_IN_MESSAGE])
        rest = len(self._found) - _MAX_IN_MESSAGE
        raise InvalidInput(named + (f"; and {rest} more" if rest > 0 else ""), violations=self._found[:_MAX_NAMED])


def check_dataset(dataset: Dataset, limits: DatasetLimits | None = None) -> None:
    """Check everything that makes a data set fit to learn from; each violation's field is a file's name.

    Raises InvalidInput for no classes, no images, no mask anywhere, sizes that differ between image, header and masks,
    masks of unknown classes or without a pixel, names and images that are there twice, and too much of anything.
    """
    limits = limits or DatasetLimits()
    problems = Problems()
    check_classes(dataset.classes, problems)
    known = {item.class_id for item in dataset.classes}
    for item in dataset.items:
        if not 1 <= len(item.file_name) <= _MAX_NAME:
            problems.add(item.file_name[:80] or "file_name", f"a file name has 1 to {_MAX_NAME} characters")
        try:
            size_hw = read_size_hw(item.image, limits.image)
        except InvalidInput as error:
            problems.add_error(item.file_name, error)
            continue
        if size_hw != tuple(item.size_hw):
            problems.add(item.file_name, f"is {_size(size_hw)}, not {_size(item.size_hw)}")
        for class_id, mask in item.masks.items():
            if class_id not in known:
                problems.add(item.file_name, f"its mask has class {class_id}, which is none of {_listed(known)}")
            if mask.shape != size_hw:
                problems.add(item.file_name, f"its mask is {_size(mask.shape)}, the image {_size(size_hw)}")
            elif not mask.any():
                problems.add(item.file_name, f"its mask of class {class_id} has no pixel; leave the class out")
    check_duplicates([(item.file_name, item.image) for item in dataset.items], problems)
    check_amount([len(item.image) for item in dataset.items], limits, problems)
    if not any(item.masks for item in dataset.items):
        problems.add("masks", "no image holds any class: there is nothing to learn from")
    problems.raise_if_any()


def check_classes(classes: Iterable[SegmentClass], problems: Problems) -> None:
    """Note classes that are too many, without a name, twice, or with an id that is not 1 to 255."""
    seen: set[int] = set()
    for item in classes:
        if not 1 <= item.class_id <= MAX_CLASSES:
            problems.add("classes", f"{item.class_id} is no class id: they are 1 to {MAX_CLASSES}")
        if item.class_id in seen:
            problems.add("classes", f"class {item.class_id} is there twice")
        if not 1 <= len(item.display_name) <= _MAX_DISPLAY_NAME:
            problems.add("classes", f"class {item.class_id} needs a name of 1 to {_MAX_DISPLAY_NAME} characters")
        seen.add(item.class_id)
    if not seen:
        problems.add("classes", "there is no class")


def check_duplicates(files: Iterable[tuple[str, bytes]], problems: Problems) -> None:
    """Note files whose names without suffix are the same, and files with the same bytes."""
    names: dict[str, str] = {}
    digests: dict[bytes, str] = {}
    for name, data in files:
        first = names.setdefault(PurePosixPath(name).with_suffix("").as_posix(), name)
        if first != name:
            problems.add(name, f"has the same name as {first}: which of them is the mask for?")
        digest = hashlib.sha256(data).digest()
        if digest in digests:
            problems.add(name, f"is the same file as {digests[digest]}: an image counts once")
        digests.setdefault(digest, name)


def check_amount(sizes: list[int], limits: DatasetLimits, problems: Problems) -> None:
    """Note an empty set, too many images and too many bytes."""
    if not sizes:
        problems.add("images", "there is no image")
    if len(sizes) > limits.max_images:
        problems.add("images", f"{len(sizes)} images; at most {limits.max_images}")
    if sum(sizes) > limits.max_bytes:
        problems.add("images", f"{sum(sizes):,} bytes in all; at most {limits.max_bytes:,}")


def _size(size_hw: tuple[int, ...]) -> str:
    return " x ".join(str(side) for side in reversed(size_hw))


def _listed(ids: Iterable[int]) -> str:
    return ", ".join(str(class_id) for class_id in sorted(ids)) or "no class"
