"""What the references say about one class: foreground and background patches, their centres, and when it is absent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from vplab.errors import InvalidInput
from vplab.vision.matching.discriminant import fit_discriminant
from vplab.vision.matching.grids import patches_at_pixels
from vplab.vision.matching.kmeans import cosine_kmeans
from vplab.vision.matching.patches import PatchFeatures
from vplab.vision.matching.pixel_classifier import (
    MAX_LOG_ODDS,
    PixelClassifier,
    PixelExample,
    train_pixel_classifier,
)

MAX_FOREGROUND = 1024
MAX_BACKGROUND = 2048
"""Rows kept of each, drawn at random beyond: the cost of matching need not grow with the references."""
NUM_FOREGROUND_CENTRES = 10
NUM_BACKGROUND_CENTRES = 30
"""Twice FSSDINO's 5 and the 15 of the prototype study; 20 and 60 were no better on the sets tried."""

_FULL = 0.99
"""Coverage from which every pixel of a patch counts as covered; resizing leaves 1.0 a little short."""
_MIN_FULL_SHARE = 0.5
_MAX_FULL_SHARE = 7 / 8
"""Of an object in patches that it fills, for pixels to be asked: large objects have patches enough to go by, and those
of ecssd so many colours that pixels are wrong about them."""
_CENTRES_SHARE = 0.5
"""Of the margin between nearest centres, where several images teach a direction too: the centres alone are surer than
they are right."""
_SINGLE_STEP = 0.4
"""Share of the way from background to foreground. More of it finds a class less often where it is, and less often where
it is not; with one reference neither side can be had for nothing."""
GROUP_SHARE = 0.6
"""Of the best group's score, where one image taught the map. 0.7 was as good and 0.5 one point of IoU worse; of what is
as good the lowest keeps most of several objects."""
_GROUP_SHARE_OF_SEVERAL = 0.45
"""Where several did, and what the map is sure of is right more often: cars of camvid and generated sprigs gain three
points by it, objects of ecssd lose two, and of many small objects far fewer are dropped."""
SOFTNESS = 0.05
"""Cosine difference at which a patch is 73 % foreground; differences of true foreground are 0.05 to 0.3."""
TOP_PATCHES = 3
"""Patches whose mean similarity is the presence score: one alone would be at the mercy of noise."""


@dataclass(frozen=True, eq=False)
class ClassReference:
    """Where one class is on one reference image, or on one tile of it."""

    patches: PatchFeatures
    mask: NDArray[np.bool_]
    """(H, W) bool of the tile's size; may be empty on a tile, or on a reference that shows only other classes."""
    image_index: int
    """Which reference image the tile is of."""


@dataclass(frozen=True, eq=False)
class ClassBank:
    """The reference patches of one class, ready to be matched."""

    foreground: NDArray[np.float32]
    """(M, D) float32, L2-normalised."""
    foreground_weight: NDArray[np.float32]
    """(M,) in 0..1: 1 for patches the object fills, its coverage where only thin parts were to be had."""
    background: NDArray[np.float32]
    """(K, D) float32, L2-normalised; may be empty."""
    foreground_centres: NDArray[np.float32]
    background_centres: NDArray[np.float32]
    """(K, D) float32. Of one reference image L2-normalised; of several they also hold what those say together, and a
    product with one is no cosine."""
    presence_threshold: float
    """Presence score from which the class counts as present, calibrated on the references; -1 to 1."""
    group_share: float = GROUP_SHARE
    """Share of the best group's score from which a group of masks is kept."""
    pixel_classifier: PixelClassifier | None = None
    """What several references with colours say of single pixels."""

    def similarities(self, features: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the product of every patch (P, D) with its nearest foreground and background centre, (P,) each.

        Cosines, but for the background's of several references: twenty times what the foreground has more are then
        log-odds that hold on references which did not teach the centres.

        Without background both centres' worth is -1, so that every patch is nearer to the foreground.
        """
        _check_width(features, self.foreground)
        foreground = (features @ self.foreground_centres.T).max(axis=1)
        if not len(self.background_centres):
            return foreground, np.full_like(foreground, -1)
        return foreground, (features @ self.background_centres.T).max(axis=1)

    def log_odds(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the log-odds of the similarity map at patches (P, D): 0 is as near to foreground as to background."""
        foreground, background = self.similarities(features)
        return np.asarray((foreground - background) / np.float32(SOFTNESS), np.float32)

    def presence_score(self, features: NDArray[np.float32]) -> float:
        """Return how similar the best matching patches are to the foreground, -1 to 1; -1 where none is nearer to it
        than to the background.

        The mean of the best three. Absolute: a target without the class scores low, however its patches compare among
        themselves.
        """
        foreground, background = self.similarities(features)
        winners = np.sort(foreground[foreground > background])[-TOP_PATCHES:]
        return float(winners.mean()) if len(winners) else -1.0


def build_class_bank(references: Sequence[ClassReference], *, seed: int = 0) -> ClassBank:
    """Gather the patches of one class from all its references.

    A patch is foreground when the object fills it. Where that would lose more than half of the object, as with cracks
    and scratches, every patch it touches is, weighted by coverage. A patch it does not touch is background.
    Raises InvalidInput when no reference shows the class, or feature widths differ. Deterministic for a seed.
    """
    rows = [_rows_of(reference) for reference in references]
    widths = {r.patches.features.shape[-1] for r in references}
    if len(widths) > 1:
        raise InvalidInput(f"references have features of different widths: {sorted(widths)}", field="references")
    if not any((coverage > 0).any() for _, coverage in rows):
        raise InvalidInput("no reference shows the class", field="references")
    rng = np.random.default_rng(seed)
    images = np.concatenate(
        [np.full(len(coverage), r.image_index) for r, (_, coverage) in zip(references, rows, strict=True)]
    )
    features = np.concatenate([f for f, _ in rows])
    coverage = np.concatenate([c for _, c in rows])
    bank = _bank(features, coverage, rng)
    left_out = _left_out_banks(features, coverage, images, seed)
    if left_out and len(bank.background_centres):
        direction = _learn_direction(features, coverage, images, left_out, seed)
        bank = _corrected(bank, direction)
        left_out = {image: _corrected(other, direction) for image, other in left_out.items()}
    return replace(
        bank,
        presence_threshold=_calibrate(bank, features, coverage, images, left_out),
        pixel_classifier=_learn_pixels(references, left_out, seed) if _full_share(coverage) < _MAX_FULL_SHARE else None,
    )


def _learn_pixels(
    references: Sequence[ClassReference], left_out: Mapping[int, ClassBank], seed: int
) -> PixelClassifier | None:
    """Train on all references; None unless two or more show the class and all have colours."""
    if not left_out:
        return None
    examples = []
    for reference in references:
        pixels = reference.patches.pixels
        if pixels is None:
            return None
        (height, width), mask = pixels.shape[1:], reference.mask.astype(np.float32)
        shrinks = height <= mask.shape[0] and width <= mask.shape[1]
        coverage = cv2.resize(mask, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        odds = left_out[reference.image_index].log_odds(reference.patches.features[reference.patches.valid])
        map_odds = patches_at_pixels(np.clip(odds, -MAX_LOG_ODDS, MAX_LOG_ODDS), reference.patches)
        examples.append(PixelExample(pixels, map_odds, np.asarray(coverage, np.float32)))
    return train_pixel_classifier(examples, seed)


def _rows_of(reference: ClassReference) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    patches = reference.patches
    return patches.features[patches.valid], patches.coverage(reference.mask)[patches.valid]


def _bank(features: NDArray[np.float32], coverage: NDArray[np.float32], rng: np.random.Generator) -> ClassBank:
    weight = _foreground_weight(coverage)
    foreground = _sample(np.flatnonzero(weight > 0), MAX_FOREGROUND, rng)
    background = features[_sample(np.flatnonzero(coverage <= 0), MAX_BACKGROUND, rng)]
    return ClassBank(
        foreground=features[foreground],
        foreground_weight=weight[foreground],
        background=background,
        foreground_centres=cosine_kmeans(features[foreground], weight[foreground], NUM_FOREGROUND_CENTRES, rng),
        background_centres=cosine_kmeans(background, np.ones(len(background), np.float32), NUM_BACKGROUND_CENTRES, rng)
        if len(background)
        else background,
        presence_threshold=0.0,
    )


def _foreground_weight(coverage: NDArray[np.float32]) -> NDArray[np.float32]:
    return coverage if _is_thin(coverage) else (coverage >= _FULL).astype(np.float32)


def _is_thin(coverage: NDArray[np.float32]) -> bool:
    """Say whether most of an object lies in patches that it does not fill."""
    return _full_share(coverage) < _MIN_FULL_SHARE


def _full_share(coverage: NDArray[np.float32]) -> float:
    """Return the share of an object that lies in patches which it fills."""
    return float(coverage[coverage >= _FULL].sum() / coverage.sum())


def _foreground_share(coverage: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return how much of a patch counts as foreground, (P,) in 0..1.

    Of a thin object as much as the patch it mostly lies in has is all: no patch of a crack would be foreground else.
    """
    if not _is_thin(coverage):
        return coverage
    typical = float(coverage @ coverage / coverage.sum())
    return np.asarray(np.minimum(coverage / np.float32(typical), 1), np.float32)


def _sample(indices: NDArray[np.int64], at_most: int, rng: np.random.Generator) -> NDArray[np.int64]:
    return indices if len(indices) <= at_most else np.sort(rng.choice(indices, at_most, replace=False))


def _left_out_banks(
    features: NDArray[np.float32], coverage: NDArray[np.float32], images: NDArray[np.int64], seed: int
) -> dict[int, ClassBank]:
    """Return for each image the bank of the others; nothing unless two images or more show the class."""
    shown = [image for image in np.unique(images) if (coverage[images == image] > 0).any()]
    if len(shown) < 2:
        return {}
    others = {int(image): images != image for image in np.unique(images)}
    return {image: _bank(features[rows], coverage[rows], np.random.default_rng(seed)) for image, rows in others.items()}


def _learn_direction(
    features: NDArray[np.float32],
    coverage: NDArray[np.float32],
    images: NDArray[np.int64],
    left_out: Mapping[int, ClassBank],
    seed: int,
) -> NDArray[np.float32]:
    """Return the direction (D,) that mends what banks of the other images say of each image."""
    offsets = np.zeros(len(features), np.float32)
    for image, bank in left_out.items():
        if len(bank.background_centres):
            foreground, background = bank.similarities(features[images == image])
            offsets[images == image] = _CENTRES_SHARE * (foreground - background) / SOFTNESS
    return fit_discriminant(features, _foreground_share(coverage), offsets, seed)


def _corrected(bank: ClassBank, direction: NDArray[np.float32]) -> ClassBank:
    """Return the bank whose margin is its own times the centres' share, and the direction's product with the patch.

    The foreground's similarities stay the cosines that presence goes by. A mean of two maxima is the maximum over
    pairs, so matchers notice nothing: the centres of the background are means of pairs, moved against the direction.
    """
    share = np.float32(_CENTRES_SHARE)
    pairs = (1 - share) * bank.foreground_centres[:, None] + share * bank.background_centres[None]
    moved = pairs.reshape(-1, pairs.shape[-1]) - np.float32(SOFTNESS) * direction
    return replace(bank, background_centres=np.asarray(moved, np.float32), group_share=_GROUP_SHARE_OF_SEVERAL)


def _calibrate(
    bank: ClassBank,
    features: NDArray[np.float32],
    coverage: NDArray[np.float32],
    images: NDArray[np.int64],
    left_out: Mapping[int, ClassBank],
) -> float:
    """Return the presence threshold from the references alone.

    Between what absence and presence look like: the median similarity of background patches to the foreground, and,
    with two images of the class or more, the lowest score of an image under a bank of the others; a single image only
    knows its own foreground, which flatters, so its step is shorter.
    """
    absent = float(np.median(bank.similarities(bank.background)[0])) if len(bank.background) else 0.0
    if left_out:
        shown = [image for image in left_out if (coverage[images == image] > 0).any()]
        present, step = min(left_out[image].presence_score(features[images == image]) for image in shown), 0.5
    else:
        present, step = float(np.quantile(bank.similarities(bank.foreground)[0], 0.05)), _SINGLE_STEP
    return float(np.clip(absent + step * max(0.0, present - absent), -1, 1))


def _check_width(features: NDArray[np.float32], reference: NDArray[np.float32]) -> None:
    if features.shape[-1] != reference.shape[-1]:
        message = f"the target's features are {features.shape[-1]} wide, the references' {reference.shape[-1]}"
        raise InvalidInput(message, field="features")
