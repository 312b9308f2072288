"""The decoder as a graph that takes adapters as inputs: a bank with a row for each, and the row of each prompt.

One batch then mixes any adapters of one spec, and adding an adapter is writing a row. Prompt by prompt the answer is
that of the adapter merged into the weights.
"""

import onnx
import torch
from torch import Tensor, nn

from vplab.vision.adapters.adapt import AdaptedDecoder, adapt
from vplab.vision.adapters.bank_layout import BANK_INPUT, INDEX_INPUT, LAYOUT_KEY, BankLayout, BankTensor
from vplab.vision.adapters.spec import AdapterSpec
from vplab.vision.adapters.walk import decode_adapted
from vplab.vision.sam.onnx_decoder import INPUT_NAMES, OUTPUT_NAMES, PromptDecoder, example_inputs
from vplab.vision.sam.onnx_graph import batch_axis, to_onnx


class BankDecoder(nn.Module):
    """A PromptDecoder with an adapter for every prompt; it keeps none itself."""

    def __init__(self, decoder: PromptDecoder, spec: AdapterSpec) -> None:
        """spec: of all adapters. Raises InvalidInput naming its field that does not fit this decoder."""
        super().__init__()
        adapted = adapt(decoder, spec)
        self.base = adapted.base
        self.parts = adapted.parts
        self.layout = layout_of(adapted)

    def forward(
        self,
        image_embedding: Tensor,
        image_index: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
        adapter_bank: Tensor,
        adapter_index: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Decode prompts; shapes as in ``PromptDecoder.forward``.

        adapter_bank: (A, W) float16, rows as ``BankLayout.row`` makes them; one of zeros is the base.
        adapter_index: (N,) int64 in 0..A-1, the row of each prompt.
        """
        rows = adapter_bank.index_select(0, adapter_index).float()  # (N, W)
        inputs = (image_embedding, image_index, point_coords, point_labels, mask_input, has_mask_input)
        return decode_adapted(self.base, self.parts, self._tensors(rows), inputs, folds_image_side=True)

    def _tensors(self, rows: Tensor) -> dict[str, Tensor]:
        """Cut rows (N, W) into the adapters' tensors by flat name, each with the axis N in front."""
        pieces = rows.split([tensor.size for tensor in self.layout.tensors], dim=1)
        cut = {t.name: piece.unflatten(1, t.shape) for t, piece in zip(self.layout.tensors, pieces, strict=True)}
        return cut | {t.name: cut[t.name] + t.neutral for t in self.layout.tensors if t.neutral}


def layout_of(adapted: AdaptedDecoder) -> BankLayout:
    """Return how adapters of this kind lie in a bank; ``adapted`` is untrained.

    What starts as ones scales, and is neutral at one. Everything else is taken to be neutral at zero, which the
    comparison of a bank's row of zeros with the plain decoder is there to prove.
    """
    state = adapted.adapter_state()
    return BankLayout(
        tensors=tuple(
            BankTensor(name=name, shape=tuple(value.shape), neutral=float(bool((value == 1).all())))
            for name, value in state.items()
        )
    )


def bank_to_onnx(decoder: PromptDecoder, spec: AdapterSpec) -> onnx.ModelProto:
    """Export a decoder with a bank for adapters of ``spec``; free is also the number of rows A.

    Inputs are those of ``decoder_to_onnx``, then BANK_INPUT and INDEX_INPUT. The layout is in the graph's metadata.
    """
    bank = BankDecoder(decoder, spec).eval()
    examples, axes = example_inputs(decoder.prompt_encoder)
    examples += (torch.zeros(4, bank.layout.width, dtype=torch.float16), torch.tensor([0, 1, 2]))
    axes += [{0: batch_axis("num_adapters")}, {0: axes[1][0]}]
    program = to_onnx(bank, examples, axes, (*INPUT_NAMES, BANK_INPUT, INDEX_INPUT), OUTPUT_NAMES)
    graph = program.model_proto
    onnx.helper.set_model_props(graph, {LAYOUT_KEY: bank.layout.model_dump_json()})
    return graph
