"""LoRA: a low-rank update beside each target linear, zero at the start and folded into the weight at the end.

Source: Hu et al., "LoRA" (arXiv 2106.09685); initialisation as in HF peft.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vplab.vision.adapters.part import Linear, Part, Site, match_targets
from vplab.vision.adapters.spec import LoraSpec
from vplab.vision.adapters.tensors import Tensors, affine


class Lora(Part):
    """W x + (alpha / rank) B A x. Tensors ``lora.<site>.down`` A (R, in) and ``lora.<site>.up`` B (out, R)."""

    def __init__(self, spec: LoraSpec, sites: Mapping[str, nn.Linear], prefix: str = "lora") -> None:
        names = match_targets(sites, spec.targets, "targets")
        self.sizes = {name: (sites[name].in_features, sites[name].out_features) for name in names}
        self.rank, self.scale, self.prefix = spec.rank, spec.alpha / spec.rank, prefix

    def initial(self) -> dict[str, Tensor]:
        tensors = {}
        for name, (width, height) in self.sizes.items():
            down = torch.empty(self.rank, width)
            tensors[f"{self.prefix}.{name}.down"] = nn.init.kaiming_uniform_(down, a=math.sqrt(5))
            tensors[f"{self.prefix}.{name}.up"] = torch.zeros(height, self.rank)
        return tensors

    def linear(self, tensors: Tensors, site: Site, x: Tensor, inner: Linear) -> Tensor:
        if site.name not in self.sizes:
            return inner(x)
        down, up = self._pair(tensors, site.name)
        return inner(x) + affine(affine(x, down) * self.scale, up)  # scaled where it is narrow

    def fold(self, tensors: Tensors, site: Site, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        if site.name not in self.sizes:
            return weight, bias
        down, up = self._pair(tensors, site.name)
        return weight + up @ down * self.scale, bias

    def after_folding(self) -> Part | None:
        return None

    def _pair(self, tensors: Tensors, site: str) -> tuple[Tensor, Tensor]:
        return tensors[f"{self.prefix}.{site}.down"], tensors[f"{self.prefix}.{site}.up"]
