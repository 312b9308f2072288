"""A decoder's weights come back from its graph, as it is exported today and as it was before."""

from pathlib import Path
from typing import Any

import pytest
import torch
from segment_anything.modeling import MaskDecoder
from torch import Tensor

from fakes.random_decoders import build_decoder
from fakes.small_sam import GRID, SEGMENTER_SPEC, STRIDE
from vplab.training.models.half_weights import with_half_weights
from vplab.training.worker.decoder_weights import load_decoder
from vplab.vision.sam import onnx_decoder
from vplab.vision.sam.onnx_decoder import decoder_to_onnx


def convolving(decoder: MaskDecoder, image: Tensor, image_pe: Tensor, sparse: Tensor) -> tuple[Tensor, Tensor]:
    """Decode with SAM's own upscaling, whose transposed convolutions older graphs hold."""
    output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([output_tokens.unsqueeze(0).expand(sparse.shape[0], -1, -1), sparse], dim=1)
    queries, keys = decoder.transformer(image, image_pe, tokens)
    upscaled = decoder.output_upscaling(keys.transpose(1, 2).reshape(image.shape))
    hyper = torch.stack([mlp(queries[:, 1 + i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)], dim=1)
    logits = (hyper @ upscaled.flatten(2)).unflatten(2, upscaled.shape[-2:])
    return logits, decoder.iou_prediction_head(queries[:, 0])


@pytest.mark.parametrize("of_before", [False, True])
def test_weights_come_back_from_a_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of_before: bool) -> None:
    decoder: Any = build_decoder(GRID, STRIDE)
    decoder.load_state_dict({name: value.half().float() for name, value in decoder.state_dict().items()})
    if of_before:
        monkeypatch.setattr(onnx_decoder, "decode_masks", convolving)
    program = decoder_to_onnx(decoder.prompt_encoder, decoder.mask_decoder)
    (tmp_path / "decoder.onnx").write_bytes(with_half_weights(program.model_proto).SerializeToString())
    operators = {node.op_type for node in program.model_proto.graph.node}
    assert ("ConvTranspose" in operators) == of_before
    found = load_decoder(tmp_path, SEGMENTER_SPEC).state_dict()
    for name, value in decoder.state_dict().items():
        assert torch.equal(found[name], value), name
