"""Conv-LoRA: LoRA with small convolutions between A and B wherever a linear reads the image's sequence.

Source: Zhong et al., "Convolution Meets LoRA" (arXiv 2401.17868) and its code in AutoGluon.

Deviation: Conv-LoRA acts in the mask decoder here and not in the image encoder, where it would make every cached
embedding invalid.

Deviation: a few experts of Conv-LoRA that all answer, weighted by a softmax, stand in for eight behind a noisy top-1
gate with a balance loss.
"""

import copy
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vplab.vision.adapters.lora import Lora
from vplab.vision.adapters.part import Linear, Site
from vplab.vision.adapters.spec import ConvLoraSpec, LoraSpec
from vplab.vision.adapters.tensors import Tensors, affine

_IMAGE_SIDE = ("token_to_image.k_proj", "token_to_image.v_proj", "image_to_token.q_proj")


class ConvLora(Lora):
    """W x + (alpha / rank) B (A x + conv(A x)) where x is the image, elsewhere LoRA.

    Tensors ``conv_lora.<site>.{down,up}`` as LoRA's; with them ``.experts`` (E, R, R, 3, 3) and ``.gate`` (E, R).
    """

    def __init__(self, spec: ConvLoraSpec, sites: Mapping[str, nn.Linear]) -> None:
        super().__init__(LoraSpec(rank=spec.rank, alpha=spec.alpha, targets=spec.targets), sites, prefix="conv_lora")
        self.scales = spec.scales

    def initial(self) -> dict[str, Tensor]:
        tensors = super().initial()
        bound = 1 / math.sqrt(self.rank * 9)  # as nn.Conv2d
        for name in self.image_sites:
            experts = torch.empty(len(self.scales), self.rank, self.rank, 3, 3)
            tensors[f"{self.prefix}.{name}.experts"] = experts.uniform_(-bound, bound)
            tensors[f"{self.prefix}.{name}.gate"] = torch.zeros(len(self.scales), self.rank)
        return tensors

    @property
    def image_sites(self) -> tuple[str, ...]:
        """The targets whose input rows are the image's cells."""
        return tuple(name for name in self.sizes if name.endswith(_IMAGE_SIDE))

    def linear(self, tensors: Tensors, site: Site, x: Tensor, inner: Linear) -> Tensor:
        if site.name not in self.image_sites:
            return super().linear(tensors, site, x, inner)
        assert site.grid_hw is not None
        down, up = self._pair(tensors, site.name)
        low = affine(x, down)
        grid = low.transpose(1, 2).unflatten(2, site.grid_hw)  # (N, R, h, w)
        experts, gate = (tensors[f"{self.prefix}.{site.name}.{name}"] for name in ("experts", "gate"))
        low = low + self._convolve(grid, experts, gate).flatten(2).transpose(1, 2)
        return inner(x) + affine(low, up) * self.scale

    def fold(self, tensors: Tensors, site: Site, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return (weight, bias) if site.name in self.image_sites else super().fold(tensors, site, weight, bias)

    def after_folding(self) -> "ConvLora | None":
        rest = copy.copy(self)
        rest.sizes = {name: self.sizes[name] for name in self.image_sites}
        return rest if rest.sizes else None

    def _convolve(self, grid: Tensor, experts: Tensor, gate: Tensor) -> Tensor:
        """Mix the experts' answers (N, R, h, w); each looks at the grid enlarged by its scale."""
        shares = torch.softmax(affine(grid.mean((2, 3)), gate), dim=-1)  # (N, E)
        total = torch.zeros_like(grid)
        for index, scale in enumerate(self.scales):
            seen = grid if scale == 1 else F.interpolate(grid, scale_factor=float(scale), mode="bilinear")
            answer = F.gelu(F.conv2d(seen, experts[index], padding=1))
            if scale != 1:
                answer = F.interpolate(answer, size=grid.shape[2:], mode="bilinear")
            total = total + answer * shares[:, index, None, None, None]
        return total
