"""The exported graph of an adapted decoder answers as the decoder does, for any number of images, prompts and points."""

import numpy as np
import pytest
import torch

from fakes.graph_predictor import open_session
from fakes.random_decoders import build_decoder, disturb, make_inputs
from vplab.vision.adapters.adapt import adapt
from vplab.vision.adapters.onnx_adapted import adapted_to_onnx
from vplab.vision.adapters.spec import METHODS, default_spec
from vplab.vision.sam.onnx_decoder import INPUT_NAMES, OUTPUT_NAMES, decoder_to_onnx


def export(adapted, folder):
    path = folder / "decoder.onnx"
    adapted_to_onnx(adapted).save(path)
    return path


def assert_same_answers(session, adapted, inputs):
    names = [i.name for i in session.get_inputs()]
    feed = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    with torch.no_grad():
        expected = adapted(*inputs)
    for got, one in zip(session.run(list(OUTPUT_NAMES), feed), expected, strict=True):
        np.testing.assert_allclose(got, one.numpy(), atol=2e-5 * float(one.abs().max()))


@pytest.mark.parametrize("method", METHODS)
def test_a_graph_answers_as_the_decoder_for_every_batch(tmp_path, method):
    adapted = disturb(adapt(build_decoder(grid=4), default_spec(method)))
    session = open_session(export(adapted, tmp_path))
    for num_images, num_prompts, num_points in ((1, 1, 1), (1, 4, 2), (3, 5, 7), (2, 2, 0)):
        inputs = make_inputs(adapted.base, num_images, num_prompts, num_points)
        assert_same_answers(session, adapted, inputs)


@pytest.mark.slow
@pytest.mark.parametrize("grid", [32, 64])
def test_an_ensemble_for_the_embedding_sizes_of_nano_and_sam_answers_as_the_decoder(tmp_path, grid):
    adapted = disturb(adapt(build_decoder(grid=grid), default_spec("e_peft")))
    session = open_session(export(adapted, tmp_path))
    assert_same_answers(session, adapted, make_inputs(adapted.base, 2, 3, 4))


def test_the_graph_has_the_names_types_and_axes_of_a_segmenter(tmp_path):
    decoder = build_decoder(grid=4)
    session = open_session(export(adapt(decoder, default_spec("e_peft")), tmp_path))
    decoder_to_onnx(decoder.prompt_encoder, decoder.mask_decoder).save(tmp_path / "base.onnx")
    base = open_session(tmp_path / "base.onnx")
    assert [i.name for i in session.get_inputs()] == list(INPUT_NAMES)
    for one, other in zip(
        (*session.get_inputs(), *session.get_outputs()), (*base.get_inputs(), *base.get_outputs()), strict=True
    ):
        assert (one.name, one.type, one.shape) == (other.name, other.type, other.shape)


def test_what_is_folded_whole_leaves_the_graph_of_the_base(tmp_path):
    onnx = pytest.importorskip("onnx")
    decoder = build_decoder(grid=4)
    decoder_to_onnx(decoder.prompt_encoder, decoder.mask_decoder).save(tmp_path / "base.onnx")
    operations = [node.op_type for node in onnx.load(tmp_path / "base.onnx").graph.node]
    for method in ("lora", "ia3"):
        graph = onnx.load(export(disturb(adapt(decoder, default_spec(method))), tmp_path)).graph
        assert [node.op_type for node in graph.node] == operations
