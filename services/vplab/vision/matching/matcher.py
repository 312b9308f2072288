"""The port of the matchers: from reference and target patches to point prompts and a similarity map."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vplab.vision.matching.class_bank import ClassBank
from vplab.vision.matching.patches import TargetPatches


@dataclass(frozen=True)
class MatchOptions:
    """What a caller may tune; the defaults are the paper's where it has them."""

    max_points: int = 40
    """Most foreground points, 1 to 128."""
    num_background_points: int = 2
    """Background points that go with every foreground point, 0 to 16."""
    min_relative_score: float = 0.4
    """Share of the best patch's score that a point must reach, 0 to 1."""
    presence_threshold: float | None = None
    """Presence score from which a class is present; None takes what was calibrated on the references."""
    seed: int = 0


@dataclass(frozen=True, eq=False)
class PatchScores:
    """What is known of one class before points are chosen, for every target patch (P,)."""

    scores: NDArray[np.float32]
    """The better, the sooner a point."""
    candidates: NDArray[np.bool_]
    """Which patches may be points."""
    similarity: NDArray[np.float32]
    """``Match.similarity``."""
    mean_similarity: NDArray[np.float32]
    """Product with the weighted mean of the foreground rows."""
    presence_score: float
    max_points: int


@dataclass(frozen=True, eq=False)
class Match:
    """Where one class seems to be on a target."""

    points_xy: NDArray[np.float32]
    """(N, 2) float32 foreground points in pixels of the image, best first; empty when the class is absent."""
    point_tiles: NDArray[np.int64]
    """(N,) the tile each point was found on."""
    background_xy: tuple[NDArray[np.float32], ...]
    """(Q, 2) float32 background points for each tile."""
    similarity: NDArray[np.float32]
    """(P,) float32 in 0..1 for every target patch: 0.5 is as near to the foreground as to the background."""
    presence_score: float
    presence_threshold: float
    pixel_odds: tuple[NDArray[np.float32], ...] = ()
    """(h, w) float32 for each tile: the log-odds of foreground at the pixels of its colours, where the references have
    a pixel classifier and the tiles colours."""

    @property
    def is_present(self) -> bool:
        return self.presence_score >= self.presence_threshold and len(self.points_xy) > 0


class Matcher(Protocol):
    """Finds a class of the references in a target. Deterministic: equal input and seed, equal output."""

    groups_masks: bool
    """Whether its points are many views of few objects, to be grouped by which mask covers which point."""

    def score(self, bank: ClassBank, features: NDArray[np.float32], options: MatchOptions) -> PatchScores:
        """Weigh patches (P, D). Raises InvalidInput when they are not as wide as the references'."""
        ...

    def match(self, bank: ClassBank, target: TargetPatches, options: MatchOptions) -> Match:
        """Score a target's patches and propose points. Raises what ``score`` raises."""
        ...
