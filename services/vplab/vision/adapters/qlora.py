"""QLoRA: LoRA beside a base whose linear layers are quantised.

Source: Dettmers et al., "QLoRA" (arXiv 2305.14314). The quantised decoder is what the adapter is trained for, so the
merged decoder has the rounded weights, as floats.
"""

from collections.abc import Mapping

from segment_anything.modeling import MaskDecoder
from torch import nn

from vplab.vision.adapters.lora import Lora
from vplab.vision.adapters.quantized import quantize_linears
from vplab.vision.adapters.spec import LoraSpec, QloraSpec


class Qlora(Lora):
    """LoRA's tensors under ``qlora``."""

    def __init__(self, spec: QloraSpec, sites: Mapping[str, nn.Linear]) -> None:
        super().__init__(LoraSpec(rank=spec.rank, alpha=spec.alpha, targets=spec.targets), sites, prefix="qlora")
        self.base_type = spec.base_type

    def prepare(self, decoder: MaskDecoder, tensors: Mapping[str, nn.Parameter]) -> None:
        quantize_linears(decoder, self.base_type)
