"""What a method may do to SAM's mask decoder: the places at which ``walk`` asks it.

A part keeps no tensors. It is given them at each call, as a mapping from the adapter's flat names, either as trained
or with one more axis in front that holds one adapter for each prompt: (R, in) or (N, R, in). So the same mathematics
trains one adapter and serves a batch that mixes a hundred.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from segment_anything.modeling import MaskDecoder
from torch import Tensor, nn

from vplab.errors import InvalidInput
from vplab.vision.adapters.tensors import Tensors
from vplab.vision.sam.upscaling import as_planes

Linear = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Site:
    """A linear layer of the two-way transformer or of the mask head."""

    name: str
    """Its path, such as ``layers.0.self_attn.q_proj`` or ``output_hypernetworks_mlps.1.layers.2``."""
    layer: nn.Linear
    """The frozen layer."""
    grid_hw: tuple[int, int] | None = None
    """Size of the image grid where the input's rows are the image's cells, else None."""


@dataclass(frozen=True)
class PlaneInputs:
    """What the mask planes are computed from."""

    fine_cells: Tensor
    """(N, h*w*16, C/8) the decoder's upscaled image feature, as ``vplab.vision.sam.upscaling`` orders it."""
    grid_hw: tuple[int, int]
    """(h, w) of the image's cells."""
    extra_queries: Tensor
    """(N, E, C) what became of the part's extra output tokens."""
    image_embedding: Tensor
    """(B, C, h, w) as the encoder gave it."""
    early_features: Tensor | None
    """(B, E, h, w) of an early encoder block, for an adapter that is made with some."""
    image_index: Tensor
    """(N,) int64, the image of each prompt."""
    is_training: bool
    """Whether the module is in training mode."""

    def upscaled(self) -> Tensor:
        """Return the upscaled image feature as an image, (N, C/8, 4h, 4w)."""
        return as_planes(self.fine_cells.transpose(1, 2), self.grid_hw)


class Part:
    """One method; every place leaves things as they are until a method says otherwise."""

    def initial(self) -> dict[str, Tensor]:
        """Return the tensors an untrained adapter starts with, by flat name; random ones from torch's generator."""
        raise NotImplementedError

    def prepare(self, decoder: MaskDecoder, tensors: Mapping[str, nn.Parameter]) -> None:
        """Change the adapter's own view of the frozen decoder, once, before it is used."""

    def linear(self, tensors: Tensors, site: Site, x: Tensor, inner: Linear) -> Tensor:
        """Compute the linear layer at ``site`` for x (N, T, in), given what the parts before this one compute."""
        return inner(x)

    def after_block(self, tensors: Tensors, block: str, y: Tensor) -> Tensor:
        """Change the output of an attention or MLP before it is added to its input: (N, T, C)."""
        return y

    def sparse_prompts(self, tensors: Tensors, sparse: Tensor, image_mean: Tensor) -> Tensor:
        """Change the prompt tokens (N, P, C), given the mean (N, C) of each prompt's image embedding."""
        return sparse

    def memory(self, tensors: Tensors, stage: str, sequence: str) -> Tensor | None:
        """Return tokens (K, C) or (N, K, C) to put before a sequence, ``queries`` or ``image``, at a stage or None.

        Stages are ``layers.0``, ``layers.1`` and ``final``.
        """
        return None

    def memory_gate(self, tensors: Tensors, attention: str) -> Tensor | None:
        """Return the gate (heads,) or (N, heads) of memory in an attention, or None for one softmax over all keys."""
        return None

    def output_tokens(self, tensors: Tensors) -> Tensor | None:
        """Return output tokens (E, C) or (N, E, C) to add behind SAM's own, or None."""
        return None

    def planes(self, tensors: Tensors, logits: Tensor, inputs: PlaneInputs) -> Tensor:
        """Change the mask logits (N, M, 4h, 4w)."""
        return logits

    def fold(self, tensors: Tensors, site: Site, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weight (out, in) and bias (out,) that do by themselves what this part does at ``site``.

        With an adapter for each prompt both have the axis N in front, where the part changes them.
        """
        return weight, bias

    def after_folding(self) -> "Part | None":
        """Return what stays beside the weights once every site is folded, or None."""
        return self


def match_targets(sites: Mapping[str, nn.Linear], targets: tuple[str, ...], field: str) -> tuple[str, ...]:
    """Return the sites that targets name by the end of their path, in the decoder's order.

    Raises InvalidInput (the field given) for a target that names nothing.
    """
    for target in targets:
        if not any(_is_named(site, target) for site in sites):
            raise InvalidInput(f"the decoder has no linear layer {target!r}", field=field)
    return tuple(site for site in sites if any(_is_named(site, target) for target in targets))


def _is_named(site: str, target: str) -> bool:
    return site == target or site.endswith(f".{target}")
