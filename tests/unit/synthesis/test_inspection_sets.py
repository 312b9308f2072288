"""Generated inspection images: the same from the same seed, and masks that are exactly where the defect is."""

import numpy as np
import pytest

from vplab.errors import InvalidInput
from vplab.vision.synthesis import DEFECTS, SURFACES, synthesize_inspection_set, synthesize_scene
from vplab.vision.synthesis.defects import DefectStyle
from vplab.vision.synthesis.fields import polyline_coverage
from vplab.vision.synthesis.scenes import MASK_COVERAGE, _apply
from vplab.vision.synthesis.surfaces import Surface


def test_the_same_seed_gives_the_same_images_and_another_seed_others():
    first = synthesize_inspection_set(2, (96, 128), "scratch", seed=3)
    again = synthesize_inspection_set(2, (96, 128), "scratch", seed=3)
    other = synthesize_inspection_set(2, (96, 128), "scratch", seed=4)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.image_rgb, b.image_rgb)
        np.testing.assert_array_equal(a.mask, b.mask)
    assert not np.array_equal(first[0].image_rgb, other[0].image_rgb)


def test_a_longer_set_begins_with_the_shorter_one():
    short = synthesize_inspection_set(1, (64, 64), "pore", seed=1)
    long = synthesize_inspection_set(3, (64, 64), "pore", seed=1)
    np.testing.assert_array_equal(short[0].image_rgb, long[0].image_rgb)


@pytest.mark.parametrize("defect", sorted(DEFECTS))
def test_every_defect_has_a_mask_that_is_neither_empty_nor_everything(defect):
    for image in synthesize_inspection_set(2, (128, 96), defect, seed=0):
        assert image.image_rgb.shape == (128, 96, 3)
        assert image.image_rgb.dtype == np.uint8
        assert image.mask.shape == (128, 96)
        assert image.mask.dtype == np.bool_
        assert 0 < image.mask.sum() < 0.9 * image.mask.size
        assert image.class_name == defect


@pytest.mark.parametrize("surface", sorted(SURFACES))
def test_every_surface_uses_the_range_of_the_camera(surface):
    image = synthesize_inspection_set(1, (128, 128), "stain", seed=2, surface=surface)[0].image_rgb
    assert 15 < np.median(image) < 240
    assert image.std() > 2


@pytest.mark.parametrize("defect", sorted(DEFECTS))
def test_a_defect_recolours_every_pixel_of_its_mask_and_none_beyond_its_coverage(defect):
    rng = np.random.default_rng(7)
    style = DefectStyle.draw(rng)
    surface = Surface(np.zeros((256, 256), np.float32), np.full((256, 256, 3), 0.5, np.float32), 0.0)
    instance = DEFECTS[defect]((256, 256), 0.5, style, rng)
    changed = np.abs(_apply(surface, instance, style).albedo - surface.albedo).max(2) > 1e-6
    assert not changed[instance.coverage == 0].any()
    assert changed[instance.coverage >= MASK_COVERAGE].mean() > 0.95  # a mottled texture crosses the surface's own tone


def test_coverage_of_a_line_adds_up_to_its_width():
    coverage = polyline_coverage((20, 40), np.array([[5.0, 10.0], [34.0, 10.0]]), np.array([4.0, 4.0]))
    column = coverage[:, 20]
    assert column.sum() == pytest.approx(4.0, abs=0.3)
    assert np.flatnonzero(column >= 0.5).tolist() == [8, 9, 10, 11, 12]


def test_a_scene_names_the_class_of_every_instance_it_shows():
    for seed in range(4):
        scene = synthesize_scene((128, 160), np.random.default_rng(seed))
        assert scene.segments.shape == (128, 160)
        assert 1 <= scene.segments.max() <= len(scene.class_names)
        assert set(scene.class_names) <= set(DEFECTS)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"num_images": 0}, "num_images"),
        ({"num_images": 1, "size_hw": (63, 200)}, "size_hw"),
        ({"num_images": 1, "defect": "rust"}, "defect"),
        ({"num_images": 1, "surface": "velvet"}, "surface"),
    ],
)
def test_a_wrong_argument_is_invalid_input_that_names_it(arguments, field):
    with pytest.raises(InvalidInput) as error:
        synthesize_inspection_set(**arguments)
    assert error.value.violations[0].field == field
