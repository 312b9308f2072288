"""The pictures of ``vplab demo``."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vplab.cli.demo_rounds import DemoImage, Round, Segmented, iou
from vplab.cli.pictures import Cell, contact_sheet, overlay
from vplab.cli.prompting import Clicks

_MAX_ROWS = 10


def found_sheet(
    reference: DemoImage,
    clicks: Clicks,
    mask: NDArray[np.bool_],
    mask_iou: float,
    targets: Sequence[DemoImage],
    found: Segmented,
) -> NDArray[np.uint8]:
    """Each image as it is, and beside it with what was found; the reference with its clicks first."""
    drawn = overlay(reference.image.image_rgb, mask.astype(np.uint8), clicks.points_xy, clicks.labels)
    num_clicks = len(clicks.points_xy)
    cells = [
        Cell(reference.image.image_rgb, "reference image"),
        Cell(drawn, f"{num_clicks} click{'s' if num_clicks > 1 else ''}, IoU {mask_iou:.2f}"),
    ]
    done = [target for target in targets if target.file.key in found.labels]
    for number, (target, value) in enumerate(zip(done, found.ious(done), strict=True), start=1):
        cells.append(Cell(target.image.image_rgb, f"image {number}"))
        cells.append(Cell(overlay(target.image.image_rgb, found.labels[target.file.key]), f"found, IoU {value:.2f}"))
    return contact_sheet(cells[:12], columns=4, cell_px=200)


def rounds_sheet(test: Sequence[DemoImage], prompted: Segmented, rounds: Sequence[Round]) -> NDArray[np.uint8]:
    """A row for each test image: its true mask, what prompting alone found, and what each round found."""
    steps = [("prompted", prompted), *((f"{r.num_corrected} corrected", r.tested) for r in rounds)]
    cells = []
    for target in test[:_MAX_ROWS]:
        image, truth = target.image.image_rgb, target.image.mask
        cells.append(Cell(overlay(image, truth.astype(np.uint8)), f"{target.file.key}, truth"))
        for name, found in steps:
            labels = found.labels.get(target.file.key)
            if labels is None:
                cells.append(Cell(image, f"{name}: failed"))
            else:
                cells.append(Cell(overlay(image, labels), f"{name}, IoU {iou(labels == 1, truth):.2f}"))
    return contact_sheet(cells, columns=1 + len(steps), cell_px=220)
