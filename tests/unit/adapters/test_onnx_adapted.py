"""The exported graph of an adapted decoder answers as the decoder does, on any number of images and prompts."""

import functools

import numpy as np
import onnx
import pytest
import torch

from fakes.graph_predictor import open_session
from fakes.random_decoders import build_decoder, disturb, make_inputs
from vplab.vision.adapters.adapt import adapt
from vplab.vision.adapters.onnx_adapted import adapted_to_onnx
from vplab.vision.adapters.spec import EARLY_INPUT, HqTokenSpec, default_spec
from vplab.vision.sam.onnx_decoder import INPUT_NAMES, OUTPUT_NAMES, PromptDecoder, decoder_to_onnx

FOLDED = ("lora", "ia3", "boft", "qlora", "full_decoder")
BESIDE = ("e_peft", "conv_lora", "adapter_layers", "hq_token")
EARLY_CHANNELS = 6
SPECS = {method: default_spec(method) for method in FOLDED + BESIDE} | {"hq_token": HqTokenSpec(early_channels=6)}


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """Return an adapted decoder and its graph's path; each is made once, since an export takes seconds."""

    @functools.cache
    def make(method, grid=4):
        adapted = disturb(adapt(build_decoder(grid=grid), SPECS[method]))
        path = tmp_path_factory.mktemp(method) / "decoder.onnx"
        adapted_to_onnx(adapted).save(path)
        return adapted, path

    return make


@pytest.fixture(scope="module")
def base_graph(tmp_path_factory):
    decoder = build_decoder(grid=4)
    path = tmp_path_factory.mktemp("base") / "decoder.onnx"
    decoder_to_onnx(decoder.prompt_encoder, decoder.mask_decoder).save(path)
    return path


def assert_same_answers(session, adapted, num_images, num_prompts, num_points):
    inputs = make_inputs(adapted.base, num_images, num_prompts, num_points)
    if adapted.early_channels:
        height, width = adapted.base.prompt_encoder.image_embedding_size
        inputs = (*inputs, torch.randn(num_images, adapted.early_channels, height, width))
    names = [i.name for i in session.get_inputs()]
    feed = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    with torch.no_grad():
        expected = adapted(*inputs)
    for got, one in zip(session.run(list(OUTPUT_NAMES), feed), expected, strict=True):
        np.testing.assert_allclose(got, one.numpy(), atol=2e-5 * float(one.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", *BESIDE])
def test_a_graph_answers_as_the_decoder_for_every_batch(export, method):
    adapted, path = export(method)
    session = open_session(path)
    for num_images, num_prompts, num_points in ((1, 1, 1), (1, 4, 2), (3, 5, 7), (2, 2, 0)):
        assert_same_answers(session, adapted, num_images, num_prompts, num_points)


@pytest.mark.slow
def test_nothing_that_the_decoder_compares_binds_a_free_axis(monkeypatch):
    """The exporter would trace it all a second time, with bounds on how many points a prompt may have."""
    traced, export = [], torch.export.export
    monkeypatch.setattr(torch.export, "export", lambda *args, **options: traced.append(1) or export(*args, **options))
    adapted_to_onnx(adapt(build_decoder(grid=4), SPECS["e_peft"]))
    assert len(traced) == 1


@pytest.mark.slow
@pytest.mark.parametrize("grid", [32, 64])
def test_an_ensemble_for_the_embedding_sizes_of_nano_and_sam_answers_as_the_decoder(export, grid):
    adapted, path = export("e_peft", grid)
    assert_same_answers(open_session(path), adapted, 2, 3, 4)


@pytest.mark.slow
def test_the_graph_has_the_names_types_and_axes_of_a_segmenter(export, base_graph):
    session, base = open_session(export("e_peft")[1]), open_session(base_graph)
    assert [i.name for i in session.get_inputs()] == list(INPUT_NAMES)
    for one, other in zip(
        (*session.get_inputs(), *session.get_outputs()), (*base.get_inputs(), *base.get_outputs()), strict=True
    ):
        assert (one.name, one.type, one.shape) == (other.name, other.type, other.shape)


@pytest.mark.slow
def test_an_early_feature_is_one_more_input(export):
    early = open_session(export("hq_token")[1]).get_inputs()[-1]
    assert (early.name, early.shape) == (EARLY_INPUT, ["num_images", EARLY_CHANNELS, 4, 4])


@pytest.mark.slow
def test_what_is_folded_whole_leaves_the_graph_of_the_base(export, base_graph):
    operations = [node.op_type for node in onnx.load(base_graph).graph.node]
    assert [node.op_type for node in onnx.load(export("lora")[1]).graph.node] == operations


@pytest.mark.parametrize("method", FOLDED)
def test_what_is_folded_whole_is_a_plain_decoder(decoder, method):
    merged = adapt(decoder, SPECS[method]).merged()
    assert type(merged) is PromptDecoder
    assert merged.state_dict().keys() == decoder.state_dict().keys()
