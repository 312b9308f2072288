"""The graph that takes adapters as inputs answers each prompt as the adapter merged into the weights does."""

import numpy as np
import onnx
import pytest
import torch

from fakes.random_decoders import disturb, make_inputs
from vplab.errors import DataLoss, InvalidInput
from vplab.runtime.onnx_session import OnnxSettings, create_session
from vplab.vision.adapters.adapt import adapt
from vplab.vision.adapters.bank import BankDecoder, bank_to_onnx, layout_of
from vplab.vision.adapters.bank_layout import BANK_INPUT, INDEX_INPUT, LAYOUT_KEY, BankLayout
from vplab.vision.adapters.spec import EPeftSpec, default_spec
from vplab.vision.sam.onnx_decoder import INPUT_NAMES, OUTPUT_NAMES

SPEC = EPeftSpec()


@pytest.fixture(scope="module")
def session(decoder):
    graph = bank_to_onnx(decoder, SPEC)
    onnx.checker.check_model(graph)
    return create_session(graph.SerializeToString(), OnnxSettings(providers=("cpu",), intra_op_threads=1))


@pytest.fixture(scope="module")
def layout(session):
    return BankLayout.from_json(session.get_modelmeta().custom_metadata_map[LAYOUT_KEY])


@pytest.fixture(scope="module")
def adapters(decoder):
    found = [disturb(adapt(decoder, SPEC), seed=seed) for seed in range(3)]
    for adapter in found:  # a bank holds numbers of half precision
        adapter.load_adapter_state({name: value.half().float() for name, value in adapter.adapter_state().items()})
    return found


def row_of(layout, adapter):
    return layout.row({name: value.numpy() for name, value in adapter.adapter_state().items()})


def run(session, inputs, bank, index):
    feed = dict(zip(INPUT_NAMES, (value.numpy() for value in inputs), strict=True))
    return session.run(list(OUTPUT_NAMES), feed | {BANK_INPUT: bank, INDEX_INPUT: np.array(index, np.int64)})


@pytest.mark.slow
@torch.no_grad()
def test_a_batch_that_mixes_adapters_equals_their_merged_decoders(decoder, session, layout, adapters):
    bank = np.stack([np.zeros(layout.width, np.float16), *(row_of(layout, adapter) for adapter in adapters)])
    inputs = make_inputs(decoder, num_images=2, num_prompts=6)
    index = [3, 0, 1, 2, 0, 1]

    logits, ious = run(session, inputs, bank, index)
    decoders = [decoder, *(adapter.merged().eval() for adapter in adapters)]
    answers = [alone(*inputs) for alone in decoders]
    for prompt, adapter in enumerate(index):
        expected = answers[adapter][0][prompt].numpy()
        assert np.abs(logits[prompt] - expected).max() <= 1e-4 * np.abs(expected).max()
        assert np.allclose(ious[prompt], answers[adapter][1][prompt].numpy(), atol=1e-3)
    assert (answers[0][0] - answers[1][0]).abs().max() > 0.1


@pytest.mark.slow
def test_a_mixed_batch_equals_each_prompt_alone(decoder, session, layout, adapters):
    bank = np.stack([row_of(layout, adapter) for adapter in adapters])
    inputs = make_inputs(decoder, num_images=2, num_prompts=3)
    logits, ious = run(session, inputs, bank, [2, 0, 1])
    for prompt, row in enumerate([2, 0, 1]):
        alone = run(session, (inputs[0], *(v[prompt : prompt + 1] for v in inputs[1:])), bank, [row])
        assert np.allclose(alone[0][0], logits[prompt], atol=1e-4 * np.abs(logits).max())
        assert np.allclose(alone[1][0], ious[prompt], atol=1e-4)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("method", ["lora", "ia3", "prompt_tokens", "image_context"])
def test_an_adapter_of_one_part_has_a_row_of_the_same_bank(decoder, session, layout, method):
    adapter = disturb(adapt(decoder, default_spec(method)))
    adapter.load_adapter_state({name: value.half().float() for name, value in adapter.adapter_state().items()})
    inputs = make_inputs(decoder)
    logits, _ = run(session, inputs, row_of(layout, adapter)[None], [0, 0, 0])
    expected = adapter(*inputs)[0].numpy()
    assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()


def test_a_row_that_does_not_fit_is_refused(decoder):
    adapted = adapt(decoder, SPEC)
    layout = layout_of(adapted)
    state = {name: value.numpy() for name, value in adapted.adapter_state().items()}
    first = layout.tensors[0].name
    with pytest.raises(InvalidInput, match=rf"{first} is \[3\]"):
        layout.row(state | {first: np.zeros(3)})
    with pytest.raises(InvalidInput, match="no place for other"):
        layout.row(state | {"other": np.zeros(3)})
    for value in (np.nan, 1e6):
        with pytest.raises(DataLoss, match="not finite in half precision"):
            layout.row(state | {first: np.full(layout.tensors[0].shape, value)})
    with pytest.raises(InvalidInput, match="not a valid bank layout"):
        BankLayout.from_json('{"tensors": []}')


@torch.no_grad()
def test_an_untrained_adapter_and_a_row_of_zeros_are_both_the_base(decoder):
    bank = BankDecoder(decoder, SPEC).eval()
    inputs = make_inputs(decoder, num_prompts=2)
    rows = torch.stack([torch.zeros(bank.layout.width), torch.from_numpy(row_of(bank.layout, adapt(decoder, SPEC)))])
    logits, _ = bank(*inputs, rows.half(), torch.tensor([0, 1]))
    assert torch.allclose(logits, decoder(*inputs)[0], atol=1e-4)
