"""LoRA, IA3 and BOFT against Hugging Face's peft on the same decoder with the same weights."""

import copy
import re
import warnings

import pytest
import torch

from fakes.random_decoders import disturb
from vplab.vision.adapters.adapt import adapt
from vplab.vision.adapters.spec import BoftSpec, EPeftSpec, Ia3Spec, LoraSpec

peft = pytest.importorskip("peft", reason="the oracle is a development tool")

ATTENTIONS = r"transformer\..*"
# Ours by theirs, within the tensors of one linear layer.
NAMES = {
    "lora_A.default.weight": "lora.{site}.down",
    "lora_B.default.weight": "lora.{site}.up",
    "boft_R.default": "boft.{site}.blocks",
    "boft_s.default": "boft.{site}.scale",
}


def with_peft(decoder, *configs):
    """Return a copy of the decoder with peft's layers injected, and its trainable tensors by name."""
    other = copy.deepcopy(decoder).requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns that BOFT's CUDA extension is not there
        for config in configs:
            peft.inject_adapter_in_model(config, other.mask_decoder)
    trained = dict(other.mask_decoder.named_parameters())
    is_peft = re.compile(r"\.(lora_[AB]|ia3_l|boft_[Rs])\.")
    return other, {name: value for name, value in trained.items() if is_peft.search(name)}


@torch.no_grad()
def copy_ours(theirs, state):
    """Give peft's tensors our values; each of ours is used once."""
    left = dict(state)
    for name, value in theirs.items():
        site, _, kind = name.removeprefix("transformer.").replace(".base_layer", "").partition(".lora_")
        kind = "lora_" + kind
        if not name.count("lora_"):
            site, kind = re.fullmatch(r"transformer\.(.*)\.((?:ia3_l|boft_[Rs])\.default)", name).groups()
        if kind == "ia3_l.default":
            ours = left.pop(f"ia3.{site}.input_scale" if site.endswith("lin2") else f"ia3.{site}.output_scale")
        else:
            ours = left.pop(NAMES[kind].format(site=site))
        value.copy_(ours.reshape(value.shape))
    assert not left


@torch.no_grad()
def assert_equal_to_peft(decoder, inputs, spec, *configs):
    ours = disturb(adapt(decoder, spec))
    other, theirs = with_peft(decoder, *configs)
    assert sum(value.numel() for value in theirs.values()) == ours.num_adapter_parameters
    copy_ours(theirs, ours.adapter_state())
    for got, expected in zip(ours(*inputs), other(*inputs), strict=True):
        assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (ours(*inputs)[0] - decoder(*inputs)[0]).abs().max() > 0.1


LORA = {"r": 8, "lora_alpha": 8, "target_modules": r"transformer\..*\.(q_proj|k_proj|v_proj|lin1|lin2)"}
IA3 = {
    "target_modules": r"transformer\..*(self_attn\.(q_proj|k_proj|v_proj)|lin2)",
    "feedforward_modules": r"transformer\..*lin2",
}


def test_lora_equals_peft(decoder, inputs):
    assert_equal_to_peft(decoder, inputs, LoraSpec(), peft.LoraConfig(**LORA))


def test_lora_of_another_rank_and_scale_equals_peft(decoder, inputs):
    config = peft.LoraConfig(**LORA | {"r": 3, "lora_alpha": 12})
    assert_equal_to_peft(decoder, inputs, LoraSpec(rank=3, alpha=12), config)


def test_ia3_equals_peft(decoder, inputs):
    assert_equal_to_peft(decoder, inputs, Ia3Spec(), peft.IA3Config(**IA3))


def test_ia3_over_lora_equals_peft_injected_in_that_order(decoder, inputs):
    spec = EPeftSpec(prompt_tokens=None, image_context=None, mask_head=None)
    assert_equal_to_peft(decoder, inputs, spec, peft.LoraConfig(**LORA), peft.IA3Config(**IA3))


@pytest.mark.parametrize("block_size", [4, 8])
def test_boft_with_one_factor_equals_peft(decoder, inputs, block_size):
    targets = r"transformer\..*\.(q_proj|k_proj|v_proj|out_proj)"
    config = peft.BOFTConfig(boft_block_size=block_size, boft_n_butterfly_factor=1, target_modules=targets)
    assert_equal_to_peft(decoder, inputs, BoftSpec(block_size=block_size), config)


@pytest.mark.parametrize("factors", [2, 3])
def test_butterfly_factors_are_permuted_as_in_peft(monkeypatch, decoder, inputs, factors):
    """On a CPU peft has one factor only: its block-diagonal kernel is CUDA, so torch does that step here."""
    layer = pytest.importorskip("peft.tuners.boft.layer")

    class BlockDiagonal:
        @staticmethod
        def apply(blocks):
            return torch.stack([torch.block_diag(*factor) for factor in blocks])

    monkeypatch.setattr(layer, "get_fbd_cuda", lambda: True)
    monkeypatch.setattr(layer, "FastBlockDiag", BlockDiagonal)
    targets = r"transformer\..*\.(q_proj|k_proj|v_proj|out_proj)"
    config = peft.BOFTConfig(boft_block_size=8, boft_n_butterfly_factor=factors, target_modules=targets)
    assert_equal_to_peft(decoder, inputs, BoftSpec(block_size=8, factors=factors), config)
