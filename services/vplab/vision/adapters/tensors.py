"""An adapter's tensors under flat dotted names, which are the file format of ``adapter.safetensors``."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vplab.errors import DataLoss, InvalidInput

Tensors = Mapping[str, Tensor]
_MAX_NAMED = 8


class AdapterTensors(nn.Module):
    """Trainable parameters under dotted names, which ``nn.ParameterDict`` does not allow, in the order given."""

    def __init__(self, tensors: Tensors) -> None:
        super().__init__()
        self._names = tuple(tensors)
        for name, value in tensors.items():
            *path, leaf = name.split(".")
            owner: nn.Module = self
            for step in path:
                if step not in owner._modules:
                    owner.add_module(step, nn.Module())
                owner = owner.get_submodule(step)
            owner.register_parameter(leaf, nn.Parameter(value.detach().clone(memory_format=torch.contiguous_format)))

    def named(self) -> dict[str, nn.Parameter]:
        """Return every parameter by its flat name."""
        return {name: self.get_parameter(name) for name in self._names}

    @torch.no_grad()
    def load(self, state: Tensors) -> None:
        """Copy ``state`` into the parameters, converted to their type and device.

        Raises InvalidInput (field ``adapter``) naming missing, unexpected and misshapen tensors, DataLoss for values
        that are not finite; the parameters are then unchanged.
        """
        parameters = self.named()
        check_state(state, {name: tuple(value.shape) for name, value in parameters.items()})
        for name, value in parameters.items():
            value.copy_(state[name])


def prefixed(tensors: Tensors, prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names start with ``prefix``, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def affine(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Apply weight (out, in) and bias (out,) to x (N, T, in), or row by row (N, out, in) and (N, out)."""
    if weight.dim() == 2:
        return F.linear(x, weight, bias)
    y = x @ weight.transpose(-1, -2)
    return y if bias is None else y + bias.unsqueeze(-2)


def check_state(state: Tensors, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Compare names and shapes, and look for values that are not finite; errors as of AdapterTensors.load."""
    problems = [
        _listing("missing", sorted(expected.keys() - state.keys())),
        _listing("unexpected", sorted(state.keys() - expected.keys())),
        _listing(
            "of another shape",
            [
                f"{name} {tuple(state[name].shape)} instead of {expected[name]}"
                for name in sorted(expected.keys() & state.keys())
                if tuple(state[name].shape) != expected[name]
            ],
        ),
    ]
    if any(problems):
        found = "; ".join(p for p in problems if p)
        raise InvalidInput(f"these tensors are not of this adapter: {found}", field="adapter")
    for name, value in state.items():
        if not bool(torch.isfinite(value).all()):
            raise DataLoss(f"the adapter's tensor {name} holds values that are not finite")


def _listing(kind: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return f"{len(names)} {kind}: {', '.join(names[:_MAX_NAMED])}{more}"
