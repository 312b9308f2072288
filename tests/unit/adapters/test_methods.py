"""What is particular to single methods."""

import pytest
import torch

from fakes.random_decoders import disturb, make_inputs
from vplab.errors import InvalidInput
from vplab.vision.adapters.adapt import adapt
from vplab.vision.adapters.quantized import QuantizedLinear
from vplab.vision.adapters.spec import HqTokenSpec, PromptTokensSpec, QloraSpec, default_spec


def features(channels, grid=8, num_images=2):
    return torch.randn(num_images, channels, grid, grid, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def test_the_hq_mask_is_added_to_every_plane_and_may_stand_alone_in_training(decoder, inputs):
    adapted = adapt(decoder, HqTokenSpec(trained_mask="alone"))
    logits, ious = adapted.eval()(*inputs)
    hq, _ = adapted.train()(*inputs)
    assert torch.equal(hq, hq[:, :1].expand_as(hq))
    # SAM's own planes see the new token too, as in HQ-SAM, so what is left is not the base's answer.
    sam = logits - hq
    assert (sam[:, 0] - sam[:, 1]).abs().max() > 0.1
    assert ious.shape == (3, 4)


@torch.no_grad()
def test_the_hq_mask_is_trained_as_it_serves_and_is_zero_at_the_start(decoder, inputs):
    adapted = adapt(decoder, default_spec("hq_token"))
    start, _ = adapted.eval()(*inputs)
    assert torch.equal(start, adapted.train()(*inputs)[0])
    adapted.adapter.named()["hq_token.mlp.layers.2.bias"].add_(1.0)
    moved = adapted(*inputs)[0] - start
    assert moved.abs().max() > 0.1
    assert torch.allclose(moved, moved[:, :1].expand_as(moved), atol=1e-4)


@torch.no_grad()
def test_the_hq_mask_follows_the_early_feature_of_the_prompts_image(decoder, inputs):
    adapted = disturb(adapt(decoder, HqTokenSpec(early_channels=5)))
    early = features(5)
    before, _ = adapted(*inputs, early)
    early[1] += 1
    after, _ = adapted(*inputs, early)
    of_second = inputs[1] == 1
    assert torch.equal(after[~of_second], before[~of_second])
    assert (after[of_second] - before[of_second]).abs().amax(dim=(1, 2, 3)).min() > 0.1


@pytest.mark.parametrize(("channels", "given"), [(None, 5), (5, None), (5, 6)])
def test_early_features_must_be_those_the_adapter_is_made_for(decoder, inputs, channels, given):
    adapted = adapt(decoder, HqTokenSpec(early_channels=channels))
    with pytest.raises(InvalidInput) as refused:
        adapted(*inputs, None if given is None else features(given))
    assert refused.value.violations[0].field == "early_features"


@torch.no_grad()
def test_tokens_without_a_gate_change_the_answers_from_the_start(decoder, inputs):
    adapted = adapt(decoder, PromptTokensSpec(gate="none"))
    assert (adapted(*inputs)[0] - decoder(*inputs)[0]).abs().max() > 1e-2


@pytest.mark.parametrize("gate", ["zero", "none"])
@pytest.mark.parametrize(("queries", "image"), [((4, 0), (0, 0, 0)), ((0, 0), (0, 4, 0)), ((0, 0), (0, 0, 4))])
@torch.no_grad()
def test_tokens_of_any_single_place_act(decoder, inputs, gate, queries, image):
    spec = PromptTokensSpec(gate=gate, query_tokens=queries, image_tokens=image)
    adapted = disturb(adapt(decoder, spec), scale=1.0)
    assert (adapted(*inputs)[0] - decoder(*inputs)[0]).abs().max() > 1e-2


@pytest.mark.parametrize(("base_type", "tolerance"), [("int8", 0.01), ("nf4", 0.12)])
def test_a_quantised_layer_is_close_and_a_fraction_of_the_size(base_type, tolerance):
    torch.manual_seed(0)
    layer = torch.nn.Linear(130, 50)  # 6,500 weights: the last NF4 block is not full
    quantised = QuantizedLinear(layer, base_type)
    error = (quantised.weight - layer.weight).norm() / layer.weight.norm()
    assert 0 < error < tolerance
    x = torch.randn(3, 7, 130)
    assert torch.equal(quantised(x), torch.nn.functional.linear(x, quantised.weight, layer.bias))
    bits = 8 * sum(b.numel() * b.element_size() for b in (quantised.codes, quantised.scales)) / layer.weight.numel()
    assert bits < (9 if base_type == "int8" else 5)


def test_nf4_keeps_the_values_of_its_codebook_exactly():
    from vplab.vision.adapters.quantized import _NF4

    layer = torch.nn.Linear(64, 2)
    values = torch.tensor(_NF4).repeat(4)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([values * 3, values.flip(0) * 0.01]))
    assert torch.allclose(QuantizedLinear(layer, "nf4").weight, layer.weight, rtol=1e-6, atol=0)


@torch.no_grad()
def test_a_quantised_base_takes_less_memory_and_answers_much_the_same(decoder, inputs):
    plain = adapt(decoder, default_spec("lora"))
    expected, _ = plain(*inputs)
    bytes_by_type = {}
    for base_type in ("int8", "nf4"):
        adapted = adapt(decoder, QloraSpec(base_type=base_type))
        bytes_by_type[base_type] = adapted.base_bytes
        logits, _ = adapted(*inputs)
        assert torch.corrcoef(torch.stack([logits.flatten(), expected.flatten()]))[0, 1] > 0.9
    assert bytes_by_type["nf4"] < bytes_by_type["int8"] < plain.base_bytes / 3


@torch.no_grad()
def test_merging_full_tuning_keeps_the_moment(decoder, inputs):
    adapted = disturb(adapt(decoder, default_spec("full_decoder")), scale=0.01)
    merged = adapted.merged()
    before, _ = merged(*inputs)
    disturb(adapted, scale=0.01)
    assert torch.equal(merged(*inputs)[0], before)


@torch.no_grad()
def test_the_image_context_moves_prompts_by_their_own_image(decoder):
    adapted = disturb(adapt(decoder, default_spec("image_context")))
    inputs = make_inputs(decoder, num_images=2, num_prompts=2)
    shifted = (torch.cat([inputs[0][:1], inputs[0][1:] + 1.0]), *inputs[1:])
    one, other = adapted(*inputs)[0], adapted(*shifted)[0]
    assert torch.equal(one[0], other[0])
    assert (one[1] - other[1]).abs().max() > 0.1
