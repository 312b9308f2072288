"""Contact sheets of an evaluation: where each method is best and where it is worst."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vplab.cli.pictures import Cell, contact_sheet, overlay, save_picture, thumbnail
from vplab.errors import ResourceExhausted
from vplab.evaluation.run import KEPT_SEED, Measuring, click_prediction, shot_prediction
from vplab.evaluation.summary import image_scores
from vplab.vision.label_images import read_labels

_NUM_EACH = 4
_CELL_PX = 320
_MIN_CELL_PX = 160  # a narrower one has no room for the caption

Labels = NDArray[np.uint8]
Row = tuple[str, float, Path, Callable[[], tuple[NDArray[np.uint8], Labels]]]
"""Image, score, the prediction's file, and what reads the image and its truth."""


def write_sheets(measuring: Measuring, folder: Path) -> None:
    """Write a sheet for each method: image, truth and prediction of its best and its worst images.

    A method that learns is shown with the most shots that were measured. Raises ResourceExhausted.
    """
    results = measuring.results
    for method in dict.fromkeys(score.method for score in results.shots.values()):
        mine = [score for score in results.shots.values() if score.method == method and score.seed == KEPT_SEED]
        most = max((score.num_shots for score in mine), default=0)
        rows: list[Row] = [
            (
                score.image,
                value,
                shot_prediction(measuring.predictions, method, most, score.image),
                _reader(measuring, score.image),
            )
            for value, score in image_scores(score for score in mine if score.num_shots == most)
        ]
        _write(rows, folder / f"{method}-{most}-shots.jpg")
    for method in dict.fromkeys(score.method for score in results.clicks.values()):
        mine_marked = [s for s in results.clicks.values() if s.method == method and s.seed == KEPT_SEED and s.steps]
        most = max((score.num_shots for score in mine_marked), default=0)
        marked = sorted(
            (score for score in mine_marked if score.num_shots == most),
            key=lambda score: (score.steps[-1].iou, score.image, score.class_id),
        )
        rows = [
            (
                score.image,
                score.steps[-1].iou,
                click_prediction(measuring.predictions, method, most, score.class_id, score.image),
                _object_reader(measuring, score.image, score.class_id),
            )
            for score in marked
        ]
        _write(rows, folder / (f"{method}-{most}-shots-objects.jpg" if most else f"{method}-objects.jpg"))


def _reader(measuring: Measuring, image: str) -> Callable[[], tuple[NDArray[np.uint8], Labels]]:
    def read() -> tuple[NDArray[np.uint8], Labels]:
        labelled = measuring.folder.read(image)
        return labelled.image_rgb, labelled.labels

    return read


def _object_reader(measuring: Measuring, image: str, class_id: int) -> Callable[[], tuple[NDArray[np.uint8], Labels]]:
    def read() -> tuple[NDArray[np.uint8], Labels]:
        labelled = measuring.folder.read(image)
        target = next(target for target in measuring.folder.classes if target.class_id == class_id)
        truth = measuring.folder.read_object(image, target, labelled)
        return labelled.image_rgb, np.zeros_like(labelled.labels) if truth is None else truth.astype(np.uint8)

    return read


def _write(rows: Sequence[Row], path: Path) -> None:
    rows = [row for row in rows if row[2].is_file()]
    if not rows:
        return
    best = [*reversed(rows)][: min(_NUM_EACH, -(-len(rows) // 2))]
    worst = rows[: min(_NUM_EACH, len(rows) - len(best))]
    cells = []
    for place, chosen in (("best", best), ("worst", worst)):
        for image, score, prediction, read in chosen:
            picture, truth = read()
            drawn = (picture, overlay(picture, truth), overlay(picture, read_labels(prediction)))
            captions = (f"{place}: {image}", "truth", f"prediction, IoU {score:.2f}")
            cells += [Cell(thumbnail(view, _CELL_PX), caption) for view, caption in zip(drawn, captions, strict=True)]
    side_px = max(max(cell.image_rgb.shape[:2]) for cell in cells)
    try:
        save_picture(contact_sheet(cells, columns=6, cell_px=max(_MIN_CELL_PX, side_px)), path)
    except OSError as error:
        message = f"cannot write {path}: {error.strerror or error}"
        raise ResourceExhausted(message, reason="STORAGE_FULL") from error
