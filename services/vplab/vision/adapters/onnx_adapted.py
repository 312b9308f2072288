"""An adapted decoder as the graph that serving runs: what can be folded is folded, the rest stays in the graph."""

import torch

from vplab.vision.adapters.adapt import AdaptedDecoder
from vplab.vision.sam.onnx_decoder import module_to_onnx

EARLY_INPUT = "early_features"


def adapted_to_onnx(adapted: AdaptedDecoder) -> torch.onnx.ONNXProgram:
    """Export ``adapted`` as it is now, merged; conventions as of ``decoder_to_onnx``. It may be on any device.

    An adapter with early features has one more input, EARLY_INPUT (B, E, h, w) float32.
    """
    height, width = adapted.base.prompt_encoder.image_embedding_size
    channels = adapted.early_channels
    further = {} if channels is None else {EARLY_INPUT: (channels, height, width)}
    return module_to_onnx(adapted.merged().to("cpu").eval(), adapted.base.prompt_encoder, further)
