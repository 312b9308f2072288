"""Adapter specs: their JSON, and what is refused with the field's name."""

import subprocess
import sys

import pytest
import torch

from vplab.errors import InvalidInput
from vplab.vision.adapters.adapt import adapt
from vplab.vision.adapters.spec import (
    METHODS,
    BoftSpec,
    ConvLoraSpec,
    EPeftSpec,
    HqTokenSpec,
    Ia3Spec,
    ImageContextSpec,
    LoraSpec,
    PromptTokensSpec,
    QloraSpec,
    adapter_spec_from_json,
    default_spec,
)


@pytest.mark.parametrize(
    "spec",
    [
        *(default_spec(method) for method in METHODS),
        LoraSpec(rank=2, alpha=4, targets=("self_attn.v_proj",)),
        PromptTokensSpec(query_tokens=(0, 1), image_tokens=(2, 0, 3), gate="none", initial_std=0.1),
        EPeftSpec(lora=LoraSpec(rank=2), ia3=None, image_context=ImageContextSpec(hidden=8)),
        HqTokenSpec(early_channels=768),
        BoftSpec(block_size=8, factors=3),
        ConvLoraSpec(scales=(1,)),
        QloraSpec(base_type="int8"),
    ],
    ids=lambda spec: spec.method,
)
def test_a_spec_survives_json(spec):
    assert adapter_spec_from_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ('{"method": "lora", "rank": 0}', "rank"),
        ('{"method": "lora", "rnk": 4}', "rnk"),
        ('{"method": "prompt_tokens", "gate": "half"}', "gate"),
        ('{"method": "e_peft", "lora": {"alpha": -1}}', "lora.alpha"),
        ('{"method": "telepathy"}', "spec"),
        ('{"rank": 4}', "spec"),
        ("no json", "spec"),
    ],
)
def test_a_wrong_spec_is_refused_with_its_field(text, field):
    with pytest.raises(InvalidInput) as refused:
        adapter_spec_from_json(text)
    assert [v.field for v in refused.value.violations] == [field]


@pytest.mark.parametrize(
    "text",
    [
        '{"method": "e_peft", "lora": null, "ia3": null, "prompt_tokens": null, "image_context": null,'
        ' "mask_head": null}',
        '{"method": "ia3", "output_targets": [], "input_targets": []}',
        '{"method": "prompt_tokens", "query_tokens": [0, 0], "image_tokens": [0, 0, 0]}',
    ],
)
def test_an_adapter_of_nothing_is_refused(text):
    with pytest.raises(InvalidInput, match=r"left out|empty|zero"):
        adapter_spec_from_json(text)


def test_an_unknown_method_is_refused_with_the_known_ones():
    with pytest.raises(InvalidInput, match="e_peft") as refused:
        default_spec("telepathy")
    assert refused.value.violations[0].field == "method"


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (LoraSpec(targets=("q_proj", "w_proj")), "targets"),
        (Ia3Spec(output_targets=("attn.q_proj",)), "output_targets"),
        (PromptTokensSpec(query_tokens=(10,)), "query_tokens"),
        (PromptTokensSpec(image_tokens=(10, 10)), "image_tokens"),
        (BoftSpec(block_size=64, factors=6), "block_size"),
        (EPeftSpec(lora=LoraSpec(targets=("x",))), "lora.targets"),
    ],
)
def test_a_spec_that_does_not_fit_the_decoder_is_refused_with_its_field(decoder, spec, field):
    with pytest.raises(InvalidInput) as refused:
        adapt(decoder, spec)
    assert refused.value.violations[0].field == field


@torch.no_grad()
def test_parts_left_out_of_the_ensemble_have_no_tensors(decoder):
    spec = EPeftSpec(lora=None, prompt_tokens=None)
    prefixes = {name.split(".")[0] for name in adapt(decoder, spec).adapter_state()}
    assert prefixes == {"ia3", "image_context", "mask_head"}


def test_reading_a_spec_needs_no_torch():
    code = "import sys, vplab.vision.adapters.spec; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
