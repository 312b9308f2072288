"""One batch may mix adapters: given an adapter for each prompt, every prompt is answered as its adapter alone would."""

import pytest
import torch

from fakes.random_decoders import disturb, make_inputs
from vplab.vision.adapters.adapt import adapt
from vplab.vision.adapters.spec import EPeftSpec, PromptTokensSpec, default_spec
from vplab.vision.adapters.walk import decode_adapted


@pytest.mark.parametrize(
    "spec",
    [EPeftSpec(), EPeftSpec(prompt_tokens=PromptTokensSpec(gate="none")), default_spec("adapter_layers")],
    ids=["e_peft", "e_peft_without_gate", "adapter_layers"],
)
@torch.no_grad()
def test_prompts_with_adapters_of_their_own_share_a_call(decoder, spec):
    adapters = [disturb(adapt(decoder, spec), seed=seed) for seed in range(3)]
    inputs = make_inputs(decoder, num_images=2, num_prompts=4)
    adapter_index = torch.tensor([2, 0, 0, 1])
    states = [adapter.adapter_state() for adapter in adapters]
    bank = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    mixed = {name: value.index_select(0, adapter_index) for name, value in bank.items()}

    logits, ious = decode_adapted(adapters[0].base, adapters[0].parts, mixed, inputs)
    alone = [adapter(*inputs) for adapter in adapters]
    for prompt, index in enumerate(adapter_index.tolist()):
        expected = alone[index][0][prompt]
        assert (logits[prompt] - expected).abs().max() <= 2e-5 * expected.abs().max()
        assert torch.allclose(ious[prompt], alone[index][1][prompt], atol=1e-4)
    assert (alone[0][0] - alone[1][0]).abs().max() > 0.1
