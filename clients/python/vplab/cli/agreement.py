"""How well masks agree with what people marked."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vplab.cli.folder_run import mask_path
from vplab.cli.journal import Entry
from vplab.errors import InvalidInput
from vplab.vision.label_images import read_labels


@dataclass(frozen=True)
class ClassAgreement:
    """Agreement of one class over a set of images."""

    class_id: int
    miou: float | None
    """Mean over the images that hold the class of intersection / union; None when none does."""
    pooled_iou: float | None
    """Intersections of all images over unions of all images; None when both are empty everywhere."""
    num_images: int
    num_with_class: int
    num_missed: int
    """Images that hold the class where nothing of it was found."""
    num_false_alarms: int
    """Images without the class where some was found."""


def compare(
    pairs: Iterable[tuple[NDArray[np.uint8], NDArray[np.uint8]]], class_ids: Sequence[int]
) -> list[ClassAgreement]:
    """Compare (found, truth) label images of equal sizes, (H, W) uint8 each, class by class."""
    sums = {class_id: _Sums() for class_id in class_ids}
    for found, truth in pairs:
        for class_id, total in sums.items():
            total.add(found == class_id, truth == class_id)
    return [total.result(class_id) for class_id, total in sums.items()]


def compare_run(
    out: Path, entries: Iterable[Entry], truth: Path, class_ids: Sequence[int], *, is_binary: bool
) -> tuple[list[ClassAgreement], list[str]]:
    """Compare a run's masks with a folder of label images of the same names; also return images without a truth.

    is_binary: any value but 0 is the one class. Raises InvalidInput for a truth that is unreadable or of another size.
    """
    if is_binary and len(class_ids) != 1:
        raise InvalidInput("a binary truth needs a prompt set with one class", field="--truth-is-binary")
    files = {path.stem: path for path in sorted(truth.iterdir()) if path.is_file()} if truth.is_dir() else {}
    if not files:
        raise InvalidInput(f"{truth} is no folder with label images", field="--truth")
    missing: list[str] = []

    def pairs() -> Iterable[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
        for entry in entries:
            path = files.get(Path(entry.image).stem)
            if path is None:
                missing.append(entry.image)
                continue
            labels, found = read_labels(path), read_labels(mask_path(out, entry.name))
            if labels.shape != found.shape:
                raise InvalidInput(f"{path} is {labels.shape[::-1]}, its image {found.shape[::-1]}", field="--truth")
            yield found, np.where(labels > 0, class_ids[0], 0).astype(np.uint8) if is_binary else labels

    return compare(pairs(), class_ids), missing


def figures(agreements: Sequence[ClassAgreement]) -> Mapping[str, Any]:
    """Return the agreement as JSON, with the mean over the classes."""
    known = [agreement.miou for agreement in agreements if agreement.miou is not None]
    return {
        "miou": float(np.mean(known)) if known else None,
        "classes": [asdict(agreement) for agreement in agreements],
    }


class _Sums:
    def __init__(self) -> None:
        self.ious: list[float] = []
        self.intersection = self.union = self.images = self.missed = self.false_alarms = 0

    def add(self, found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> None:
        intersection, union = int((found & truth).sum()), int((found | truth).sum())
        self.images += 1
        self.intersection += intersection
        self.union += union
        if truth.any():
            self.ious.append(intersection / union)
            self.missed += not found.any()
        else:
            self.false_alarms += bool(found.any())

    def result(self, class_id: int) -> ClassAgreement:
        return ClassAgreement(
            class_id=class_id,
            miou=float(np.mean(self.ious)) if self.ious else None,
            pooled_iou=self.intersection / self.union if self.union else None,
            num_images=self.images,
            num_with_class=len(self.ious),
            num_missed=self.missed,
            num_false_alarms=self.false_alarms,
        )
