"""Preprocessing equals segment-anything's own, bit for bit."""

import numpy as np
import pytest

from vplab.vision.preprocessing import FrameTransform, frame_transform, preprocess
from vplab.vision.specs import Preprocessing

SAM = Preprocessing(
    resize="longest_side", size=1024, mean_rgb=(123.675, 116.28, 103.53), std_rgb=(58.395, 57.12, 57.375)
)
SIZES_HW = [(480, 640), (640, 480), (1024, 1024), (333, 517), (1500, 700), (37, 2000)]


def random_image(size_hw: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (*size_hw, 3), dtype=np.uint8)


@pytest.mark.parametrize("size_hw", SIZES_HW)
def test_longest_side_equals_segment_anything_bit_for_bit(size_hw: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    from segment_anything.utils.transforms import ResizeLongestSide

    image = random_image(size_hw)
    resized = torch.as_tensor(ResizeLongestSide(1024).apply_image(image)).permute(2, 0, 1).contiguous()
    mean = torch.tensor(SAM.mean_rgb).view(-1, 1, 1)  # Sam.preprocess, with its buffers' dtype
    std = torch.tensor(SAM.std_rgb).view(-1, 1, 1)
    height, width = resized.shape[-2:]
    expected = torch.nn.functional.pad((resized - mean) / std, (0, 1024 - width, 0, 1024 - height)).numpy()

    result = preprocess(image, SAM)

    assert result.tensor.dtype == np.float32
    assert np.array_equal(result.tensor, expected)
    assert result.transform.input_hw == (height, width)


@pytest.mark.parametrize("size_hw", SIZES_HW)
def test_points_and_boxes_equal_segment_anything(size_hw: tuple[int, int]) -> None:
    pytest.importorskip("torch")
    from segment_anything.utils.transforms import ResizeLongestSide

    points = np.random.default_rng(1).uniform(0, 1, (20, 2)) * size_hw[::-1]
    boxes = np.concatenate([points[:10], points[10:]], axis=1)
    transform = frame_transform(size_hw, SAM)
    library = ResizeLongestSide(1024)

    assert np.array_equal(transform.points_to_input(points), library.apply_coords(points, size_hw).astype(np.float32))
    assert np.array_equal(transform.boxes_to_input(boxes), library.apply_boxes(boxes, size_hw).astype(np.float32))


def test_padding_is_zero_after_normalisation() -> None:
    result = preprocess(random_image((100, 400)), SAM)
    assert result.transform.input_hw == (256, 1024)
    assert not result.tensor[:, 256:].any()
    assert result.tensor[:, :256].all(axis=0).any()


def test_fixed_stretches_without_padding() -> None:
    fixed = Preprocessing(resize="fixed", size=64, interpolation="bicubic", mean_rgb=(0, 0, 0), std_rgb=(255, 255, 255))
    result = preprocess(np.full((10, 30, 3), 255, dtype=np.uint8), fixed)
    assert result.transform == FrameTransform((10, 30), (64, 64), (64, 64))
    assert np.array_equal(result.tensor, np.ones((3, 64, 64), dtype=np.float32))
    assert np.allclose(result.transform.points_to_input([[30, 10]]), [[64, 64]])


def test_an_extreme_strip_keeps_one_row() -> None:
    result = preprocess(random_image((1, 5000)), SAM)
    assert result.transform.input_hw == (1, 1024)


def test_points_come_back_to_the_original() -> None:
    transform = frame_transform((333, 517), SAM)
    points = np.array([[0.0, 0.0], [516.0, 332.0], [101.5, 77.25]])
    assert np.allclose(transform.points_to_original(transform.points_to_input(points)), points, atol=1e-4)


def test_valid_grid_counts_partly_covered_cells() -> None:
    transform = FrameTransform((50, 100), (65, 128), (128, 128))
    assert transform.valid_grid_hw(16) == (5, 8)
    assert transform.valid_grid_hw(8) == (9, 16)
