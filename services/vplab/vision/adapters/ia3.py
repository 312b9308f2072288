"""IA3: learned scales of what some linears give or take, one at the start and folded into the weights at the end.

Source: Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning" (arXiv
2205.05638); what is scaled, bias included, as in HF peft.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vplab.vision.adapters.part import Linear, Part, Site, match_targets
from vplab.vision.adapters.spec import Ia3Spec
from vplab.vision.adapters.tensors import Tensors


class Ia3(Part):
    """Tensors ``ia3.<site>.output_scale`` (out,) and ``ia3.<site>.input_scale`` (in,)."""

    def __init__(self, spec: Ia3Spec, sites: Mapping[str, nn.Linear]) -> None:
        outputs = match_targets(sites, spec.output_targets, "output_targets")
        inputs = match_targets(sites, spec.input_targets, "input_targets")
        self.widths = {f"ia3.{name}.output_scale": sites[name].out_features for name in outputs}
        self.widths |= {f"ia3.{name}.input_scale": sites[name].in_features for name in inputs}

    def initial(self) -> dict[str, Tensor]:
        return {name: torch.ones(width) for name, width in self.widths.items()}

    def linear(self, tensors: Tensors, site: Site, x: Tensor, inner: Linear) -> Tensor:
        into, out = self._scales(tensors, site.name)
        y = inner(x if into is None else x * into.unsqueeze(-2))
        return y if out is None else y * out.unsqueeze(-2)

    def fold(self, tensors: Tensors, site: Site, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        into, out = self._scales(tensors, site.name)
        if into is not None:
            weight = weight * into.unsqueeze(-2)
        if out is not None:
            weight, bias = weight * out.unsqueeze(-1), bias * out
        return weight, bias

    def after_folding(self) -> None:
        return None

    def _scales(self, tensors: Tensors, site: str) -> tuple[Tensor | None, Tensor | None]:
        into, out = f"ia3.{site}.input_scale", f"ia3.{site}.output_scale"
        return (
            tensors[into] if into in self.widths else None,
            tensors[out] if out in self.widths else None,
        )
