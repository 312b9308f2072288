"""Choosing the images to learn from."""

import hashlib
from dataclasses import replace
from pathlib import PurePath

from vplab.client.datasets.values import Dataset, DatasetItem
from vplab.errors import InvalidInput

_MIN_SHOT_PX = 32
"""A shot shows at least this many pixels of every class: nobody teaches with a speck."""


def choose_shots(dataset: Dataset, num_shots: int, seed: int = 0) -> Dataset:
    """Return a data set of ``num_shots`` images that show every class, in an order that only names and seed decide.

    More shots of one seed contain fewer; the order is that of ``vplab evaluate``. Raises InvalidInput where too few
    images show every class.
    """
    wanted = [item.class_id for item in dataset.classes]
    candidates = [item for item in dataset.items if _shows_all(item, wanted)]
    if not 1 <= num_shots <= len(candidates):
        message = f"{len(candidates)} of {len(dataset.items)} images show every class; {num_shots} shots were asked for"
        raise InvalidInput(message, field="--shots")
    order = sorted(candidates, key=lambda item: _rank(item.file_name, seed))
    return replace(dataset, items=tuple(order[:num_shots]))


def _shows_all(item: DatasetItem, class_ids: list[int]) -> bool:
    return all(c in item.masks and int(item.masks[c].sum()) >= _MIN_SHOT_PX for c in class_ids)


def _rank(file_name: str, seed: int) -> bytes:
    return hashlib.sha256(f"seed {seed}\n{PurePath(file_name).stem}".encode()).digest()
