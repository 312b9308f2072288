"""The pipeline over a decoder whose answers are known, whole and in tiles."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from vplab.vision.matching import MATCHERS, ClassReference, MatchOptions, PatchFeatures, TargetPatches, build_class_bank
from vplab.vision.matching.grids import on_decoder_grid
from vplab.vision.pipeline.segment import ClassSegmentation, SegmentOptions, segment_class
from vplab.vision.preprocessing import FrameTransform, frame_transform
from vplab.vision.prompts import PromptTokens
from vplab.vision.specs import Preprocessing, SegmenterSpec
from vplab.vision.tiling import tile_layout

SIDE, STRIDE = 128, 8
AXES = np.eye(16, dtype=np.float32)
PREPROCESSING = Preprocessing(resize="longest_side", size=SIDE, mean_rgb=(0, 0, 0), std_rgb=(1, 1, 1))
SPEC = SegmenterSpec(family="t", architecture="t", input_size=SIDE, embedding_shape=(2, 8, 8), low_res_hw=(32, 32))


class TruthDecoder:
    """Answers a point with the objects of ``truth`` (labels, 0 nothing) under it: exact, larger and smaller planes."""

    spec = SPEC

    def __init__(self, truth: np.ndarray, side: int = 0) -> None:
        self.tiles = tile_layout(truth.shape, side)
        self.truth = truth
        self.num_prompts = 0

    def sharpen(self, tile: int, logits: np.ndarray) -> np.ndarray:
        return logits

    def transform(self, tile: int) -> FrameTransform:
        return frame_transform(self.tiles[tile].size_hw, PREPROCESSING)

    def decode(self, tile: int, tokens: Sequence[PromptTokens]) -> tuple[np.ndarray, np.ndarray]:
        view, transform = self.tiles[tile].crop(self.truth), self.transform(tile)
        cells = (np.arange(32) + 0.5) * 4
        rows, columns = (
            np.minimum((cells / scale).astype(int), length - 1)
            for scale, length in zip(transform.scale_xy[::-1], view.shape, strict=True)
        )
        grid = view[rows][:, columns]
        self.num_prompts += len(tokens)
        logits = np.full((len(tokens), 4, 32, 32), -9.0, np.float32)
        for index, token in enumerate(tokens):
            x, y = (token.coords[0] / transform.scale_xy).astype(int)
            label = view[min(y, view.shape[0] - 1), min(x, view.shape[1] - 1)]
            if label:
                logits[index, 0:3, grid == label] = 9
                logits[index, 2] = 9
        ious = np.tile(np.array([0.9, 0.9, 0.5, 0.2], np.float32), (len(tokens), 1))
        return logits, ious


def features_of(labels: np.ndarray, seed: int = 0) -> np.ndarray:
    features = AXES[labels] + 0.05 * np.random.default_rng(seed).normal(size=(*labels.shape, 16))
    return (features / np.linalg.norm(features, axis=-1, keepdims=True)).astype(np.float32)


def patches_of(truth: np.ndarray, side: int = 0, seed: int = 0) -> list[PatchFeatures]:
    found = []
    for tile in tile_layout(truth.shape, side):
        view, transform = tile.crop(truth), frame_transform(tile.size_hw, PREPROCESSING)
        centres = (np.arange(SIDE // STRIDE) + 0.5) * STRIDE
        rows, columns = (
            np.minimum((centres / scale).astype(int), length - 1)
            for scale, length in zip(transform.scale_xy[::-1], view.shape, strict=True)
        )
        labels = (view[rows][:, columns] > 0).astype(int)
        found.append(PatchFeatures(features_of(labels, seed), transform, STRIDE, tile.origin_xy))
    return found


def scene(size_hw: tuple[int, int], *discs: tuple[int, int, int]) -> np.ndarray:
    y, x = np.mgrid[: size_hw[0], : size_hw[1]]
    truth = np.zeros(size_hw, int)
    for label, (centre_x, centre_y, radius) in enumerate(discs, 1):
        truth[(x - centre_x) ** 2 + (y - centre_y) ** 2 <= radius**2] = label
    return truth


REFERENCE = scene((128, 128), (60, 60, 30))
BANK = build_class_bank([ClassReference(patches_of(REFERENCE)[0], REFERENCE > 0, 0)])


def segment(truth: np.ndarray, matcher: str = "softmatch", side: int = 0, **options: object) -> ClassSegmentation:
    target = TargetPatches.of(patches_of(truth, side, seed=1))
    settings = SegmentOptions(**options)  # type: ignore[arg-type]
    return segment_class(MATCHERS[matcher], BANK, target, TruthDecoder(truth, side), MatchOptions(), settings)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("matcher", MATCHERS)
@pytest.mark.parametrize("refines", [False, True])
def test_every_object_becomes_one_instance_and_their_union_the_mask(matcher: str, refines: bool) -> None:
    truth = scene((96, 128), (30, 40, 18), (95, 55, 22))
    found = segment(truth, matcher, refines=refines)
    assert found.is_present
    assert len(found.instances) == 2
    assert iou(found.mask(truth.shape), truth > 0) > 0.9
    for instance in found.instances:
        canvas = np.zeros(truth.shape, bool)
        instance.placed.paint(canvas)
        assert max(iou(canvas, truth == label) for label in (1, 2)) > 0.85
        assert 0 < instance.score <= 1
    assert [i.score for i in found.instances] == sorted((i.score for i in found.instances), reverse=True)


def test_an_absent_class_decodes_nothing() -> None:
    truth = scene((96, 128))
    decoder = TruthDecoder(truth)
    target = TargetPatches.of(patches_of(truth, seed=1))
    found = segment_class(MATCHERS["softmatch"], BANK, target, decoder, MatchOptions(), SegmentOptions())
    assert not found.is_present
    assert not found.mask(truth.shape).any()
    assert decoder.num_prompts == 0


@pytest.mark.parametrize(("group_share", "count"), [(0.6, 1), (0.45, 2)])
def test_the_bank_says_how_much_less_sure_a_second_object_may_be(group_share: float, count: int) -> None:
    class Doubtful(TruthDecoder):
        def decode(self, tile: int, tokens: Sequence[PromptTokens]) -> tuple[np.ndarray, np.ndarray]:
            logits, ious = super().decode(tile, tokens)
            is_second = [self.truth[int(token.coords[0][1]), int(token.coords[0][0])] == 2 for token in tokens]
            return logits, np.where(np.array(is_second)[:, None], 0.53 * ious, ious).astype(np.float32)

    truth = scene((128, 128), (30, 40, 18), (95, 75, 22))
    target = TargetPatches.of(patches_of(truth, seed=1))
    bank = replace(BANK, group_share=group_share)
    decoder = Doubtful(truth)
    found = segment_class(MATCHERS["softmatch"], bank, target, decoder, MatchOptions(), SegmentOptions(refines=False))
    assert len(found.instances) == count


def test_instances_below_the_score_asked_for_are_dropped() -> None:
    truth = scene((96, 128), (30, 40, 18))
    assert segment(truth, min_mask_score=0.99).instances == ()
    assert not segment(truth, min_mask_score=0.99).is_present


@pytest.mark.parametrize(
    "discs",
    [
        [(200, 100, 40)],
        [(128, 128, 45), (330, 60, 30)],
        [(256, 150, 60)],
        [(40, 40, 32), (450, 250, 34), (250, 150, 33)],
    ],
)
def test_tiles_give_the_instances_that_the_whole_gives(discs: list[tuple[int, int, int]]) -> None:
    truth = scene((300, 500), *discs)
    tiled = segment(truth, side=200)
    assert len(tiled.instances) == len(discs)
    # A cell of the decoder's grid is 6 pixels in a tile of 200 and 16 in the whole: that is all the two may differ by.
    assert iou(tiled.mask(truth.shape), truth > 0) > 0.9
    whole = segment(truth)
    assert len(whole.instances) == len(discs)
    assert iou(tiled.mask(truth.shape), whole.mask(truth.shape)) > 0.75


def test_equal_seeds_give_equal_masks() -> None:
    truth = scene((96, 128), (30, 40, 18), (95, 55, 22))
    np.testing.assert_array_equal(segment(truth).mask(truth.shape), segment(truth).mask(truth.shape))


def test_the_similarity_map_keeps_its_place_between_unlike_grids() -> None:
    stretched = PatchFeatures(np.ones((14, 14, 1), np.float32), FrameTransform((50, 100), (112, 112), (112, 112)), 8)
    similarity = np.zeros((14, 14), np.float32)
    similarity[7:, 7:] = 1
    padded = FrameTransform((50, 100), (64, 128), (128, 128))
    grid = on_decoder_grid(similarity, stretched, padded, (32, 32))
    # The object is the lower right quarter of the picture, whose valid area is the upper half of the padded input.
    assert grid[10:16, 20:].min() > 0.9
    assert grid[:6].max() < 0.1
    assert grid[16:].max() == 0
