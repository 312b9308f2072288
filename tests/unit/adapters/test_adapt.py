"""What every method promises of an adapted decoder."""

import pytest
import torch
from safetensors.torch import load, save

from fakes.random_decoders import build_decoder, disturb, make_inputs
from vplab.errors import DataLoss, InvalidInput
from vplab.vision.adapters.adapt import adapt
from vplab.vision.adapters.spec import METHODS, default_spec
from vplab.vision.adapters.walk import decode_adapted

IDENTITIES = ("lora", "ia3", "prompt_tokens", "image_context", "e_peft")
"""Methods that leave the decoder as it is until they are trained."""


def assert_same(got, expected, tolerance=1e-5):
    """Compare logits and predicted IoU; the tolerance is relative to the largest value."""
    for one, other in zip(got, expected, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= tolerance * other.abs().max()


def assert_differs(got, expected):
    assert (got[0] - expected[0]).abs().max() > 1e-2 * expected[0].abs().max()


@pytest.mark.parametrize("method", IDENTITIES)
@torch.no_grad()
def test_an_untrained_adapter_is_the_identity(decoder, inputs, method):
    assert_same(adapt(decoder, default_spec(method))(*inputs), decoder(*inputs), tolerance=2e-6)


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_an_adapter_changes_the_answers_once_its_tensors_move(decoder, inputs, method):
    assert_differs(disturb(adapt(decoder, default_spec(method)))(*inputs), decoder(*inputs))


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_merging_changes_no_answer(decoder, inputs, method):
    adapted = disturb(adapt(decoder, default_spec(method)))
    before = adapted(*inputs)
    assert_same(adapted.merged()(*inputs), before, tolerance=2e-5)
    assert_same(adapted(*inputs), before, tolerance=0)


@pytest.mark.parametrize("method", METHODS)
def test_making_the_weights_of_the_image_side_changes_no_answer_and_no_gradient(decoder, inputs, method):
    adapted = disturb(adapt(decoder, default_spec(method)))
    tensors = adapted.adapter.named()
    found = []
    for folds in (False, True):
        answers = decode_adapted(adapted.base, adapted.parts, tensors, inputs, folds_image_side=folds)
        loss = answers[0].square().mean() + answers[1].square().mean()
        found.append((answers, torch.autograd.grad(loss, list(tensors.values()))))
    assert_same(found[1][0], found[0][0], tolerance=2e-5)
    for name, beside, made in zip(tensors, found[0][1], found[1][1], strict=True):
        assert (made - beside).abs().max() <= 1e-3 * beside.abs().max(), name


@pytest.mark.parametrize("method", METHODS)
def test_gradients_reach_every_tensor_of_the_adapter_and_nothing_else(decoder, inputs, method):
    adapted = disturb(adapt(decoder, default_spec(method)))
    logits, ious = adapted(*inputs)
    (logits.square().mean() + ious.square().mean()).backward()
    for name, value in adapted.adapter.named().items():
        assert value.grad is not None, name
        assert value.grad.abs().max() > 0, name
    trained = {id(value) for value in adapted.adapter_parameters()}
    assert all(value.grad is None for value in adapted.parameters() if id(value) not in trained)
    assert all(value.grad is None for value in decoder.parameters())


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_the_decoder_stays_as_it_was(method):
    decoder = build_decoder(grid=4)
    inputs = make_inputs(decoder)
    decoder.requires_grad_(True)
    before, answers = {k: v.clone() for k, v in decoder.state_dict().items()}, decoder(*inputs)
    adapted = disturb(adapt(decoder, default_spec(method)))
    adapted.merged()
    assert before.keys() == decoder.state_dict().keys()
    assert all(torch.equal(before[key], value) for key, value in decoder.state_dict().items())
    assert all(value.requires_grad for value in decoder.parameters())
    assert_same(decoder(*inputs), answers, tolerance=0)


@torch.no_grad()
def test_two_adapters_beside_one_decoder_share_its_weights_and_answer_by_themselves(decoder, inputs):
    first, second = (disturb(adapt(decoder, default_spec("e_peft")), seed=seed) for seed in (1, 2))
    first_alone = disturb(adapt(build_decoder(), default_spec("e_peft")), seed=1)
    assert_differs(first(*inputs), second(*inputs))
    assert_same(first(*inputs), first_alone(*inputs), tolerance=0)
    pointers = {value.data_ptr() for value in decoder.parameters()}
    assert {value.data_ptr() for value in first.base.parameters()} == pointers
    assert {value.data_ptr() for value in second.base.parameters()} == pointers


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_a_state_survives_the_file_format(decoder, inputs, method):
    adapted = disturb(adapt(decoder, default_spec(method)))
    data = save(adapted.adapter_state())
    other = adapt(decoder, default_spec(method), seed=5)
    other.load_adapter_state(load(data))
    assert_same(other(*inputs), adapted(*inputs), tolerance=0)


@pytest.mark.parametrize("method", METHODS)
def test_equal_seeds_give_equal_adapters_and_leave_the_global_generator_alone(decoder, method):
    torch.manual_seed(3)
    first = adapt(decoder, default_spec(method), seed=11).adapter_state()
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))
    second = adapt(decoder, default_spec(method), seed=11).adapter_state()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_state_copy_does_not_change_when_training_goes_on(decoder):
    adapted = adapt(decoder, default_spec("lora"))
    state = adapted.adapter_state()
    disturb(adapted)
    assert all(not value.any() for name, value in state.items() if name.endswith(".up"))


def test_a_half_precision_state_is_taken_as_float32(decoder):
    adapted = adapt(decoder, default_spec("ia3"))
    adapted.load_adapter_state({name: value.half() * 2 for name, value in adapted.adapter_state().items()})
    assert all(value.dtype == torch.float32 and bool((value == 2).all()) for value in adapted.adapter_parameters())


def test_a_state_of_another_adapter_is_refused_by_name(decoder):
    adapted = adapt(decoder, default_spec("ia3"))
    state = adapted.adapter_state()
    scale = "ia3.layers.0.mlp.lin2.input_scale"
    wrong = {name: value for name, value in state.items() if "layers.1.self_attn.q_proj" not in name}
    wrong |= {scale: torch.ones(7), "lora.x.up": torch.ones(1)}
    with pytest.raises(InvalidInput) as refused:
        adapted.load_adapter_state(wrong)
    message = refused.value.message
    assert "1 missing: ia3.layers.1.self_attn.q_proj.output_scale" in message
    assert "1 unexpected: lora.x.up" in message
    assert f"{scale} (7,) instead of (2048,)" in message
    assert refused.value.violations[0].field == "adapter"
    assert all(torch.equal(value, state[name]) for name, value in adapted.adapter_state().items())


def test_a_state_with_values_that_are_not_finite_is_refused_by_name(decoder):
    adapted = adapt(decoder, default_spec("ia3"))
    state = adapted.adapter_state()
    state["ia3.layers.0.mlp.lin2.input_scale"][3] = torch.nan
    with pytest.raises(DataLoss, match=r"ia3\.layers\.0\.mlp\.lin2\.input_scale"):
        adapted.load_adapter_state(state)
    assert all(bool(torch.isfinite(value).all()) for value in adapted.adapter_parameters())
