"""How one adapter's tensors lie in a row of an adapter bank. Imports no torch; the graph carries it as metadata.

A row holds what an adapter adds: the tensors one after another, less one where an untrained tensor is all ones. So a
row of zeros is the base decoder, and a bank of zeros is a bank of bases.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Final, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vplab.errors import DataLoss, InvalidInput
from vplab.vision.adapters.spec import AdapterSpec, EPeftSpec

BANK_INPUT: Final = "adapter_bank"
"""Graph input (A, W) float16: the rows."""
INDEX_INPUT: Final = "adapter_index"
"""Graph input (N,) int64: the row of each prompt."""
LAYOUT_KEY: Final = "vplab.adapter_bank"
"""Under which a bank's graph carries its layout in its metadata."""


class BankTensor(BaseModel):
    """One tensor of an adapter."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Its name in ``adapter.safetensors``."""
    shape: tuple[Annotated[int, Field(gt=0)], ...]
    neutral: float
    """Value of all its elements with which it changes nothing, beside other tensors that change nothing; 0 or 1."""

    @property
    def size(self) -> int:
        """Number of its elements."""
        return math.prod(self.shape)


class BankLayout(BaseModel):
    """The tensors of a row, in order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tensors: Annotated[tuple[BankTensor, ...], Field(min_length=1)]

    @property
    def width(self) -> int:
        """Numbers in a row, W."""
        return sum(tensor.size for tensor in self.tensors)

    @classmethod
    def from_json(cls, data: str) -> Self:
        """Read what ``model_dump_json`` wrote. Raises InvalidInput."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            raise InvalidInput(f"not a valid bank layout: {error.errors()[0]['msg']}", field="layout") from error

    def row(self, state: Mapping[str, ArrayLike]) -> NDArray[np.float16]:
        """Return an adapter's row (W,) float16; tensors that the state lacks change nothing.

        Raises InvalidInput (field ``adapter``) for a tensor of another name or shape, DataLoss for values that are not
        finite, or not in half precision.
        """
        unexpected = sorted(state.keys() - {tensor.name for tensor in self.tensors})
        if unexpected:
            raise InvalidInput(f"the bank has no place for {', '.join(unexpected)}", field="adapter")
        row = np.zeros(self.width, np.float32)
        start = 0
        for tensor in self.tensors:
            value = state.get(tensor.name)
            if value is not None:
                array = np.asarray(value, np.float32)
                if array.shape != tensor.shape:
                    message = f"{tensor.name} is {list(array.shape)}; the bank takes {list(tensor.shape)}"
                    raise InvalidInput(message, field="adapter")
                row[start : start + tensor.size] = array.reshape(-1) - tensor.neutral
            start += tensor.size
        with np.errstate(over="ignore"):
            half = row.astype(np.float16)
        if not np.isfinite(half).all():
            raise DataLoss("the adapter's tensors hold values that are not finite in half precision")
        return half

    def state(self, row: NDArray[np.float16]) -> dict[str, NDArray[np.float32]]:
        """Return the tensors of a row (W,) by name, as ``row`` took them but for rounding."""
        found, start = {}, 0
        for tensor in self.tensors:
            values = row[start : start + tensor.size].astype(np.float32) + np.float32(tensor.neutral)
            found[tensor.name] = values.reshape(tensor.shape)
            start += tensor.size
        return found


def has_place_for(bank: AdapterSpec, adapter: AdapterSpec) -> bool:
    """Say whether a bank for adapters of one spec takes those of another: the same, or parts of the same ensemble."""
    if bank == adapter:
        return True
    if not isinstance(bank, EPeftSpec):
        return False
    parts = {name: value for name, value in adapter if name != "method"} if isinstance(adapter, EPeftSpec) else None
    wanted = {adapter.method: adapter} if parts is None else parts
    return all(part is None or part == getattr(bank, name, None) for name, part in wanted.items())
