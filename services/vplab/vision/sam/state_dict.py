"""Filling a module from published weights, with errors that name the tensors at fault."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vplab.errors import DataLoss, InvalidInput

StateDict = Mapping[str, Tensor]
_MAX_NAMED = 8


def load_strict(module: nn.Module, state: StateDict, *, what: str) -> None:
    """Give ``module`` the tensors of ``state``, as float32 where they are floating point; names and shapes must agree.

    Tensors that are float32 already are taken as they are and not copied. Raises InvalidInput (field ``path``) naming
    missing, unexpected and misshapen tensors, DataLoss where a value is not finite.
    """
    expected = module.state_dict()
    problems = [
        _listing("missing", sorted(expected.keys() - state.keys())),
        _listing("unexpected", sorted(state.keys() - expected.keys())),
        _listing(
            "of another shape",
            [
                f"{key} {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}"
                for key in sorted(expected.keys() & state.keys())
                if state[key].shape != expected[key].shape
            ],
        ),
    ]
    if any(problems):
        found = "; ".join(p for p in problems if p)
        raise InvalidInput(f"these weights do not fit {what}: {found}", field="path")
    module.load_state_dict({key: _as_float32(key, value) for key, value in state.items()}, strict=True, assign=True)
    module.requires_grad_(False).eval()


def prefixed(state: StateDict, prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names start with ``prefix``, without it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def shape_of(state: StateDict, key: str) -> tuple[int, ...]:
    """Return the shape of a tensor that decides the architecture. Raises InvalidInput if it is missing."""
    if key not in state:
        raise InvalidInput(f"these weights lack the tensor {key}, which tells the architecture", field="path")
    return tuple(state[key].shape)


def num_children(state: StateDict, prefix: str) -> int:
    """Count the numbered children of a list module: ``blocks.`` of ``blocks.0.x``, ``blocks.1.x`` is 2."""
    numbers = {key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)}
    return len({n for n in numbers if n.isdigit()})


def _listing(kind: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return f"{len(names)} {kind}: {', '.join(names[:_MAX_NAMED])}{more}"


def _as_float32(key: str, value: Tensor) -> Tensor:
    if not value.is_floating_point():
        return value
    if not bool(torch.isfinite(value).all()):
        raise DataLoss(f"the tensor {key} holds values that are not finite; the file is damaged")
    return value.to(torch.float32)
