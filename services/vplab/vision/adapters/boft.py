"""BOFT: target weights turned by a product of sparse orthogonal matrices and scaled by row; folded at the end.

Source: Liu et al., "Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization" (arXiv 2311.06243); layout
of the factors, their permutations and the Cayley transform as in HF peft.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vplab.errors import InvalidInput
from vplab.vision.adapters.part import Linear, Part, Site, match_targets
from vplab.vision.adapters.spec import BoftSpec
from vplab.vision.adapters.tensors import Tensors


class Boft(Part):
    """W M^T x with rows scaled. Tensors ``boft.<site>.blocks`` (F, in/H, H, H) and ``boft.<site>.scale`` (out,)."""

    def __init__(self, spec: BoftSpec, sites: Mapping[str, nn.Linear]) -> None:
        names = match_targets(sites, spec.targets, "targets")
        self.sizes = {name: (sites[name].in_features, sites[name].out_features) for name in names}
        self.block_size, self.factors = spec.block_size, spec.factors
        span = spec.block_size * 2 ** (spec.factors - 1)
        for name, (width, _) in self.sizes.items():
            if width % span:
                raise InvalidInput(f"{name} has {width} inputs, which {span} does not divide", field="block_size")

    def initial(self) -> dict[str, Tensor]:
        tensors = {}
        for name, (width, height) in self.sizes.items():
            blocks = (self.factors, width // self.block_size, self.block_size, self.block_size)
            tensors[f"boft.{name}.blocks"] = torch.zeros(blocks)
            tensors[f"boft.{name}.scale"] = torch.ones(height)
        return tensors

    def linear(self, tensors: Tensors, site: Site, x: Tensor, inner: Linear) -> Tensor:
        if site.name not in self.sizes:
            return inner(x)
        y = inner(self._turn(x, tensors[f"boft.{site.name}.blocks"]))
        bias = site.layer.bias
        return (y - bias) * tensors[f"boft.{site.name}.scale"].unsqueeze(-2) + bias

    def fold(self, tensors: Tensors, site: Site, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        if site.name not in self.sizes:
            return weight, bias
        identity = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
        rotation = self._turn(identity, tensors[f"boft.{site.name}.blocks"])
        return weight @ rotation.T * tensors[f"boft.{site.name}.scale"][:, None], bias

    def after_folding(self) -> None:
        return None

    def _turn(self, x: Tensor, blocks: Tensor) -> Tensor:
        """Multiply the rows of x (..., in) by the factors, the last one first."""
        turns = _cayley(blocks)
        for factor in reversed(range(self.factors)):
            order = _butterfly(x.shape[-1], self.block_size, factor).to(x.device)
            groups = x[..., order.argsort()].unflatten(-1, (-1, 1, self.block_size))  # (..., in/H, 1, H)
            x = (groups @ turns[factor]).flatten(-3)[..., order]
        return x


def _cayley(blocks: Tensor) -> Tensor:
    """Return the orthogonal (I - S)(I + S)^-1 of each block's skew-symmetric half S."""
    skew = 0.5 * (blocks - blocks.transpose(-1, -2))
    identity = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device).expand_as(skew)
    rotation: Tensor = torch.linalg.solve(identity + skew, identity - skew, left=False)
    return rotation


def _butterfly(width: int, block_size: int, factor: int) -> Tensor:
    """Return the order in which a factor reads its input: half blocks, within spans that double with each factor."""
    half, span = max(block_size // 2, 1), block_size * 2**factor
    groups = torch.arange(width).reshape(width // span, span // half, half)
    return torch.cat([groups[:, 0::2], groups[:, 1::2]], dim=1).reshape(-1)
