"""An adapted decoder as the graph that serving runs: what can be folded is folded, the rest stays in the graph."""

import torch

from vplab.vision.adapters.adapt import AdaptedDecoder
from vplab.vision.sam.onnx_decoder import module_to_onnx


def adapted_to_onnx(adapted: AdaptedDecoder) -> torch.onnx.ONNXProgram:
    """Export ``adapted`` as it is now, merged; conventions as of ``decoder_to_onnx``. It may be on any device."""
    return module_to_onnx(adapted.merged().to("cpu").eval(), adapted.base.prompt_encoder)
