"""The decoder graph on any number of images, prompts and tokens, against segment-anything's own modules."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer

from fakes.graph_predictor import open_session
from fakes.sam_checkpoints import randomize
from vplab.vision.sam.onnx_decoder import INPUT_NAMES, OUTPUT_NAMES, decoder_to_onnx

WIDTH, GRID, INPUT = 64, 8, 128
"""A decoder of another width and another embedding size than SAM's 256 and 64."""


@pytest.fixture(scope="module")
def modules() -> tuple[PromptEncoder, MaskDecoder]:
    prompt_encoder = PromptEncoder(WIDTH, (GRID, GRID), (INPUT, INPUT), mask_in_chans=16)
    transformer = TwoWayTransformer(depth=2, embedding_dim=WIDTH, mlp_dim=128, num_heads=8)
    mask_decoder = MaskDecoder(transformer_dim=WIDTH, transformer=transformer)
    randomize(prompt_encoder, 0)
    randomize(mask_decoder, 1)
    return prompt_encoder.eval(), mask_decoder.eval()


@pytest.fixture(scope="module")
def graph(modules: tuple[PromptEncoder, MaskDecoder], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "decoder.onnx"
    decoder_to_onnx(*modules).save(path)
    return path


@pytest.fixture(scope="module")
def session(graph: Path) -> Any:
    return open_session(graph)


def make_inputs(num_images: int, num_prompts: int, num_points: int, has_mask: bool) -> dict[str, NDArray[np.generic]]:
    """Draw prompts whose last two tokens are a box, or whose last is padding, or that have none."""
    random = np.random.default_rng((num_images, num_prompts, num_points))
    labels = random.integers(0, 2, (num_prompts, num_points)).astype(np.float32)
    coords = random.uniform(0, INPUT, (num_prompts, num_points, 2)).astype(np.float32)
    if num_points in (1, 7):
        labels[:, -1], coords[:, -1] = -1, 0
    elif num_points:
        labels[:, -2:] = (2, 3)
    return {
        "image_embedding": random.normal(size=(num_images, WIDTH, GRID, GRID)).astype(np.float32),
        "image_index": random.integers(0, num_images, num_prompts),
        "point_coords": coords,
        "point_labels": labels,
        "mask_input": random.normal(0, 5, (num_prompts, 1, 4 * GRID, 4 * GRID)).astype(np.float32),
        "has_mask_input": np.full(num_prompts, has_mask, np.float32),
    }


@torch.no_grad()
def predictor_answer(
    modules: tuple[PromptEncoder, MaskDecoder], inputs: dict[str, NDArray[np.generic]], prompt: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Answer one prompt as SamPredictor.predict_torch does, single and multimask planes together."""
    prompt_encoder, mask_decoder = modules
    labels, coords = inputs["point_labels"][prompt], inputs["point_coords"][prompt]
    is_point, is_box = (labels == 0) | (labels == 1), labels >= 2
    points = (torch.from_numpy(coords[is_point])[None], torch.from_numpy(labels[is_point])[None].to(torch.int))
    has_padding = bool((labels == -1).any())
    sparse, dense = prompt_encoder(
        points=points if is_point.any() or has_padding else None,
        boxes=torch.from_numpy(coords[is_box]).reshape(1, 4) if is_box.any() else None,
        masks=torch.from_numpy(inputs["mask_input"][prompt][None]) if inputs["has_mask_input"][prompt] else None,
    )
    answers = []
    for multimask in (False, True):
        image = int(inputs["image_index"][prompt])
        answer = mask_decoder(
            image_embeddings=torch.from_numpy(inputs["image_embedding"][image : image + 1]),
            image_pe=prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
        )
        answers.append(answer)
    (single, single_iou), (several, several_iou) = answers
    return torch.cat([single, several], 1)[0].numpy(), torch.cat([single_iou, several_iou], 1)[0].numpy()


@pytest.mark.parametrize(
    ("num_points", "has_mask"),
    [(0, True), (1, False), (1, True), (2, False), (2, True), (7, False), (7, True)],
)
@pytest.mark.parametrize("num_prompts", [1, 5])
@pytest.mark.parametrize("num_images", [1, 3])
def test_each_prompt_of_a_batch_is_answered_as_it_would_be_alone(
    modules: tuple[PromptEncoder, MaskDecoder],
    session: Any,
    num_images: int,
    num_prompts: int,
    num_points: int,
    has_mask: bool,
) -> None:
    inputs = make_inputs(num_images, num_prompts, num_points, has_mask)
    logits, ious = session.run(list(OUTPUT_NAMES), inputs)
    assert logits.shape == (num_prompts, 4, 4 * GRID, 4 * GRID)
    for prompt in range(num_prompts):
        expected, expected_ious = predictor_answer(modules, inputs, prompt)
        np.testing.assert_allclose(logits[prompt], expected, atol=1e-4)
        np.testing.assert_allclose(ious[prompt], expected_ious, atol=1e-4)


def test_prompts_with_and_without_mask_share_a_call(modules: tuple[PromptEncoder, MaskDecoder], session: Any) -> None:
    inputs = make_inputs(2, 4, 2, True)
    inputs["has_mask_input"] = np.array([1, 0, 0, 1], np.float32)
    # What stands in the place of an absent mask must not matter, were it not even a number.
    inputs["mask_input"][1] = np.nan
    logits, _ = session.run(list(OUTPUT_NAMES), inputs)
    for prompt in range(4):
        np.testing.assert_allclose(logits[prompt], predictor_answer(modules, inputs, prompt)[0], atol=1e-4)


def test_the_image_index_decides_which_image_is_segmented(session: Any) -> None:
    inputs = make_inputs(3, 5, 2, False)
    mixed, _ = session.run(list(OUTPUT_NAMES), inputs)
    for image in range(3):
        alone = inputs | {"image_index": np.full(5, 0), "image_embedding": inputs["image_embedding"][image : image + 1]}
        one, _ = session.run(list(OUTPUT_NAMES), alone)
        chosen = inputs["image_index"] == image
        np.testing.assert_allclose(mixed[chosen], one[chosen], atol=1e-5)
        assert np.abs(mixed[~chosen] - one[~chosen]).max() > 0.1


def test_graph_names_and_types_are_the_documented_ones(session: Any) -> None:
    assert [i.name for i in session.get_inputs()] == list(INPUT_NAMES)
    assert {i.name: i.type for i in session.get_inputs()}["image_index"] == "tensor(int64)"
    assert {i.type for i in session.get_inputs() if i.name != "image_index"} == {"tensor(float)"}
    assert session.get_inputs()[0].shape == ["num_images", WIDTH, GRID, GRID]
    assert session.get_inputs()[2].shape == ["num_prompts", "num_points", 2]
    assert [o.shape for o in session.get_outputs()] == [["num_prompts", 4, 4 * GRID, 4 * GRID], ["num_prompts", 4]]


def test_exporting_twice_gives_equal_bytes_without_paths_of_this_machine(
    modules: tuple[PromptEncoder, MaskDecoder], graph: Path, tmp_path: Path
) -> None:
    decoder_to_onnx(*modules).save(tmp_path / "again.onnx")
    content = graph.read_bytes()
    assert (tmp_path / "again.onnx").read_bytes() == content
    assert b".py" not in content
    assert str(Path.cwd()).encode() not in content
