import numpy as np
import pytest

from vplab.training.tuning.augmentation import View, apply_view, plan_views

RNG = np.random.default_rng(0)


def marked(height: int = 40, width: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Return a mask, and an image that is white where the mask is set and black elsewhere."""
    mask = np.zeros((height, width), bool)
    mask[5:12, 30:52] = True
    mask[20:33, 8:11] = True
    return np.repeat((mask * 255).astype(np.uint8)[..., None], 3, axis=2), mask


def test_the_first_view_is_the_image_itself():
    image, mask = marked()
    view = plan_views(3, seed=1, image_index=4)[0]
    seen, masks = apply_view(view, image, {1: mask})
    assert view.is_original
    assert np.array_equal(seen, image)
    assert np.array_equal(masks[1], mask)


def test_only_the_first_view_is_the_image_itself():
    assert [v.is_original for v in plan_views(6, seed=0, image_index=0)] == [True] + [False] * 5


def test_a_longer_plan_goes_on_where_a_shorter_one_ends():
    assert plan_views(3, seed=5, image_index=2) == plan_views(6, seed=5, image_index=2)[:3]


def test_images_and_seeds_have_views_of_their_own():
    plans = {plan_views(3, seed=s, image_index=i)[1:] for s in (0, 1) for i in (0, 1)}
    assert len(plans) == 4


@pytest.mark.parametrize(
    "view",
    [
        View(is_flipped=True),
        *(View(quarter_turns=turns) for turns in (1, 2, 3)),
        View(is_flipped=True, quarter_turns=1),
        View(scale=1.7, focus=0.9),
        View(scale=0.7),
        View(is_flipped=True, quarter_turns=3, scale=1.3, focus=0.1),
    ],
)
def test_masks_move_with_the_image(view):
    image, mask = marked()
    seen, masks = apply_view(view, image, {1: mask})
    assert np.array_equal(seen[..., 0] > 127, masks[1])
    assert masks[1].any()


def test_a_quarter_turn_swaps_the_sides():
    image, mask = marked(40, 60)
    seen, masks = apply_view(View(quarter_turns=1), image, {1: mask})
    assert seen.shape == (60, 40, 3)
    assert masks[1].shape == (60, 40)


def test_zooming_in_keeps_a_pixel_of_the_object_and_fewer_of_the_image():
    mask = np.zeros((100, 100), bool)
    mask[97, 2] = True  # a corner, where a zoom on the middle would lose it
    image = np.zeros((100, 100, 3), np.uint8)
    seen, masks = apply_view(View(scale=2.0), image, {1: mask})
    assert seen.shape == (50, 50, 3)
    assert masks[1].sum() == 1


def test_light_changes_the_image_and_no_mask():
    image = RNG.integers(0, 256, (30, 30, 3), dtype=np.uint8)
    mask = RNG.random((30, 30)) > 0.5
    seen, masks = apply_view(View(gain=1.2, offset=15, gamma=0.8), image, {3: mask})
    assert np.array_equal(masks[3], mask)
    assert seen.astype(int).mean() > image.astype(int).mean() + 5
    darkest, brightest = image.argmin(), image.argmax()
    assert seen.reshape(-1)[darkest] <= seen.reshape(-1)[brightest]


def test_an_image_without_any_object_can_be_zoomed():
    seen, masks = apply_view(View(scale=1.5), np.zeros((30, 50, 3), np.uint8), {1: np.zeros((30, 50), bool)})
    assert seen.shape == (20, 33, 3)
    assert not masks[1].any()


def test_an_image_without_masks_can_be_zoomed():
    seen, masks = apply_view(View(scale=1.5), np.zeros((30, 50, 3), np.uint8), {})
    assert seen.shape == (20, 33, 3)
    assert masks == {}
