"""A segmenter's second graph, which takes adapters as inputs: made from its decoder and compared with it.

Two things are to be the same: a row of zeros and the decoder's own graph, and any adapter's row and that adapter merged
into torch's decoder. Rows are in half precision, so the adapters compared are too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from vplab.errors import InvalidInput
from vplab.training.models.compare import (
    PROVIDERS,
    Answers,
    graph_inputs,
    make_picture,
    open_graph,
    prompt_batches,
    run_in_parts,
)
from vplab.training.models.half_weights import with_half_weights
from vplab.training.models.imported import PARITY_IMAGE_SIZES_HW
from vplab.training.models.parity import FloatArray, ParityCase, ParityReport, make_report
from vplab.vision.adapters.adapt import AdaptedDecoder, adapt
from vplab.vision.adapters.bank import bank_to_onnx
from vplab.vision.adapters.bank_layout import BANK_INPUT, INDEX_INPUT, LAYOUT_KEY, BankLayout
from vplab.vision.adapters.spec import AdapterSpec
from vplab.vision.preprocessing import FrameTransform, preprocess
from vplab.vision.prompts import PromptTokens
from vplab.vision.sam.onnx_decoder import INPUT_NAMES, OUTPUT_NAMES, PromptDecoder
from vplab.vision.sam.onnx_encoder import INPUT_NAME
from vplab.vision.specs import EncoderSpec, SegmenterSpec

PARITY_FILE = "bank_parity.json"
_NUM_ADAPTERS = 3
_DISTURBANCE = 0.05
"""How far the compared adapters are from untrained ones, in standard deviations; trained ones are nearer."""


@dataclass(frozen=True)
class EncodedPictures:
    """Pictures as a segmenter's encoder sees them."""

    transforms: tuple[FrameTransform, ...]
    embeddings: FloatArray
    """(B, C, h, w) float32."""


def encode_pictures(
    encoder: Path, spec: EncoderSpec, sizes_hw: Sequence[tuple[int, int]] = PARITY_IMAGE_SIZES_HW, seed: int = 0
) -> EncodedPictures:
    """Draw a picture of each size and encode it with an encoder's graph."""
    output = spec.output("image_embedding")
    if output is None:
        raise InvalidInput("the encoder gives no image embedding", field="encoder")
    session = open_graph(encoder)
    inputs = [preprocess(make_picture(size, seed + i), spec.preprocessing) for i, size in enumerate(sizes_hw)]
    embeddings = [session.run([output.name], {INPUT_NAME: item.tensor[None]})[0] for item in inputs]
    return EncodedPictures(tuple(item.transform for item in inputs), np.concatenate(embeddings))


def write_bank(
    decoder: PromptDecoder, folder: Path, spec: SegmenterSpec, pictures: EncodedPictures, packages: Sequence[str]
) -> ParityReport:
    """Write the graph and PARITY_FILE beside the decoder's graph and return the comparison, passed or not.

    decoder: the modules of ``folder``'s decoder graph. spec: names both graphs.
    packages: distributions that made the modules.
    """
    assert spec.adapter_bank is not None
    graph = bank_to_onnx(decoder, spec.adapter_bank.adapter)
    onnx.save(with_half_weights(graph), folder / spec.adapter_bank.graph)
    cases = compare_bank(decoder, folder, spec, pictures)
    reference = f"{spec.graph} and the merged torch decoders of {_NUM_ADAPTERS} random adapters, float32"
    report = make_report(reference, ("torch", "onnx", *packages), PROVIDERS, cases)
    (folder / PARITY_FILE).write_text(report.model_dump_json(indent=2) + "\n")
    return report


def compare_bank(
    decoder: PromptDecoder, folder: Path, spec: SegmenterSpec, pictures: EncodedPictures, seed: int = 0
) -> list[ParityCase]:
    """Decode points, boxes and mask inputs on all pictures, several in a call, as bases and with adapters mixed."""
    assert spec.adapter_bank is not None
    bank, plain = open_graph(folder / spec.adapter_bank.graph), open_graph(folder / spec.graph)
    layout = BankLayout.from_json(bank.get_modelmeta().custom_metadata_map[LAYOUT_KEY])
    adapters = [random_adapter(decoder, spec.adapter_bank.adapter, layout, seed + i) for i in range(_NUM_ADAPTERS)]
    rows = np.stack([np.zeros(layout.width, np.float16), *(row for _, row in adapters)])
    merged = [adapted.merged().eval() for adapted, _ in adapters]

    def base_answers(image_index: NDArray[np.int64], tokens: Sequence[PromptTokens]) -> Answers:
        feed = graph_inputs(pictures.embeddings, image_index, tokens, spec)
        return run_in_parts(partial(plain.run, list(OUTPUT_NAMES)), feed)

    cases: list[ParityCase] = []
    for batch in prompt_batches(pictures.transforms, spec, seed, base_answers):
        feed = graph_inputs(pictures.embeddings, batch.image_index, batch.tokens, spec)
        bases = np.zeros(len(batch.tokens), np.int64)
        mixed = 1 + np.arange(len(batch.tokens), dtype=np.int64) % _NUM_ADAPTERS
        for what, index, expected in (
            ("base", bases, batch.expected),
            ("adapters mixed", mixed, _merged_answers(merged, feed, mixed - 1)),
        ):
            run = partial(bank.run, list(OUTPUT_NAMES))
            actual = run_in_parts(run, feed | {BANK_INPUT: rows, INDEX_INPUT: index})
            cases.append(batch.case(f"{what}, {batch.name}", actual, expected, spec.mask_threshold))
    return cases


def random_adapter(
    decoder: PromptDecoder, spec: AdapterSpec, layout: BankLayout, seed: int
) -> tuple[AdaptedDecoder, NDArray[np.float16]]:
    """Return an adapter that changes everything it can, rounded as its row, and the row."""
    random = np.random.default_rng(seed)
    adapted = adapt(decoder, spec, seed=seed)
    state = {name: value.numpy() for name, value in adapted.adapter_state().items()}
    row = layout.row({name: value + random.normal(0, _DISTURBANCE, value.shape) for name, value in state.items()})
    adapted.load_adapter_state({name: torch.from_numpy(value) for name, value in layout.state(row).items()})
    return adapted.eval(), row


def _merged_answers(merged: Sequence[torch.nn.Module], feed: dict[str, Any], index: NDArray[np.int64]) -> Answers:
    """Answer each prompt by the decoder that ``index`` says."""
    logits: dict[int, FloatArray] = {}
    ious: dict[int, FloatArray] = {}
    for number, module in enumerate(merged):
        members = np.flatnonzero(index == number)
        inputs = [feed[name] if name == "image_embedding" else feed[name][members] for name in INPUT_NAMES]
        with torch.inference_mode():
            found = module(*(torch.from_numpy(np.ascontiguousarray(value)) for value in inputs))
        logits |= dict(zip(members.tolist(), found[0].numpy(), strict=True))
        ious |= dict(zip(members.tolist(), found[1].numpy(), strict=True))
    order = range(len(index))
    return np.stack([logits[i] for i in order]), np.stack([ious[i] for i in order])
