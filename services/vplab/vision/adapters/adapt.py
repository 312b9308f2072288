"""Put an adapter beside a decoder: ``adapt`` leaves the decoder as it is and shares its weights.

Any number of adapters can stand beside one decoder; each holds its own few tensors and a view of the frozen weights.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vplab.vision.adapters.methods import parts_of
from vplab.vision.adapters.part import Part, Site
from vplab.vision.adapters.spec import AdapterSpec
from vplab.vision.adapters.tensors import AdapterTensors, Tensors
from vplab.vision.adapters.walk import decode_adapted, linear_sites
from vplab.vision.sam.onnx_decoder import PromptDecoder


def adapt(decoder: PromptDecoder, spec: AdapterSpec, *, seed: int = 0) -> "AdaptedDecoder":
    """Return ``decoder`` with an untrained adapter, on its device.

    The decoder stays untouched; its weights are shared and frozen, so changing them in place later changes what the
    adapter sees. Equal seeds give equal tensors and draw nothing from torch's global generator. Raises InvalidInput
    naming the spec's field that does not fit this decoder.
    """
    base = frozen_view(decoder)
    parts = parts_of(spec, base.mask_decoder)
    device = next(base.parameters()).device
    tensors = {name: value.to(device) for name, value in _initial(parts, seed).items()}
    return AdaptedDecoder(base, spec, parts, tensors)


class AdaptedDecoder(nn.Module):
    """A PromptDecoder with an adapter: the same inputs and outputs, and only the adapter's tensors train."""

    def __init__(self, base: PromptDecoder, spec: AdapterSpec, parts: Sequence[Part], tensors: Tensors) -> None:
        super().__init__()
        self.base = base
        self.spec = spec
        self.parts = tuple(parts)
        self.adapter = AdapterTensors(tensors)

    def forward(
        self,
        image_embedding: Tensor,
        image_index: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Decode prompts; shapes as in ``PromptDecoder.forward``."""
        inputs = (image_embedding, image_index, point_coords, point_labels, mask_input, has_mask_input)
        return decode_adapted(self.base, self.parts, self.adapter.named(), inputs)

    def adapter_parameters(self) -> Iterator[nn.Parameter]:
        """Iterate over what trains."""
        return iter(self.adapter.named().values())

    def adapter_state(self) -> dict[str, Tensor]:
        """Return a copy of the adapter's tensors by flat name: the content of ``adapter.safetensors``."""
        return {name: value.detach().clone() for name, value in self.adapter.named().items()}

    def load_adapter_state(self, state: Tensors) -> None:
        """Take the tensors of ``state``. Raises as ``AdapterTensors.load``."""
        self.adapter.load(state)

    @property
    def num_adapter_parameters(self) -> int:
        """Numbers in the adapter's tensors."""
        return sum(value.numel() for value in self.adapter_parameters())

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """Return a decoder with the same answers in which all that can is part of the weights, as it is now.

        It has the inputs and outputs of this one; a PromptDecoder when nothing stays beside the weights.
        """
        base = frozen_view(self.base)
        tensors = self.adapter_state()
        for name, layer in linear_sites(base.mask_decoder).items():
            weight: Tensor = layer.weight
            bias: Tensor = layer.bias
            for part in self.parts:
                weight, bias = part.fold(tensors, Site(name, layer), weight, bias)
            if weight is not layer.weight or bias is not layer.bias:
                base.mask_decoder.transformer.set_submodule(name, _frozen_linear(weight, bias))
        parts = [rest for part in self.parts if (rest := part.after_folding()) is not None]
        if not parts:
            return base.train(self.training)
        needed = {name: tensors[name] for name in _initial(parts, seed=0)}
        return AdaptedDecoder(base, self.spec, parts, needed).train(self.training)


def frozen_view(decoder: PromptDecoder) -> PromptDecoder:
    """Return a decoder of its own modules whose weights are those of ``decoder``, not copied, and do not train."""
    shared: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in decoder.parameters()}
    shared |= {id(b): b for b in decoder.buffers()}
    return copy.deepcopy(decoder, shared)


def _initial(parts: Sequence[Part], seed: int) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {name: value for part in parts for name, value in part.initial().items()}


def _frozen_linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer
