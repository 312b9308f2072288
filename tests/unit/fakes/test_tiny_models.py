"""The tiny models behave as the real graphs do, or the tests built on them would show nothing."""

import numpy as np
import onnxruntime

from fakes import tiny_models as tiny


def decode(**overrides: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    inputs = {
        "image_embedding": np.zeros((1, *tiny.EMBEDDING_SHAPE), np.float32),
        "image_index": np.array([0]),
        "point_coords": np.zeros((1, 0, 2), np.float32),
        "point_labels": np.zeros((1, 0), np.float32),
        "mask_input": np.zeros((1, 1, tiny.LOW_RES, tiny.LOW_RES), np.float32),
        "has_mask_input": np.zeros(1, np.float32),
    } | overrides
    session = onnxruntime.InferenceSession(tiny.decoder_onnx(), providers=["CPUExecutionProvider"])
    logits, iou = session.run(["low_res_logits", "iou_predictions"], inputs)
    return logits, iou


def test_encoder_gives_both_outputs_and_unit_features() -> None:
    session = onnxruntime.InferenceSession(tiny.encoder_onnx(), providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).normal(size=(3, 3, 128, 128)).astype(np.float32)
    embedding, features = session.run(["image_embedding", "patch_features"], {"image": images})
    assert embedding.shape == (3, 256, 8, 8)
    assert features.shape == (3, 16, 16, tiny.FEATURE_WIDTH)
    assert np.allclose(np.linalg.norm(features, axis=-1), 1, atol=1e-5)


def test_nothing_is_foreground_without_a_prompt() -> None:
    logits, iou = decode()
    assert logits.shape == (1, 4, 32, 32)
    assert iou.shape == (1, 4)
    assert (logits < 0).all()


def test_a_click_is_foreground_around_itself_and_a_second_one_takes_away() -> None:
    point = np.array([[[64, 32]]], np.float32)
    one = decode(point_coords=point, point_labels=np.ones((1, 1), np.float32))[0][0, 0] > 0
    assert one[8, 16]
    assert not one[24, 16]
    both = np.array([[[64, 32], [72, 32]]], np.float32)
    two = decode(point_coords=both, point_labels=np.array([[1, 0]], np.float32))[0][0, 0] > 0
    assert 0 < two.sum() < one.sum()


def test_a_box_is_foreground_inside() -> None:
    corners = np.array([[[16, 32], [80, 96]]], np.float32)
    mask = decode(point_coords=corners, point_labels=np.array([[2, 3]], np.float32))[0][0, 0] > 0
    assert mask[8:24, 4:20].all()
    assert mask.sum() == 16 * 16


def test_a_mask_input_counts_only_when_announced() -> None:
    mask = np.full((1, 1, 32, 32), 5, np.float32)
    assert (decode(mask_input=mask)[0] < 0).all()
    assert (decode(mask_input=mask, has_mask_input=np.ones(1, np.float32))[0] > 0).all()


def test_prompts_read_the_image_they_name() -> None:
    embedding = np.stack([np.zeros(tiny.EMBEDDING_SHAPE), np.full(tiny.EMBEDDING_SHAPE, 100)]).astype(np.float32)
    size = {"point_coords": np.zeros((2, 0, 2), np.float32), "point_labels": np.zeros((2, 0), np.float32)}
    size |= {"mask_input": np.zeros((2, 1, 32, 32), np.float32), "has_mask_input": np.zeros(2, np.float32)}
    logits, _ = decode(image_embedding=embedding, image_index=np.array([1, 0]), **size)
    assert (logits[0] > 0).all()
    assert (logits[1] < 0).all()
