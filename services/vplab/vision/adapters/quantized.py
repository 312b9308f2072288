"""Linear layers whose frozen weight is kept in eight or four bits and turned back into floats when used.

Source of NF4: Dettmers et al., "QLoRA" (arXiv 2305.14314), appendix E. Deviation: QLoRA's block scales stay float32;
double quantisation would save another 0.4 bit of each weight's 4.5.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vplab.vision.adapters.spec import BaseType

NF4_BLOCK = 64
# Quantiles of the normal distribution with an exact zero, scaled to -1..1 (QLoRA, appendix E).
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


class QuantizedLinear(nn.Module):
    """A frozen linear layer; ``weight`` is computed at each use."""

    codes: Tensor
    scales: Tensor
    bias: Tensor

    def __init__(self, layer: nn.Linear, base_type: BaseType) -> None:
        super().__init__()
        self.in_features, self.out_features, self.base_type = layer.in_features, layer.out_features, base_type
        codes, scales = _to_int8(layer.weight) if base_type == "int8" else _to_nf4(layer.weight)
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        self.register_buffer("bias", layer.bias.detach())

    @property
    def weight(self) -> Tensor:
        """The weight (out, in) that the codes stand for, float32."""
        if self.base_type == "int8":
            return self.codes.to(self.scales.dtype) * self.scales
        pairs = torch.stack([self.codes >> 4, self.codes & 15], dim=-1).flatten()
        values = torch.tensor(_NF4, device=pairs.device)[pairs.long()].reshape(-1, NF4_BLOCK) * self.scales
        return values.flatten()[: self.out_features * self.in_features].reshape(self.out_features, self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in); returns (..., out)."""
        return F.linear(x, self.weight, self.bias)


def quantize_linears(module: nn.Module, base_type: BaseType) -> None:
    """Replace every linear layer below ``module``."""
    for name, layer in list(module.named_modules()):
        if isinstance(layer, nn.Linear):
            module.set_submodule(name, QuantizedLinear(layer, base_type))


def restore_linears(module: nn.Module) -> None:
    """Replace every quantised layer below ``module`` by a linear layer of float32."""
    for name, layer in list(module.named_modules()):
        if isinstance(layer, QuantizedLinear):
            module.set_submodule(name, frozen_linear(layer.weight, layer.bias))


def frozen_linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """Return a linear layer of these very tensors that does not train."""
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer


@torch.no_grad()
def _to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row to 127 steps of its largest value: (out, in) int8 and (out, 1) float32."""
    scales = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
    return (weight / scales).round().to(torch.int8), scales


@torch.no_grad()
def _to_nf4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round blocks of 64 values to the nearest of 16: two codes in a byte, high half first, and (blocks, 1) float32."""
    flat = weight.flatten()
    padded = F.pad(flat, (0, -len(flat) % NF4_BLOCK)).reshape(-1, NF4_BLOCK)
    scales = padded.abs().amax(dim=1, keepdim=True).clamp(min=1e-12)
    values = torch.tensor(_NF4, device=weight.device)
    codes = torch.bucketize(padded / scales, (values[1:] + values[:-1]) / 2).to(torch.uint8).reshape(-1, 2)
    return codes[:, 0] << 4 | codes[:, 1], scales
