from dataclasses import replace

import numpy as np
import pytest

from fakes.tiny_tuning import SEGMENTER, SIDE, disc, discs, examples_of, view_of
from vplab.errors import InvalidInput
from vplab.training.tuning import examples
from vplab.training.tuning.examples import build_examples, mask_in_frame, pieces_in_frame
from vplab.vision.matching import build_class_bank
from vplab.vision.preprocessing import FrameTransform


def test_a_mask_keeps_its_area_in_the_frame():
    mask = disc((300, 200), 90, (480, 640))
    frame = mask_in_frame(mask, FrameTransform((480, 640), (48, 64), (64, 64)))
    assert frame.shape == (64, 64)
    assert frame.sum() == pytest.approx(mask.sum() / 100, abs=1)


def test_a_line_thinner_than_a_pixel_of_the_frame_stays():
    mask = np.zeros((480, 640), bool)
    mask[:, 320:324] = True  # 0.4 pixels of the frame
    frame = mask_in_frame(mask, FrameTransform((480, 640), (48, 64), (64, 64)))
    assert frame.any()
    assert set(np.nonzero(frame)[1]) == {32}


def test_a_single_pixel_is_not_lost():
    mask = np.zeros((480, 640), bool)
    mask[100, 100] = True
    assert mask_in_frame(mask, FrameTransform((480, 640), (48, 64), (64, 64))).sum() >= 1


def test_padding_is_background():
    frame = mask_in_frame(np.ones((480, 640), bool), FrameTransform((480, 640), (48, 64), (64, 64)))
    assert frame[:48].all()
    assert not frame[48:].any()


def test_pieces_that_touch_only_in_the_frame_are_told_apart():
    mask = disc((200, 240), 90, (480, 640)) | disc((385, 240), 90, (480, 640))  # four pixels between them
    transform = FrameTransform((480, 640), (48, 64), (64, 64))
    frame = mask_in_frame(mask, transform)
    pieces = pieces_in_frame(mask, frame, transform)
    assert set(np.unique(pieces)) == {0, 1, 2}
    assert np.array_equal(pieces > 0, frame)
    assert (pieces == 1).sum() == pytest.approx((pieces == 2).sum(), rel=0.1)


def test_a_line_that_the_frame_thins_out_stays_one_piece():
    mask = np.zeros((480, 640), bool)
    mask[300, 50:600] = True
    transform = FrameTransform((480, 640), (48, 64), (64, 64))
    frame = mask_in_frame(mask, transform)
    assert pieces_in_frame(mask, frame, transform).max() == 1
    assert np.array_equal(pieces_in_frame(mask, frame, transform) > 0, frame)


def test_an_image_is_never_its_own_reference():
    views = discs(3)
    before = examples_of(views)[0].proposals[1]
    moved = view_of({1: disc((50, 50), 5)}, 0)
    changed = [view_of(views[0].masks, 0), *views[1:]]
    changed[0] = type(moved)(0, True, views[0].embedding, views[0].transform, moved.masks, views[0].patches)
    after = examples_of(changed)[0].proposals[1]
    assert np.array_equal(before.points_xy, after.points_xy)
    assert np.array_equal(before.similarity, after.similarity)


def test_a_single_image_refers_to_itself():
    example = examples_of(discs(1))[0]
    points = example.proposals[1].points_xy.astype(int)
    assert len(points)
    assert example.masks[1][points[0, 1], points[0, 0]]


def test_proposals_find_the_object_by_the_other_images():
    for example in examples_of(discs(4)):
        x, y = example.proposals[1].points_xy[0].astype(int)
        assert example.masks[1][y, x]
        assert example.proposals[1].similarity.shape == SEGMENTER.low_res_hw


def test_threads_change_nothing():
    views = discs(6)
    alone, shared = (build_examples(views, [1], SEGMENTER, num_threads=count) for count in (1, 3))
    for one, other in zip(alone, shared, strict=True):
        assert one.image_index == other.image_index
        assert np.array_equal(one.proposals[1].points_xy, other.proposals[1].points_xy)
        assert np.array_equal(one.proposals[1].similarity, other.proposals[1].similarity)


def test_what_looks_like_the_class_and_is_not_is_proposed():
    lookalike = replaced(view_of({1: disc((30, 30), 9)}, 2), masks={})
    example = examples_of([*discs(2), lookalike])[2]
    assert len(example.proposals[1].points_xy)
    assert not example.masks[1].any()


def test_a_class_without_patch_features_has_no_proposals():
    example = examples_of([view_of({1: disc((30, 30), 9)}, has_patches=False)])[0]
    assert example.proposals == {}
    assert example.masks[1].any()


def test_a_class_that_an_image_does_not_name_is_empty_there():
    examples = examples_of([view_of({1: disc((20, 20), 8)}, 0), view_of({2: disc((40, 40), 8)}, 1)], (1, 2))
    assert [bool(e.masks[1].any()) for e in examples] == [True, False]
    assert [bool(e.masks[2].any()) for e in examples] == [False, True]


def replaced(view, **changes):
    return type(view)(**{**vars(view), **changes})


@pytest.mark.parametrize(
    ("views", "class_ids", "field", "words"),
    [
        ([], (1,), "images", "at least one image"),
        (discs(1), (), "classes", "empty or not distinct"),
        (discs(1), (1, 1), "classes", "empty or not distinct"),
        (discs(1), (2,), "images[0].masks", "class 1 is not one"),
        ([view_of({1: np.zeros((SIDE, SIDE), bool)})], (1,), "images", "single pixel"),
        ([replaced(discs(1)[0], embedding=np.zeros((8, 8, 8), np.float16))], (1,), "images[0]", "(32, 8, 8)"),
        ([replaced(discs(1)[0], masks={1: disc((9, 9), 5, (20, 30))})], (1,), "images[0].masks", "(30, 20) pixels"),
        ([discs(1)[0], replaced(discs(2)[1], is_original=False)], (1,), "images[1]", "original view"),
    ],
)
def test_wrong_input_is_named(views, class_ids, field, words):
    with pytest.raises(InvalidInput) as caught:
        examples_of(views, class_ids)
    assert caught.value.violations[0].field == field
    assert words in caught.value.message


def many_discs(count):
    return [view_of({1: disc((16 + 4 * (i % 8), 20 + 3 * (i % 7)), 9)}, i) for i in range(count)]


@pytest.mark.parametrize("count", [3, 7, 11, 12, 23])
def test_images_share_references_and_none_is_its_own(count, monkeypatch):
    built = []

    def spy(references):
        built.append([reference.image_index for reference in references])
        return build_class_bank(references)

    monkeypatch.setattr(examples, "build_class_bank", spy)
    views = many_discs(count)
    for view in views:
        references = [v.image_index for v in examples._references_of(view.image_index, views)]
        assert view.image_index not in references
        assert len(set(references)) == min(count - 1, examples.MAX_REFERENCES)
    examples_of(views)
    assert len(built) == (count if count <= 10 else -(-count // examples.MAX_REFERENCES))
    used = [index for references in built for index in references]
    assert set(used) == set(range(count))


def coloured(view):
    """Return a view whose picture shows its class in red, on a grid four times as fine as the patches'."""
    height, width = view.transform.padded_hw
    colours = np.full((3, height, width), 0.4, np.float16)
    colours[0][view.masks[1]] = 0.8
    return replaced(view, patches=replace(view.patches, colours=colours), colours=colours)


def test_proposals_are_what_pixels_of_the_other_images_teach():
    views = [view_of({1: disc((16 + 6 * i, 20 + 5 * i), 6)}, i) for i in range(4)]
    coarse, fine = (examples_of(v)[0].proposals[1] for v in (views, [coloured(v) for v in views]))
    assert coarse.pixel_odds is None
    assert fine.pixel_odds is not None
    truth = views[0].masks[1]
    assert ((fine.pixel_odds > 0) & truth).sum() / ((fine.pixel_odds > 0) | truth).sum() > 0.9
    wanted = truth.reshape(SIDE // 2, 2, SIDE // 2, 2).mean((1, 3))
    error = [np.abs(proposals.similarity - wanted).mean() for proposals in (fine, coarse)]
    assert error[0] < 0.5 * error[1]
