"""Adapter layers: a bottleneck with a residual behind every attention and MLP.

Source: Houlsby et al., "Parameter-Efficient Transfer Learning for NLP" (arXiv 1902.00751). Deviation: layer norms,
which Houlsby's adapters train too, stay frozen, so that all that trains is beside the base weights.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vplab.vision.adapters.part import Part
from vplab.vision.adapters.spec import AdapterLayersSpec
from vplab.vision.adapters.tensors import Tensors, affine


class AdapterLayers(Part):
    """y + U gelu(D y). Tensors ``adapter_layers.<block>.{down,up}.{weight,bias}``; the identity at the start."""

    def __init__(self, spec: AdapterLayersSpec, num_layers: int, width: int) -> None:
        kinds = ("self_attn", "cross_attn_token_to_image", "mlp", "cross_attn_image_to_token")
        self.blocks = [f"layers.{i}.{kind}" for i in range(num_layers) for kind in kinds]
        self.blocks.append("final_attn_token_to_image")
        self.width, self.hidden = width, spec.hidden

    def initial(self) -> dict[str, Tensor]:
        tensors = {}
        bound = 1 / math.sqrt(self.width)  # as nn.Linear
        for block in self.blocks:
            down = torch.empty(self.hidden, self.width)
            tensors[f"adapter_layers.{block}.down.weight"] = nn.init.kaiming_uniform_(down, a=math.sqrt(5))
            tensors[f"adapter_layers.{block}.down.bias"] = torch.empty(self.hidden).uniform_(-bound, bound)
            tensors[f"adapter_layers.{block}.up.weight"] = torch.zeros(self.width, self.hidden)
            tensors[f"adapter_layers.{block}.up.bias"] = torch.zeros(self.width)
        return tensors

    def after_block(self, tensors: Tensors, block: str, y: Tensor) -> Tensor:
        down, up = (
            (tensors[f"adapter_layers.{block}.{layer}.weight"], tensors[f"adapter_layers.{block}.{layer}.bias"])
            for layer in ("down", "up")
        )
        return y + affine(F.gelu(affine(y, *down)), *up)
