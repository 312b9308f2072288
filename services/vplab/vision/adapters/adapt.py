"""Put an adapter beside a decoder: ``adapt`` leaves the decoder as it is and shares its weights.

Any number of adapters can stand beside one decoder; each holds its own few tensors and a view of the frozen weights.
"""

import copy
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vplab.errors import InvalidInput
from vplab.vision.adapters.methods import parts_of
from vplab.vision.adapters.part import Part, Site
from vplab.vision.adapters.quantized import frozen_linear, restore_linears
from vplab.vision.adapters.spec import AdapterSpec, HqTokenSpec
from vplab.vision.adapters.tensors import AdapterTensors, Tensors
from vplab.vision.adapters.walk import decode_adapted, linear_sites, put_linear
from vplab.vision.sam.onnx_decoder import PromptDecoder


def adapt(decoder: PromptDecoder, spec: AdapterSpec, *, seed: int = 0) -> "AdaptedDecoder":
    """Return ``decoder`` with an untrained adapter, on its device and in its mode, training or evaluation.

    The decoder stays untouched; its weights are shared and frozen, so changing them in place later changes what the
    adapter sees. Equal seeds give equal tensors and draw nothing from torch's global generator. Raises InvalidInput
    naming the spec's field that does not fit this decoder.
    """
    base = frozen_view(decoder)
    parts = parts_of(spec, base.mask_decoder)
    device = next(base.parameters()).device
    tensors = {name: value.to(device) for name, value in _initial(parts, seed).items()}
    return AdaptedDecoder(base, spec, parts, tensors).train(decoder.training)


class AdaptedDecoder(nn.Module):
    """A PromptDecoder with an adapter: the same inputs and outputs, and only the adapter's tensors train."""

    def __init__(self, base: PromptDecoder, spec: AdapterSpec, parts: Sequence[Part], tensors: Tensors) -> None:
        super().__init__()
        self.base = base
        self.spec = spec
        self.parts = tuple(parts)
        self.adapter = AdapterTensors(tensors)
        for part in self.parts:
            part.prepare(base.mask_decoder, self.adapter.named())

    def forward(
        self,
        image_embedding: Tensor,
        image_index: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
        early_features: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Decode prompts; shapes as in ``PromptDecoder.forward``.

        early_features: (B, E, h, w) float32 on the embedding's grid, if the spec has ``early_channels`` E, else None.
        Raises InvalidInput (field ``early_features``) when they are missing, unwanted or of another width.
        """
        _check_early(early_features, self.early_channels)
        inputs = (image_embedding, image_index, point_coords, point_labels, mask_input, has_mask_input)
        # A weight made at each call costs less than two narrow products over a thousand cells, on the way back too; a
        # graph has its own way to make weights.
        folds = not torch.compiler.is_exporting()
        tensors = self.adapter.named()
        return decode_adapted(
            self.base, self.parts, tensors, inputs, early_features, self.training, folds_image_side=folds
        )

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
    def early_channels(self) -> int | None:
        """Channels of the early encoder feature that the adapter asks for, or None."""
        return self.spec.early_channels if isinstance(self.spec, HqTokenSpec) else None

    @property
    def needs_early_features(self) -> bool:
        """Whether ``forward`` takes early features."""
        return self.early_channels is not None

    @property
    def base_bytes(self) -> int:
        """Memory of the frozen mask decoder's tensors, which adapters of one decoder share unless they change them."""
        own = {id(value) for value in self.adapter_parameters()}
        decoder = self.base.mask_decoder
        frozen = [value for value in (*decoder.parameters(), *decoder.buffers()) if id(value) not in own]
        return sum(value.numel() * value.element_size() for value in frozen)

    @property
    def num_adapter_parameters(self) -> int:
        """Numbers in the adapter's tensors."""
        return sum(value.numel() for value in self.adapter_parameters())

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """Return a decoder with the same answers in which all that can is part of the weights, as it is now.

        It has the inputs and outputs of this one; a PromptDecoder when nothing stays beside the weights.
        """
        base = frozen_view(self.base, copied={id(value) for value in self.adapter_parameters()})
        tensors = self.adapter_state()
        for name, layer in linear_sites(base.mask_decoder).items():
            weight: Tensor = layer.weight
            bias: Tensor = layer.bias
            for part in self.parts:
                weight, bias = part.fold(tensors, Site(name, layer), weight, bias)
            if weight is not layer.weight or bias is not layer.bias:
                put_linear(base.mask_decoder, name, frozen_linear(weight, bias))
        restore_linears(base.mask_decoder)
        parts = [rest for part in self.parts if (rest := part.after_folding()) is not None]
        if not parts:
            return base.train(self.training)
        needed = {name: tensors[name] for name in _initial(parts, seed=0)}
        return AdaptedDecoder(base, self.spec, parts, needed).train(self.training)


def frozen_view(decoder: PromptDecoder, copied: Collection[int] = ()) -> PromptDecoder:
    """Return a decoder of its own modules whose weights are those of ``decoder`` and do not train.

    Weights are shared, but for those whose ``id`` is in ``copied``.
    """
    shared: dict[int, Any] = {}
    for value in decoder.parameters():
        data = value.detach().clone() if id(value) in copied else value.detach()
        shared[id(value)] = nn.Parameter(data, requires_grad=False)
    shared |= {id(b): b for b in decoder.buffers()}
    return copy.deepcopy(decoder, shared)


def _initial(parts: Sequence[Part], seed: int) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {name: value for part in parts for name, value in part.initial().items()}


def _check_early(features: Tensor | None, channels: int | None) -> None:
    given = None if features is None else features.shape[1]
    if given != channels:
        raise InvalidInput(
            f"the adapter is made for {channels or 'no'} early feature channels, not {given or 'none'}",
            field="early_features",
        )
