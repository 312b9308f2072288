"""Full decoder tuning: every parameter of the mask decoder trains, the comparison that is not parameter-efficient."""

from collections.abc import Mapping

from segment_anything.modeling import MaskDecoder
from torch import Tensor, nn

from vplab.vision.adapters.part import Part


class FullDecoder(Part):
    """Tensors ``full_decoder.<key of the mask decoder's state dict>``, a copy that takes the place of the base's."""

    def __init__(self, decoder: MaskDecoder) -> None:
        self.start = {f"full_decoder.{key}": value for key, value in decoder.named_parameters()}

    def initial(self) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in self.start.items()}

    def prepare(self, decoder: MaskDecoder, tensors: Mapping[str, nn.Parameter]) -> None:
        for name, value in tensors.items():
            owner, _, leaf = name.removeprefix("full_decoder.").rpartition(".")
            decoder.get_submodule(owner).register_parameter(leaf, value)

    def after_folding(self) -> None:
        return None
