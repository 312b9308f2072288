"""What an adapter changed: a data set's images with the masks before and after, and how well they agree."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from vplab.cli.pictures import Cell, contact_sheet, overlay
from vplab.client import AsyncClient, ObjectPrompt
from vplab.client.datasets import Dataset, DatasetItem
from vplab.vision.images import decode_image
from vplab.vision.simulated_clicks import tight_box

_MAX_BOXES = 16
"""Pieces of a class that get a box of their own, the largest first: as many as a person would draw."""


@dataclass(frozen=True, eq=False)
class Compared:
    """One image before and after."""

    item: DatasetItem
    before: NDArray[np.uint8]
    """(H, W) class ids that the base segmenter gives."""
    after: NDArray[np.uint8]
    iou_before: float
    """Mean over the classes that are on the image."""
    iou_after: float
    was_tuned_on: bool


@dataclass(frozen=True)
class Comparing:
    """The models to compare, and how they are prompted."""

    client: AsyncClient
    segmenter: str
    adapter: str
    """Exact versions."""
    prompt_set: str = ""
    """Images are segmented with it; empty gives every piece of a checked mask its box as the prompt."""

    async def compare(self, dataset: Dataset, names_tuned_on: frozenset[str], max_images: int) -> list[Compared]:
        """Compare on images that were not tuned on, as far as there are some."""
        order = sorted(
            (item for item in dataset.items if item.masks), key=lambda item: item.file_name in names_tuned_on
        )
        return [await self._compare(item, item.file_name in names_tuned_on) for item in order[:max_images]]

    async def _compare(self, item: DatasetItem, was_tuned_on: bool) -> Compared:
        before, after = [await self._segment(item, adapter) for adapter in ("", self.adapter)]
        return Compared(item, before, after, _agreement(item, before), _agreement(item, after), was_tuned_on)

    async def _segment(self, item: DatasetItem, adapter: str) -> NDArray[np.uint8]:
        segmentation = self.client.segmentation
        if self.prompt_set:
            found = await segmentation.segment_image(item.image, self.prompt_set, adapter=adapter)
            return found.label_image()
        labels = np.zeros(item.size_hw, np.uint8)
        for class_id, mask in item.masks.items():
            prediction = await segmentation.predict_masks(
                item.image, _boxes(mask), segmenter=self.segmenter, adapter=adapter
            )
            for best, *_rest in prediction.objects:
                labels[best.mask] = class_id
        return labels


def before_after_sheet(compared: Sequence[Compared]) -> NDArray[np.uint8]:
    """Return a picture with a row for each image: its checked mask, before and after. At least one image."""
    cells = []
    for pair in compared:
        image = decode_image(pair.item.image)
        truth = np.zeros(pair.item.size_hw, np.uint8)
        for class_id, mask in pair.item.masks.items():
            truth[mask] = class_id
        role = "tuned on" if pair.was_tuned_on else "not tuned on"
        cells += [
            Cell(overlay(image, truth), f"{pair.item.file_name}, checked, {role}"),
            Cell(overlay(image, pair.before), f"before, IoU {pair.iou_before:.2f}"),
            Cell(overlay(image, pair.after), f"after, IoU {pair.iou_after:.2f}"),
        ]
    return contact_sheet(cells, columns=3)


def _boxes(mask: NDArray[np.bool_]) -> list[ObjectPrompt]:
    count, pieces, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    largest = sorted(range(1, count), key=lambda piece: -int(stats[piece, cv2.CC_STAT_AREA]))[:_MAX_BOXES]
    return [ObjectPrompt(box_xyxy=tight_box(pieces == piece)) for piece in largest]


def _agreement(item: DatasetItem, labels: NDArray[np.uint8]) -> float:
    ious = []
    for class_id, mask in item.masks.items():
        found = labels == class_id
        ious.append(float((found & mask).sum() / (found | mask).sum()))
    return float(np.mean(ious))
