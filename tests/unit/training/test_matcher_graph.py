"""The matchers' graphs say what the numpy matchers say, for references that the graph never saw."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from vplab.training.line_bundle.line_program import SCORES
from vplab.training.line_bundle.matcher_graph import (
    NUM_TARGETS,
    SCORE_TOLERANCE,
    graph_references,
    matcher_graph,
    matcher_parity,
)
from vplab.training.line_bundle.matcher_scripts import write_graphs
from vplab.vision.matching import (
    MATCHERS,
    ClassBank,
    ClassReference,
    MatchOptions,
    PatchFeatures,
    build_class_bank,
)
from vplab.vision.matching.softmatch import BLOCK
from vplab.vision.preprocessing import FrameTransform

WIDTH, STRIDE = 16, 8


def patches(grid_hw: tuple[int, int], seed: int) -> PatchFeatures:
    """Return features of a few directions, as of materials, on a grid; the lower right corner is of its own."""
    rng = np.random.default_rng(seed)
    materials = np.random.default_rng(99).normal(size=(5, WIDTH))
    kinds = rng.integers(0, 4, grid_hw)
    kinds[grid_hw[0] // 2 :, grid_hw[1] // 2 :] = 4
    features = materials[kinds] + 0.4 * rng.normal(size=(*grid_hw, WIDTH))
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    size_hw = (grid_hw[0] * STRIDE, grid_hw[1] * STRIDE)
    return PatchFeatures(features.astype(np.float32), FrameTransform(size_hw, size_hw, size_hw), STRIDE)


def bank(seed: int, *, grid_hw: tuple[int, int] = (20, 24), is_thin: bool = False, is_all: bool = False) -> ClassBank:
    found = patches(grid_hw, seed)
    height, width = found.transform.original_hw
    mask = np.zeros((height, width), np.bool_)
    mask[height // 2 :: 3 if is_thin else 1, width // 2 :] = True
    return build_class_bank([ClassReference(found, mask | is_all, 0)])


def bank_of_several(seed: int) -> ClassBank:
    references = []
    for index in range(3):
        found = patches((12 + index, 16), seed + index)
        mask = np.zeros(found.transform.original_hw, np.bool_)
        mask[: mask.shape[0] // 2, : mask.shape[1] // 2] = True
        references.append(ClassReference(found, mask, index))
    return build_class_bank(references)


BANKS = [bank(1), bank(2, is_thin=True), bank(3, is_all=True), bank(4, grid_hw=(2, 2)), bank(5, grid_hw=(40, 60))]
BANKS.append(bank_of_several(6))
TILES = [patches((32, 48), 11), patches((9, 50), 12)]


def run(
    matcher: str, banks: list[ClassBank], features: NDArray[np.float32], options: MatchOptions
) -> dict[str, NDArray[np.float32]]:
    session = ort.InferenceSession(matcher_graph(matcher), providers=["CPUExecutionProvider"])
    feed = graph_references(banks) | {
        "features": features,
        "min_relative_score": np.array(options.min_relative_score, np.float32),
        "max_points": np.array(options.max_points, np.int64),
    }
    return dict(zip(SCORES, session.run(list(SCORES), feed), strict=True))


@pytest.mark.parametrize("matcher", MATCHERS)
def test_targets_of_many_sizes_are_scored_as_by_numpy(matcher: str) -> None:
    report = matcher_parity(matcher_graph(matcher), matcher, BANKS, TILES, seed=0)
    report.require_passed(matcher)
    assert len(report.cases) == NUM_TARGETS * len(BANKS) + 1
    assert len({case.image_sizes_hw for case in report.cases}) >= 20
    assert 0 < report.metrics["parity_max_abs_difference"] <= SCORE_TOLERANCE


@pytest.mark.parametrize("matcher", MATCHERS)
@pytest.mark.parametrize("options", [MatchOptions(), MatchOptions(max_points=1, min_relative_score=0.8)])
def test_candidates_and_the_number_of_points_follow_the_options(matcher: str, options: MatchOptions) -> None:
    features = TILES[0].features.reshape(-1, WIDTH)
    found = run(matcher, BANKS, features, options)
    for row, class_bank in enumerate(BANKS):
        expected = MATCHERS[matcher].score(class_bank, features, options)
        np.testing.assert_array_equal(found["candidates"][row], expected.candidates)
        assert found["num_points"][row] == expected.max_points


@pytest.mark.parametrize("matcher", MATCHERS)
def test_a_target_of_several_blocks_is_scored_as_by_numpy(matcher: str) -> None:
    features = patches((3, BLOCK), 13).features.reshape(-1, WIDTH)[: 2 * BLOCK + 1]
    found = run(matcher, BANKS[:2], features, MatchOptions())
    for row, class_bank in enumerate(BANKS[:2]):
        expected = MATCHERS[matcher].score(class_bank, features, MatchOptions())
        np.testing.assert_allclose(found["scores"][row], expected.scores, atol=SCORE_TOLERANCE)


@pytest.mark.parametrize("matcher", MATCHERS)
def test_a_class_is_scored_alike_alone_and_among_others(matcher: str) -> None:
    features = TILES[1].features.reshape(-1, WIDTH)
    together = run(matcher, BANKS, features, MatchOptions())
    for row, class_bank in enumerate(BANKS):
        alone = run(matcher, [class_bank], features, MatchOptions())
        for name in SCORES:
            np.testing.assert_allclose(alone[name][0], together[name][row], atol=1e-5)


@pytest.mark.parametrize("matcher", MATCHERS)
def test_a_target_nearer_to_the_background_everywhere_has_the_lowest_presence_score(matcher: str) -> None:
    found = run(matcher, [BANKS[0]], BANKS[0].background, MatchOptions())
    expected = MATCHERS[matcher].score(BANKS[0], BANKS[0].background, MatchOptions())
    assert found["presence_score"][0] == pytest.approx(expected.presence_score, abs=1e-5)
    nothing = run(matcher, [BANKS[0]], BANKS[0].background_centres[:1], MatchOptions())
    assert nothing["presence_score"][0] == -1


def test_another_matchers_graph_does_not_pass() -> None:
    graph = matcher_graph("prototype")
    assert not matcher_parity(graph, "softmatch", BANKS, TILES, seed=0).passed


def test_the_graphs_are_those_of_the_scripts(tmp_path: Path) -> None:
    write_graphs(tmp_path)
    command = "run python -m vplab.training.line_bundle.matcher_scripts"
    assert {path.stem for path in tmp_path.iterdir()} == set(MATCHERS)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == matcher_graph(path.stem), command
