"""Choosing the images to learn from."""

import hashlib
from collections.abc import Mapping, Set
from dataclasses import replace
from pathlib import PurePath

from vplab.client.datasets.values import Dataset, DatasetItem
from vplab.errors import InvalidInput

MIN_SHOT_PX = 32
"""A shot shows at least this many pixels of a class: nobody teaches with a speck."""


def choose_shots(dataset: Dataset, num_shots: int, seed: int = 0) -> Dataset:
    """Return a data set of ``num_shots`` images that together show every class, in the order of ``shot_order``.

    More shots of one seed contain fewer; the order is that of ``vplab evaluate``. Raises InvalidInput where no image
    shows a class, where so few cannot show every class, and where there are not so many.
    """
    shown = {PurePath(item.file_name).stem: _shown(item) for item in dataset.items}
    wanted = {item.class_id for item in dataset.classes}
    order, num_needed = shot_order(shown, wanted, seed)
    if not order:
        everywhere: set[int] = set().union(*shown.values())
        lacking = ", ".join(c.display_name for c in dataset.classes if c.class_id not in everywhere)
        raise InvalidInput(f"no image shows {MIN_SHOT_PX} pixels of {lacking}: there is no shot", field="--shots")
    if num_shots > len(order) or num_shots < 1:
        message = f"{len(order)} of {len(dataset.items)} images show a class; {num_shots} shots were asked for"
        raise InvalidInput(message, field="--shots")
    if num_shots < num_needed:
        message = f"{num_shots} shots cannot show all {len(wanted)} classes, which no image shows together: "
        raise InvalidInput(f"{message}at least {num_needed} are needed", field="--shots")
    items = {PurePath(item.file_name).stem: item for item in dataset.items}
    return replace(dataset, items=tuple(items[name] for name in order[:num_shots]))


def shot_order(shown: Mapping[str, Set[int]], wanted: Set[int], seed: int) -> tuple[list[str], int]:
    """Return the images in the order in which they become shots, and how many of the first together show every class.

    shown: an image's name, without its suffix, to the classes on it. First come as many images as cover the classes,
    each with the most classes that are still missing; where an image shows all, that is one. Then come the others that
    show all, then those that show some; those without any are left out. What is equal goes by sha256 of seed and name,
    so that the order is the same everywhere and images of one class have one order. Empty where a class is nowhere.
    """
    ranked = sorted((name for name in shown if shown[name] & wanted), key=lambda name: _rank(name, seed))
    cover: list[str] = []
    missing = set(wanted)
    while missing:
        best = max(ranked, key=lambda name: len(shown[name] & missing), default=None)  # the first of equals
        if best is None or not shown[best] & missing:
            return [], 0
        cover.append(best)
        missing -= shown[best]
    rest = [name for name in ranked if name not in cover]
    return [*cover, *sorted(rest, key=lambda name: not shown[name] >= wanted)], len(cover)


def _shown(item: DatasetItem) -> set[int]:
    return {class_id for class_id, mask in item.masks.items() if int(mask.sum()) >= MIN_SHOT_PX}


def _rank(name: str, seed: int) -> bytes:
    return hashlib.sha256(f"seed {seed}\n{name}".encode()).digest()
