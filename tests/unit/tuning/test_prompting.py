import cv2
import numpy as np
import pytest

from fakes.tiny_tuning import SEGMENTER, SIDE, disc, discs, examples_of, view_of
from vplab.training.tuning.prompting import (
    FALSE_SHARE,
    NOISY_MASK_SHARE,
    WHOLE_SHARE,
    DrawnPrompt,
    PromptDrawer,
    input_tokens,
    nearest_piece,
    proposal_tokens,
    tight_box,
)
from vplab.training.tuning.refining import best_plane, hands_its_object_back, refined_prompts
from vplab.training.tuning.values import ClassProposals
from vplab.vision.pipeline.decoding import decode_points, refine
from vplab.vision.preprocessing import FrameTransform
from vplab.vision.prompts import ObjectPrompt, PromptTokens, prompt_tokens
from vplab.vision.specs import SegmenterSpec

TRANSFORM = FrameTransform((30, 40), (48, 64), (64, 64))
NO_RASTER = SEGMENTER.model_copy(update={"prompt_raster": None})


class RecordingDecoder:
    """The pipeline's decoder, whose answers are random but fixed, and which remembers what it was asked."""

    def __init__(self, spec: SegmenterSpec) -> None:
        self.spec = spec
        self.asked: list[PromptTokens] = []
        self.answered: list[tuple[np.ndarray, np.ndarray]] = []

    def sharpen(self, tile, logits):
        return logits

    def transform(self, tile):
        return TRANSFORM

    def decode(self, tile, tokens):
        self.asked.extend(tokens)
        rng = np.random.default_rng(len(self.asked))
        logits = rng.normal(-0.5, 1, (len(tokens), 4, *self.spec.low_res_hw)).astype(np.float32)
        ious = rng.random((len(tokens), 4)).astype(np.float32)
        self.answered.append((logits, ious))
        return logits, ious


def equal(left: PromptTokens, right: PromptTokens) -> bool:
    if (left.mask_logits is None) != (right.mask_logits is None):
        return False
    masks = left.mask_logits is None or np.array_equal(left.mask_logits, right.mask_logits)
    return masks and np.array_equal(left.coords, right.coords) and np.array_equal(left.labels, right.labels)


@pytest.mark.parametrize("spec", [SEGMENTER, NO_RASTER])
def test_proposals_have_the_tokens_that_serving_makes_in_both_passes(spec):
    points = np.array([[12.5, 7.25], [30, 20]], np.float32)
    background = np.array([[1, 1], [38, 3]], np.float32)
    similarity = np.random.default_rng(1).random(spec.low_res_hw).astype(np.float32)
    serving = RecordingDecoder(spec)
    candidates = decode_points(serving, 0, points, background, similarity)
    refine(serving, 0, candidates, similarity)

    proposals = ClassProposals(
        TRANSFORM.points_to_input(points), TRANSFORM.points_to_input(background), similarity.astype(np.float16)
    )
    first = [proposal_tokens(proposals, i, spec) for i in range(2)]
    assert all(equal(a, b) for a, b in zip(first, serving.asked[:2], strict=True))

    drawer = PromptDrawer(examples_of(discs(1)), SEGMENTER)
    prompt = drawer.draw(1, np.random.default_rng(0))[0]
    prompts = [type(prompt)("proposal", 0, 1, tokens, prompt.target) for tokens in first]
    logits, ious = serving.answered[0]
    second = refined_prompts(prompts, logits, ious, [similarity, similarity], spec)
    assert all(p is not None and equal(p.tokens, b) for p, b in zip(second, serving.asked[2:], strict=True))


def test_nothing_is_refined_where_all_planes_are_empty():
    planes = np.full((3, 8, 8), -1, np.float32)
    assert best_plane(planes, np.ones(3, np.float32), np.ones((8, 8), np.float32)) is None


def test_a_second_pass_from_the_mask_of_something_else_is_not_trained_on():
    def handing_back(first, target):
        logits = np.where(first[::2, ::2], 4, -4).astype(np.float32)
        return DrawnPrompt("proposal", 0, 1, PromptTokens(np.zeros((0, 2)), np.zeros(0), logits), target)

    here, there = disc((20, 20), 9), disc((44, 44), 9)
    assert hands_its_object_back(handing_back(here, here), SEGMENTER)
    assert not hands_its_object_back(handing_back(there, here), SEGMENTER)
    assert hands_its_object_back(handing_back(there, np.zeros_like(here)), SEGMENTER)  # to be told that it is wrong


@pytest.mark.parametrize("spec", [SEGMENTER, NO_RASTER])
def test_clicks_and_boxes_have_the_tokens_that_serving_makes(spec):
    prompt = ObjectPrompt(points_xy=np.array([[12, 9], [3, 4]], np.float32), point_labels=np.array([1, 0]))
    click = prompt_tokens(prompt, TRANSFORM, spec)
    assert equal(click, input_tokens(click.coords, click.labels, None, spec))
    box = prompt_tokens(ObjectPrompt(box_xyxy=np.array([3, 4, 20, 25], np.float32)), TRANSFORM, spec)
    assert equal(box, input_tokens(box.coords, box.labels, None, spec))
    earlier = np.random.default_rng(0).normal(size=spec.low_res_hw).astype(np.float32)
    boxed = ObjectPrompt(box_xyxy=np.array([3, 4, 20, 25], np.float32), low_res_logits=earlier)
    assert equal(prompt_tokens(boxed, TRANSFORM, spec), input_tokens(box.coords, box.labels, earlier, spec))


def test_equal_generators_draw_equal_prompts():
    drawer = PromptDrawer(examples_of(discs(3)), SEGMENTER)
    one, two = (drawer.draw(12, np.random.default_rng(4)) for _ in range(2))
    assert all(equal(a.tokens, b.tokens) and np.array_equal(a.target, b.target) for a, b in zip(one, two, strict=True))
    assert {p.kind for p in drawer.draw(60, np.random.default_rng(0))} == {"box", "point", "proposal"}


def test_a_proposal_beside_every_object_asks_for_nothing():
    examples = examples_of(discs(2))
    beside = ClassProposals(
        np.array([[4, 60], [60, 4]], np.float32), np.zeros((0, 2), np.float32), examples[0].proposals[1].similarity
    )
    examples = [type(e)(**{**vars(e), "proposals": {1: beside}}) for e in examples]
    drawn = PromptDrawer(examples, SEGMENTER).draw(40, np.random.default_rng(0))
    assert any(p.kind == "proposal" for p in drawn)
    assert all(p.is_false == (p.kind == "proposal") for p in drawn)


def test_false_proposals_have_their_share_however_many_there_are():
    example = examples_of(discs(1))[0]
    on, beside = np.array([[16, 20]], np.float32), np.tile(np.array([[58, 58]], np.float32), (20, 1))
    proposals = ClassProposals(
        np.concatenate([on, beside]), np.zeros((0, 2), np.float32), example.proposals[1].similarity
    )
    example = type(example)(**{**vars(example), "proposals": {1: proposals}})
    drawn = PromptDrawer([example], SEGMENTER).draw(400, np.random.default_rng(0))
    proposed = [p for p in drawn if p.kind == "proposal"]
    assert sum(p.is_false for p in proposed) / len(proposed) == pytest.approx(FALSE_SHARE, abs=0.08)


def test_a_proposal_means_the_nearest_piece_within_reach():
    pieces = np.zeros((SIDE, SIDE), np.uint16)
    pieces[10:20, 10:20], pieces[10:20, 26:40] = 1, 2
    assert nearest_piece(pieces, np.array([15, 15], np.float32)) == 1
    assert nearest_piece(pieces, np.array([24, 15], np.float32)) == 2
    assert nearest_piece(pieces, np.array([60, 60], np.float32)) == 0
    assert nearest_piece(pieces, np.array([63.6, 63.6], np.float32)) == 0


def test_true_proposals_ask_for_the_piece_they_lie_on():
    examples = examples_of([view_of({1: disc((16, 16), 9) | disc((48, 48), 7)})])
    drawn = [p for p in PromptDrawer(examples, SEGMENTER).draw(60, np.random.default_rng(1)) if p.kind == "proposal"]
    sizes = {int(p.target.sum()) for p in drawn}
    assert sizes <= {0, int(disc((16, 16), 9).sum()), int(disc((48, 48), 7).sum())}
    assert all(p.is_false or p.target[tuple(p.tokens.coords[0].astype(int)[::-1])] for p in drawn)


def test_clicks_lie_where_their_labels_say():
    drawn = PromptDrawer(examples_of(discs(3)), SEGMENTER).draw(90, np.random.default_rng(2))
    for prompt in (p for p in drawn if p.kind == "point"):
        for (x, y), label in zip(prompt.tokens.coords.astype(int), prompt.tokens.labels, strict=True):
            assert label < 0 or prompt.target[y, x] == (label == 1)


def test_boxes_hold_about_what_they_ask_for():
    drawn = PromptDrawer(examples_of(discs(3)), SEGMENTER).draw(90, np.random.default_rng(3))
    boxes = [p for p in drawn if p.kind == "box"]
    limit = 20 / 1024 * SIDE
    for prompt in boxes:
        assert np.abs(prompt.tokens.coords - tight_box(prompt.target)).max() <= limit + 1e-4
    assert any(np.array_equal(p.tokens.coords, tight_box(p.target)) for p in boxes)


def test_some_boxes_come_with_a_rough_mask_of_what_they_ask_for():
    drawn = PromptDrawer(examples_of(discs(3)), NO_RASTER).draw(2000, np.random.default_rng(5))
    boxes = [p for p in drawn if p.kind == "box"]
    rough = [p for p in boxes if p.tokens.mask_logits is not None]
    assert len(rough) / len(boxes) == pytest.approx(NOISY_MASK_SHARE, abs=0.05)
    gaps, wrong = [], []
    for prompt in rough:
        object_ = cv2.resize(prompt.target.astype(np.float32), NO_RASTER.low_res_hw, interpolation=cv2.INTER_AREA) > 0.5
        logits = prompt.tokens.mask_logits
        gaps.append(logits[object_].mean() - logits[~object_].mean())
        wrong.append(((logits > 0) != object_).sum())
    assert min(gaps) > 2, "it is of the object"
    assert min(wrong) > 0, "and is not exact"
    assert len(set(wrong)) > 10, "nor always the same"


def test_half_of_the_boxes_are_around_all_pieces_together():
    both = disc((16, 16), 9) | disc((48, 48), 7)
    drawn = PromptDrawer(examples_of([view_of({1: both})]), SEGMENTER).draw(1000, np.random.default_rng(6))
    areas = [int(p.target.sum()) for p in drawn if p.kind == "box"]
    assert {*areas} == {int(both.sum()), int(disc((16, 16), 9).sum()), int(disc((48, 48), 7).sum())}
    assert sum(area == both.sum() for area in areas) / len(areas) == pytest.approx(WHOLE_SHARE, abs=0.08)


def test_a_rare_class_is_drawn_as_often_as_a_frequent_one():
    common = [view_of({1: disc((30, 30), 20)}, i) for i in range(5)]
    rare = view_of({2: disc((20, 40), 2)}, 5)
    drawn = PromptDrawer(examples_of([*common, rare], (1, 2)), SEGMENTER).draw(400, np.random.default_rng(0))
    shares = [sum(p.class_id == c for p in drawn) / 400 for c in (1, 2)]
    assert shares == pytest.approx([0.5, 0.5], abs=0.1)


def test_a_class_that_no_image_shows_is_not_drawn():
    examples = examples_of([view_of({1: disc((30, 30), 9), 2: np.zeros((SIDE, SIDE), bool)})], (1, 2))
    assert {p.class_id for p in PromptDrawer(examples, SEGMENTER).draw(50, np.random.default_rng(0))} == {1}


def test_an_object_that_fills_the_image_can_be_drawn():
    examples = examples_of([view_of({1: np.ones((SIDE, SIDE), bool)})])
    drawn = PromptDrawer(examples, SEGMENTER).draw(60, np.random.default_rng(0))
    assert {p.kind for p in drawn} >= {"box", "point"}
