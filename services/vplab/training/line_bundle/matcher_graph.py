"""The matchers as ONNX graphs whose references are inputs, for programs that have ONNX Runtime and little else.

A graph scores every target patch for every class (``vplab.vision.matching.matcher.PatchScores``). Left to the program
is what takes points one by one, each depending on those before it, and is no tensor operation: the greedy choice of
points that lie apart, and each tile's background points beside them (``propose``).

Memory does not grow with the target, but with the classes of a call: programs ask for one at a time.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from vplab.training.line_bundle.line_program import SCORES
from vplab.training.models.parity import ParityCase, ParityReport, make_report, mask_ious, max_abs_difference
from vplab.vision.matching import MATCHERS, ClassBank, MatchOptions, PatchFeatures, TargetPatches
from vplab.vision.preprocessing import FrameTransform

SCORE_TOLERANCE = 1e-4
"""Largest difference of a score, similarity or presence score, all of which are within -2 and 2."""
NUM_TARGETS = 24
"""Targets that a parity report compares with every class."""
PROVIDERS = ("CPUExecutionProvider",)

_FOREGROUND, _BACKGROUND, _PADDING = 1, 0, -1


def matcher_graph(matcher: str) -> bytes:
    """Return the graph of one of ``MATCHERS``.

    Inputs: features (P, D) float32 of the target; ``graph_references``; min_relative_score, a float32, and max_points,
    an int64, as ``MatchOptions`` has them. Outputs: ``SCORES``, the fields of ``PatchScores``, each with a first
    axis for classes.
    """
    return (Path(__file__).parent / "matchers" / f"{matcher}.onnx").read_bytes()


def graph_references(banks: Sequence[ClassBank]) -> dict[str, NDArray[np.float32]]:
    """Return the references of classes as a graph takes them, padded to the largest class.

    rows: (C, R, D), foreground then background; row_weight: (C, R), above 0 for foreground, 0 for background, -1 for
    padding. centres: (C, K, D); centre_kind: (C, K), 1 for foreground, 0 for background, -1 for padding.
    """
    rows, row_weight = _padded(
        [
            (np.concatenate([b.foreground, b.background]), np.pad(b.foreground_weight, (0, len(b.background))))
            for b in banks
        ]
    )
    centres, centre_kind = _padded(
        [
            (
                np.concatenate([b.foreground_centres, b.background_centres]),
                np.repeat([_FOREGROUND, _BACKGROUND], [len(b.foreground_centres), len(b.background_centres)]),
            )
            for b in banks
        ]
    )
    return {"rows": rows, "row_weight": row_weight, "centres": centres, "centre_kind": centre_kind}


def matcher_parity(
    graph: bytes, matcher: str, banks: Sequence[ClassBank], tiles: Sequence[PatchFeatures], seed: int
) -> ParityReport:
    """Compare a graph with the numpy matcher on cuttings of many sizes from ``tiles``, for each of the classes."""
    session = ort.InferenceSession(graph, providers=PROVIDERS)
    references, options = graph_references(banks), MatchOptions()
    rng = np.random.default_rng(seed)
    cases, candidates = [], []
    for index in range(NUM_TARGETS):
        target = TargetPatches.of([_cutting(tiles[index % len(tiles)], rng)])
        feed = references | {
            "features": target.features,
            "min_relative_score": np.array(options.min_relative_score, np.float32),
            "max_points": np.array(options.max_points, np.int64),
        }
        found = dict(zip(SCORES, session.run(list(SCORES), feed), strict=True))
        for row, bank in enumerate(banks):
            expected = MATCHERS[matcher].score(bank, target.features, options)
            candidates.append((found["candidates"][row], expected.candidates))
            # The graph matcher's scores fall to 0 where a patch is no candidate, however little it lacks.
            agrees = found["candidates"][row] == expected.candidates
            pairs = [
                (found["scores"][row] * agrees, expected.scores * agrees),
                (found["similarity"][row], expected.similarity),
                (found["mean_similarity"][row], expected.mean_similarity),
                (found["presence_score"][row], np.float32(expected.presence_score)),
            ]
            difference = max(max_abs_difference(actual, other) for actual, other in pairs)
            cases.append(_case(f"target {index}, class {row}", [target], difference))
    actual, other = (np.concatenate(side)[None].astype(np.float32) for side in zip(*candidates, strict=True))
    cases.append(_case("all candidates", [], 0.0, mask_ious(actual, other, 0.5)[0]))
    return make_report(f"the numpy matcher {matcher}", ("numpy",), PROVIDERS, cases)


def _case(
    name: str, targets: Sequence[TargetPatches], difference: float, candidate_iou: float | None = None
) -> ParityCase:
    return ParityCase(
        name=name,
        image_sizes_hw=tuple(target.image_hw for target in targets),
        quantity="patch_scores",
        max_abs_difference=difference,
        max_abs_tolerance=SCORE_TOLERANCE,
        mask_iou=candidate_iou,
    )


def _cutting(patches: PatchFeatures, rng: np.random.Generator) -> PatchFeatures:
    """Return a part of the grid as if it were an image."""
    rows, columns = (int(n) for n in np.argwhere(patches.valid)[-1] + 1)
    height, width = int(rng.integers(1, rows + 1)), int(rng.integers(1, columns + 1))
    top, left = int(rng.integers(0, rows - height + 1)), int(rng.integers(0, columns - width + 1))
    size_hw = (height * patches.stride, width * patches.stride)
    features = patches.features[top : top + height, left : left + width]
    return PatchFeatures(features, FrameTransform(size_hw, size_hw, size_hw), patches.stride)


def _padded(classes: Sequence[tuple[NDArray[np.float32], NDArray[Any]]]) -> tuple[NDArray[np.float32], ...]:
    length = max(len(marks) for _, marks in classes)
    rows = np.zeros((len(classes), length, classes[0][0].shape[1]), np.float32)
    marks = np.full((len(classes), length), _PADDING, np.float32)
    for index, (of_class, marks_of_class) in enumerate(classes):
        rows[index, : len(of_class)] = of_class
        marks[index, : len(of_class)] = marks_of_class
    return rows, marks
