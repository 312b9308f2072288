"""The image-context adapter: an MLP on the mean image embedding, added to every prompt token.

Source: VP Lab's "lightweight adapter module that shares the average image representation with the prompt through an
MLP"; 33.1K parameters are an MLP 256-64-256 with biases. Unstated: the adapter MLP's activation, here ReLU as in SAM's
own, and its start, here the identity through a last layer of zeros.
"""

import math

import torch
from torch import Tensor, nn

from vplab.vision.adapters.part import Part
from vplab.vision.adapters.spec import ImageContextSpec
from vplab.vision.adapters.tensors import Tensors, affine


class ImageContext(Part):
    """Tensors ``image_context.{down,up}.{weight,bias}``."""

    def __init__(self, spec: ImageContextSpec, width: int) -> None:
        self.width, self.hidden = width, spec.hidden

    def initial(self) -> dict[str, Tensor]:
        bound = 1 / math.sqrt(self.width)  # as nn.Linear
        return {
            "image_context.down.weight": nn.init.kaiming_uniform_(torch.empty(self.hidden, self.width), a=math.sqrt(5)),
            "image_context.down.bias": torch.empty(self.hidden).uniform_(-bound, bound),
            "image_context.up.weight": torch.zeros(self.width, self.hidden),
            "image_context.up.bias": torch.zeros(self.width),
        }

    def sparse_prompts(self, tensors: Tensors, sparse: Tensor, image_mean: Tensor) -> Tensor:
        down, up = (
            (tensors[f"image_context.{layer}.weight"], tensors[f"image_context.{layer}.bias"])
            for layer in ("down", "up")
        )
        return sparse + affine(affine(image_mean.unsqueeze(1), *down).relu(), *up)
