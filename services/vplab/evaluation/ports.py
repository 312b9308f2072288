"""What a method must offer to be measured.

Methods are synchronous and are made once for a run. Comparators stand in ``vplab.evaluation.comparators``, which offers
``SHOT_METHODS`` and ``CLICK_METHODS``: dicts of name to a maker without arguments. A maker imports what is heavy only
when it is called and lets ImportError through; the harness says which extra is missing.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vplab.evaluation.values import BoolArray, LabelArray, LabelledImage, RgbArray


class ShotPredictor(Protocol):
    """A method that has learned its shots."""

    def predict(self, image_rgb: RgbArray, name: str) -> LabelArray:
        """Return (H, W) uint8 class ids, 0 background, of an image of any size.

        name: unique for this image within the run; a key for caches of what depends on the image alone.
        Raises a kind of ``vplab.errors`` when it cannot.
        """
        ...


class ShotMethod(Protocol):
    """Learns classes from a few labelled images."""

    @property
    def name(self) -> str:
        """As the user asks for it."""
        ...

    @property
    def min_shots(self) -> int:
        """0 if it can work from one reference whose mask nobody corrected, else at least 1."""
        ...

    @property
    def num_in_flight(self) -> int:
        """How many threads may call one predictor at a time; 1 unless it is safe and faster."""
        ...

    def fit(self, shots: Sequence[LabelledImage], class_ids: Sequence[int], seed: int) -> ShotPredictor:
        """Learn from the shots; equal arguments give an equal predictor.

        shots: at least ``max(1, min_shots)``; together they show every class, one image may lack some. For zero shots
            a segmenter made their labels and nobody corrected them.
        class_ids: what ``labels`` may hold besides 0, ascending.
        """
        ...


class ClickSession(Protocol):
    """One object of one image, while somebody marks it."""

    def predict(
        self,
        points_xy: NDArray[np.float32],
        point_labels: NDArray[np.int64],
        box_xyxy: NDArray[np.float32] | None,
        previous: BoolArray | None,
    ) -> BoolArray:
        """Return (H, W) bool for everything said so far.

        points_xy: (N, 2) float32 in pixels, x then y, in the order of the clicks; N is 0 where there is only a box.
        point_labels: (N,) 1 object, 0 background.
        box_xyxy: (4,) float32, far edges outside, or None.
        previous: this session's last answer, None at first. A session may keep more of it, such as logits.
        """
        ...


class ClickMethod(Protocol):
    """Turns a box or clicks into one object's mask."""

    @property
    def name(self) -> str:
        """As the user asks for it."""
        ...

    @property
    def takes_clicks(self) -> bool:
        """Whether it can do without a box."""
        ...

    @property
    def num_in_flight(self) -> int:
        """How many threads may use sessions of this method at a time."""
        ...

    def open(self, image_rgb: RgbArray, name: str) -> ClickSession:
        """Begin with one object of an image; a box and a sequence of clicks each get a session of their own.

        name: unique for this image within the run; a key for caches of what depends on the image alone.
        """
        ...


class LearningClickMethod(Protocol):
    """Learns from a few labelled images to turn a box or clicks into a mask."""

    @property
    def name(self) -> str:
        """As the user asks for it."""
        ...

    def learn(self, shots: Sequence[LabelledImage], class_ids: Sequence[int], seed: int) -> ClickMethod:
        """Learn from one shot at least; equal arguments give an equal method."""
        ...
