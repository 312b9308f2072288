"""Measuring one method on one folder: every image that the results do not hold yet."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from vplab.errors import (
    DataLoss,
    DeadlineExceeded,
    Internal,
    InvalidInput,
    ResourceExhausted,
    Unknown,
    VPLabError,
)
from vplab.evaluation.folder import LabelledFolder, TargetClass
from vplab.evaluation.ports import ClickMethod, ClickSession, LearningClickMethod, ShotMethod, ShotPredictor
from vplab.evaluation.results import ClickKey, Results, ShotKey
from vplab.evaluation.scores import NOT_LEARNED, ClickScore, ShotScore, StepScore, score_labels, score_step
from vplab.evaluation.splits import Splits
from vplab.evaluation.values import BoolArray, LabelledImage, RgbArray
from vplab.vision.label_images import label_png
from vplab.vision.simulated_clicks import next_click, tight_box

CLICK_COUNTS = (1, 3, 5)
BOX = "box"
KEPT_SEED = 0
"""Predictions of this seed are kept for people to look at."""

# One image's misfortune; every other kind would meet the next image too and stops the run.
_OF_THE_IMAGE = (InvalidInput, DeadlineExceeded, Internal, Unknown, DataLoss)

Job = TypeVar("Job")
Learned = TypeVar("Learned")
Score = TypeVar("Score")


@dataclass(frozen=True)
class Measuring:
    """Everything that is the same for all methods."""

    folder: LabelledFolder
    splits: Splits
    results: Results
    predictions: Path
    """Where predictions go that people look at."""
    on_image: Callable[[str], None] = lambda message: None
    """Told after each image; the message is empty unless it failed."""

    def measure_shots(
        self,
        method: ShotMethod,
        num_shots: int,
        seed: int,
        propose: Callable[[LabelledImage], LabelledImage] | None = None,
    ) -> None:
        """Let a method learn the first ``num_shots`` shots of a seed and segment every tested image.

        propose: what makes a reference of zero shots: it gets a shot and returns it with labels that nobody corrected.
        Raises what would fail for every image.
        """
        left = [name for name in self.splits.test if not self.results.has_shot((method.name, num_shots, seed, name))]
        if not left:
            return

        def learn(shots: list[LabelledImage]) -> ShotPredictor:
            if num_shots == 0:
                assert propose is not None
                shots = [propose(shot) for shot in shots]
            return method.fit(shots, self._class_ids, seed)

        predictor, failure = self._learn(method.name, num_shots, seed, learn)

        def score(name: str) -> ShotScore:
            return self._segment(predictor, failure, (method.name, num_shots, seed, name))

        for found in _each(left, score, method.num_in_flight):
            self.results.add_shot(found)
            self.on_image(found.error and f"{found.method}, {found.image}: {found.error}")

    def measure_clicks(self, method: ClickMethod) -> None:
        """Mark one object of each class on every tested image that shows it, by a box and by clicks."""
        self._mark_all(method, "", self._unmarked(method.name, 0, 0))

    def measure_learned_clicks(self, method: LearningClickMethod, num_shots: int, seed: int) -> None:
        """Let a method learn the first ``num_shots`` shots of a seed, then mark the same objects with it."""
        left = self._unmarked(method.name, num_shots, seed)
        if not left:
            return

        def learn(shots: list[LabelledImage]) -> ClickMethod:
            return method.learn(shots, self._class_ids, seed)

        self._mark_all(*self._learn(method.name, num_shots, seed, learn), left)

    def telling(self, on_image: Callable[[str], None]) -> "Measuring":
        """Return the same with somebody who is told."""
        return replace(self, on_image=on_image)

    def shot_keys(self, method: str, num_shots: int, seed: int) -> list[ShotKey]:
        """Return what there is to segment."""
        return [(method, num_shots, seed, name) for name in self.splits.test]

    def click_keys(self, method: str, num_shots: int = 0, seed: int = 0) -> list[ClickKey]:
        """Return the objects that there are to mark; the choice of objects is the same for every method."""
        return [
            (method, num_shots, seed, target.class_id, name)
            for target in self.folder.classes
            for name in self.splits.test
            if self.folder.options.is_segments or self.folder.area_of(name, target)
        ]

    @property
    def _class_ids(self) -> list[int]:
        return [target.class_id for target in self.folder.classes]

    def _unmarked(self, method: str, num_shots: int, seed: int) -> list[ClickKey]:
        return [key for key in self.click_keys(method, num_shots, seed) if not self.results.has_click(key)]

    def _learn(
        self, method: str, num_shots: int, seed: int, learn: Callable[[list[LabelledImage]], Learned]
    ) -> tuple[Learned | None, str]:
        """Return what a method has learned, or why it could not. Raises what would fail for every method."""
        shots = [self.folder.read(name) for name in self.splits.shots_of(seed, num_shots)]
        learned, failure = None, ""
        began = time.monotonic()
        try:
            learned = learn(shots)
        except (*_OF_THE_IMAGE, ResourceExhausted) as error:
            if isinstance(error, ResourceExhausted) and error.reason != "MESSAGE_TOO_LARGE":
                raise
            failure = f"{NOT_LEARNED}{_reason(error)}"
        self.results.add_fit(method, num_shots, seed, time.monotonic() - began)
        return learned, failure

    def _mark_all(self, method: ClickMethod | None, failure: str, keys: Sequence[ClickKey]) -> None:
        targets = {target.class_id: target for target in self.folder.classes}

        def score(key: ClickKey) -> ClickScore:
            return self._mark(method, failure, targets[key[3]], key)

        for found in _each(keys, score, 1 if method is None else method.num_in_flight):
            self.results.add_click(found)
            self.on_image(found.error and f"{found.method}, {found.image}: {found.error}")

    def _segment(self, predictor: ShotPredictor | None, failure: str, key: ShotKey) -> ShotScore:
        name, num_shots, seed, image_name = key
        image = self.folder.read(image_name)
        found, error = np.zeros(image.labels.shape, np.uint8), failure
        began = time.monotonic()
        if predictor is not None:
            try:
                answer = predictor.predict(image.image_rgb, image_name)
                _check_size(answer, image.labels, name)
                found = answer
            except _OF_THE_IMAGE as caught:
                error = caught.message
        seconds = round(time.monotonic() - began, 4)
        if seed == KEPT_SEED and not error:
            _keep(found, shot_prediction(self.predictions, name, num_shots, image_name))
        classes = score_labels(found, image.labels, self._class_ids)
        return ShotScore(name, num_shots, seed, image_name, classes, seconds, error)

    def _mark(self, method: ClickMethod | None, failure: str, target: TargetClass, key: ClickKey) -> ClickScore:
        name, num_shots, seed, class_id, image_name = key
        image = self.folder.read(image_name)
        truth = self.folder.read_object(image_name, target, image)
        steps: list[StepScore] = []
        seconds: dict[str, float] = {}

        def scored(steps: Sequence[StepScore], error: str = "") -> ClickScore:
            return ClickScore(name, class_id, image_name, tuple(steps), seconds, error, num_shots, seed)

        if truth is None or not truth.any():
            return scored(())
        if method is None:
            return scored(_nothing(takes_clicks=True), failure)
        try:
            mask = _box(method.open(image.image_rgb, image_name), truth, steps, seconds)
            if method.takes_clicks:
                mask = _click(method.open(image.image_rgb, image_name), truth, steps, seconds)
        except _OF_THE_IMAGE as caught:
            return scored(_nothing(takes_clicks=method.takes_clicks), caught.message)
        if seed == KEPT_SEED:
            _keep(mask.astype(np.uint8), click_prediction(self.predictions, name, num_shots, class_id, image_name))
        return scored(steps)


def shot_prediction(predictions: Path, method: str, num_shots: int, image: str) -> Path:
    """Return where the label image of a prediction is kept."""
    return predictions / method / f"shots-{num_shots}" / f"{image}.png"


def click_prediction(predictions: Path, method: str, num_shots: int, class_id: int, image: str) -> Path:
    """Return where the last mask of an object is kept: after all clicks, or of the box where there are none."""
    folder = f"object-{class_id}" if num_shots == 0 else f"shots-{num_shots}-object-{class_id}"
    return predictions / method / folder / f"{image}.png"


def steps_of(takes_clicks: bool) -> tuple[str, ...]:
    """Return the steps that are scored."""
    return (BOX, *(map(str, CLICK_COUNTS) if takes_clicks else ()))


def _box(session: ClickSession, truth: BoolArray, steps: list[StepScore], seconds: dict[str, float]) -> BoolArray:
    began = time.monotonic()
    mask = session.predict(np.zeros((0, 2), np.float32), np.zeros(0, np.int64), tight_box(truth), None)
    seconds[BOX] = round(time.monotonic() - began, 4)
    _check_size(mask, truth, BOX)
    steps.append(score_step(BOX, mask, truth))
    return mask


def _click(session: ClickSession, truth: BoolArray, steps: list[StepScore], seconds: dict[str, float]) -> BoolArray:
    points: list[NDArray[np.float32]] = []
    labels: list[int] = []
    mask: BoolArray | None = None
    for count in range(1, max(CLICK_COUNTS) + 1):
        current = np.zeros_like(truth) if mask is None else mask
        if (current != truth).any():  # a person who sees a perfect mask clicks no more
            point, label = next_click(current, truth)
            points.append(point)
            labels.append(label)
            began = time.monotonic()
            mask = session.predict(np.array(points, np.float32), np.array(labels, np.int64), None, mask)
            seconds["first click" if count == 1 else "last click"] = round(time.monotonic() - began, 4)
            _check_size(mask, truth, "click")
        assert mask is not None
        if count in CLICK_COUNTS:
            steps.append(score_step(str(count), mask, truth))
    assert mask is not None
    return mask


def _reason(error: VPLabError) -> str:
    """Return a refusal with the fields at fault: the message alone may only count them."""
    violations = error.violations if isinstance(error, InvalidInput) else ()
    named = [f"{found.field}: {found.description}" for found in violations if found.description not in error.message]
    return "; ".join([error.message, *named])


def _nothing(*, takes_clicks: bool) -> tuple[StepScore, ...]:
    return tuple(StepScore(step, 0.0, 0.0) for step in steps_of(takes_clicks))


def _check_size(found: NDArray[np.generic], truth: NDArray[np.generic] | RgbArray, what: str) -> None:
    if found.shape != truth.shape:
        raise Internal(f"{what} answered with {found.shape} for an image of {truth.shape}")


def _keep(labels: NDArray[np.uint8], path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_bytes(label_png(labels))
        part.replace(path)
    except OSError as error:
        message = f"cannot write {path}: {error.strerror or error}"
        raise ResourceExhausted(message, reason="STORAGE_FULL") from error


def _each(jobs: Sequence[Job], work: Callable[[Job], Score], num_in_flight: int) -> Iterator[Score]:
    """Yield the results of all jobs as they come; jobs not begun are dropped when the caller stops."""
    if num_in_flight == 1:  # in this thread, so that Ctrl-C stops a long computation at once
        yield from map(work, jobs)
        return
    left = iter(jobs)
    pool = ThreadPoolExecutor(num_in_flight)
    try:
        running = {pool.submit(work, job) for job in islice(left, num_in_flight)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            running |= {pool.submit(work, job) for job in islice(left, len(done))}
            for future in done:
                yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)
