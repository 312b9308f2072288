"""A decoder's weights come back from its graph, as it is exported today and as it was before."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fakes.random_decoders import build_decoder
from fakes.small_sam import GRID, SEGMENTER_SPEC, STRIDE
from vplab.training.models.half_weights import with_half_weights
from vplab.training.worker.decoder_weights import load_decoder
from vplab.vision.sam import onnx_decoder
from vplab.vision.sam.onnx_decoder import decoder_to_onnx


def image_of(cells: Tensor) -> Tensor:
    return cells.transpose(1, 2).unflatten(2, (GRID, GRID))


@pytest.mark.parametrize("of_before", [False, True])
def test_weights_come_back_from_a_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of_before: bool) -> None:
    decoder: Any = build_decoder(GRID, STRIDE)
    decoder.load_state_dict({name: value.half().float() for name, value in decoder.state_dict().items()})
    if of_before:  # with SAM's own upscaling, whose transposed convolutions those graphs hold
        monkeypatch.setattr(
            onnx_decoder, "fine_cells", lambda up, cells: up(image_of(cells)).flatten(2).transpose(1, 2)
        )
        monkeypatch.setattr(onnx_decoder, "as_planes", lambda values, _: values.unflatten(2, (4 * GRID, 4 * GRID)))
    program = decoder_to_onnx(decoder.prompt_encoder, decoder.mask_decoder)
    (tmp_path / "decoder.onnx").write_bytes(with_half_weights(program.model_proto).SerializeToString())
    operators = {node.op_type for node in program.model_proto.graph.node}
    assert ("ConvTranspose" in operators) == of_before
    found = load_decoder(tmp_path, SEGMENTER_SPEC).state_dict()
    for name, value in decoder.state_dict().items():
        assert torch.equal(found[name], value), name
