"""HQ-SAM's high-quality token: a further output token whose mask is read from fused early and late features.

Source: Ke et al., "Segment Anything in High Quality" (arXiv 2306.01567), ``mask_decoder_hq.py`` of SysCV/sam-hq. The HQ
mask is added to each of SAM's planes. ``trained_mask`` "alone" supervises it as there, without SAM's: in training mode
every plane is then the HQ mask.

Deviation: HQ-SAM's mask is trained as a part of the sum, from zero (``trained_mask`` "sum"), unless told otherwise.

Deviation: where no early feature is at hand (``early_channels`` unset), HQ-SAM's fusion is of the image embedding and
the decoder's own feature only.
"""

import torch
from segment_anything.modeling import MaskDecoder
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.mask_decoder import MLP
from torch import Tensor, nn
from torch.nn import functional as F

from vplab.vision.adapters.part import Part, PlaneInputs
from vplab.vision.adapters.spec import HqTokenSpec
from vplab.vision.adapters.tensors import Tensors, affine, prefixed


class HqToken(Part):
    """Tensors ``hq_token.token`` (1, C) and those of ``mlp``, ``embedding``, ``early`` and ``feature`` below."""

    def __init__(self, spec: HqTokenSpec, decoder: MaskDecoder) -> None:
        self.width = decoder.transformer_dim
        self.early_channels = spec.early_channels
        self.is_trained_alone = spec.trained_mask == "alone"

    def initial(self) -> dict[str, Tensor]:
        tensors = {"hq_token.token": torch.randn(1, self.width)}  # as nn.Embedding
        tensors |= {f"hq_token.{name}": value for name, value in self._network().named_parameters()}
        if not self.is_trained_alone:
            for name in ("weight", "bias"):
                tensors[f"hq_token.mlp.layers.2.{name}"] = torch.zeros_like(tensors[f"hq_token.mlp.layers.2.{name}"])
        return tensors

    def output_tokens(self, tensors: Tensors) -> Tensor:
        return tensors["hq_token.token"]

    def planes(self, tensors: Tensors, logits: Tensor, inputs: PlaneInputs) -> Tensor:
        feature = _upscale(prefixed(tensors, "hq_token.embedding."), inputs.image_embedding)
        if inputs.early_features is not None:
            feature = feature + _upscale(prefixed(tensors, "hq_token.early."), inputs.early_features)
        feature = feature.index_select(0, inputs.image_index)  # (N, C/8, 4h, 4w)
        feature = feature + _refine(prefixed(tensors, "hq_token.feature."), inputs.upscaled())
        hyper = _mlp(prefixed(tensors, "hq_token.mlp."), inputs.extra_queries[:, :1])  # (N, 1, C/8)
        mask = (hyper @ feature.flatten(2)).unflatten(2, feature.shape[-2:])
        planes: Tensor = mask.expand_as(logits) if inputs.is_training and self.is_trained_alone else logits + mask
        return planes

    def _network(self) -> nn.ModuleDict:
        """Return the layers as HQ-SAM builds them, for their names, shapes and initialisation."""
        width, narrow = self.width, self.width // 8
        parts = {"mlp": MLP(width, width, narrow, 3), "embedding": _upscaling(width, width // 4, narrow)}
        if self.early_channels is not None:
            parts["early"] = _upscaling(self.early_channels, width, narrow)
        parts["feature"] = nn.Sequential(
            nn.Conv2d(narrow, width // 4, 3, padding=1),
            LayerNorm2d(width // 4),
            nn.GELU(),
            nn.Conv2d(width // 4, narrow, 3, padding=1),
        )
        return nn.ModuleDict(parts)


def _upscaling(channels: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(channels, hidden, kernel_size=2, stride=2),
        LayerNorm2d(hidden),
        nn.GELU(),
        nn.ConvTranspose2d(hidden, out, kernel_size=2, stride=2),
    )


# The layers' arithmetic on given tensors; torch.func.functional_call, which would spare it, cannot be exported.
def _upscale(layers: Tensors, x: Tensor) -> Tensor:
    """Run ``_upscaling``: (B, channels, h, w) to (B, out, 4h, 4w)."""
    x = F.conv_transpose2d(x, layers["0.weight"], layers["0.bias"], stride=2)
    x = F.gelu(_norm(x, layers["1.weight"], layers["1.bias"]))
    return F.conv_transpose2d(x, layers["3.weight"], layers["3.bias"], stride=2)


def _refine(layers: Tensors, x: Tensor) -> Tensor:
    """Run ``feature``, which keeps the shape (N, C/8, 4h, 4w)."""
    x = F.conv2d(x, layers["0.weight"], layers["0.bias"], padding=1)
    x = F.gelu(_norm(x, layers["1.weight"], layers["1.bias"]))
    return F.conv2d(x, layers["3.weight"], layers["3.bias"], padding=1)


def _mlp(layers: Tensors, x: Tensor) -> Tensor:
    """Run ``mlp``: (N, T, C) to (N, T, C/8)."""
    for index in range(2):
        x = affine(x, layers[f"layers.{index}.weight"], layers[f"layers.{index}.bias"]).relu()
    return affine(x, layers["layers.2.weight"], layers["layers.2.bias"])


def _norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """SAM's LayerNorm2d, over the channels of (B, C, h, w)."""
    centred = x - x.mean(1, keepdim=True)
    scaled = centred / torch.sqrt(centred.square().mean(1, keepdim=True) + 1e-6)
    return weight[:, None, None] * scaled + bias[:, None, None]
