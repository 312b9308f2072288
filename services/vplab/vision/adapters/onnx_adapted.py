"""An adapted decoder as the graph that serving runs: what can be folded is folded, the rest stays in the graph."""

import torch

from vplab.vision.adapters.adapt import AdaptedDecoder
from vplab.vision.adapters.spec import EARLY_INPUT
from vplab.vision.sam.onnx_decoder import module_to_onnx


def adapted_to_onnx(adapted: AdaptedDecoder) -> torch.onnx.ONNXProgram:
    """Export ``adapted`` as it is now, merged; conventions as of ``decoder_to_onnx``. It may be on any device.

    An adapter with early features has one more input, EARLY_INPUT (B, E, h, w) float32.
    """
    merged = adapted.merged().to("cpu").eval()
    return module_to_onnx(merged, adapted.base.prompt_encoder, further_features(adapted))


def further_features(adapted: AdaptedDecoder) -> dict[str, tuple[int, int, int]]:
    """Return by name the shapes of the image features that an adapted decoder's graph takes beside the embedding."""
    height, width = adapted.base.prompt_encoder.image_embedding_size
    channels = adapted.early_channels
    return {} if channels is None else {EARLY_INPUT: (channels, height, width)}
