"""MobileSAM's image encoder: TinyViT at 1024 pixels whose last stage keeps the stride, then SAM's neck.

Source: Zhang et al., "Faster Segment Anything" (arXiv 2306.14289), and Wu et al., "TinyViT" (arXiv 2207.10666). The
stages are timm's TinyVit, onto which MobileSAM's names are mapped: in MobileSAM a stage ends with the step to the next
one, in timm a stage begins with it. MobileSAM's classification head (``norm_head``, ``head``) takes no part in the
embedding and is dropped.
"""

import re
from math import isqrt
from typing import Any

from segment_anything.modeling.common import LayerNorm2d
from timm.models.tiny_vit import TinyVit
from torch import Tensor, nn

from vplab.vision.sam.state_dict import StateDict, load_strict, num_children, shape_of

INPUT_SIZE = 1024
"""Side of the square input, in pixels; the weights do not tell it, having no absolute position embedding."""

_HEAD = ("norm_head.", "head.")
_PUBLISHED_WIDTHS: dict[tuple[int, ...], str] = {(64, 128, 160, 320): "vit_t"}


class TinyViTEncoder(nn.Module):
    """(B, 3, S, S) float32, normalised and padded, to SAM's image embedding (B, C, S/16, S/16)."""

    stride = 16

    def __init__(self, backbone: TinyVit, num_channels: int) -> None:
        super().__init__()
        self.patch_embed = backbone.patch_embed
        self.stages = backbone.stages
        # TinyViT's step into the last stage halves the grid; MobileSAM's does not, which gives SAM's stride.
        last_step: Any = self.stages[-1].downsample
        last_step.conv2.conv.stride = (1, 1)
        self.neck = nn.Sequential(
            nn.Conv2d(backbone.num_features, num_channels, kernel_size=1, bias=False),
            LayerNorm2d(num_channels),
            nn.Conv2d(num_channels, num_channels, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(num_channels),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Embed images of one square size that is a multiple of 16."""
        embedding: Tensor = self.neck(self.stages(self.patch_embed(image)))
        return embedding

    @classmethod
    def from_state_dict(cls, state: StateDict) -> "TinyViTEncoder":
        """Build the encoder whose weights these are, in MobileSAM's names without the ``image_encoder.`` prefix."""
        num_stages = num_children(state, "layers.")
        heads_and_offsets = [
            shape_of(state, f"layers.{i}.blocks.0.attn.attention_biases") for i in range(1, num_stages)
        ]
        backbone = TinyVit(
            num_classes=0,
            embed_dims=_widths(state),
            depths=tuple(num_children(state, f"layers.{i}.blocks.") for i in range(num_stages)),
            # The first stage is convolutional; its head count and window are not used.
            num_heads=(1, *(heads for heads, _ in heads_and_offsets)),
            window_sizes=(1, *(isqrt(offsets) for _, offsets in heads_and_offsets)),
            drop_path_rate=0.0,
        )
        encoder = cls(backbone, num_channels=shape_of(state, "neck.0.weight")[0])
        renamed = {timm_name(key): value for key, value in state.items() if not key.startswith(_HEAD)}
        load_strict(encoder, renamed, what="MobileSAM's image encoder (names as in timm's TinyVit)")
        return encoder


def is_tiny_vit(state: StateDict) -> bool:
    """Tell whether an image encoder's tensors are in MobileSAM's layout."""
    return any(key.startswith("layers.0.blocks.") for key in state)


def tiny_vit_architecture(state: StateDict) -> str:
    """Return ``vit_t`` for the published widths, and otherwise a name made of the widths."""
    widths = _widths(state)
    return _PUBLISHED_WIDTHS.get(widths, "vit_t_" + "x".join(map(str, widths)))


def timm_name(key: str) -> str:
    """Translate one tensor's name from MobileSAM's layout into TinyViTEncoder's."""
    key = re.sub(r"\bc\.weight$", "conv.weight", key)
    key = re.sub(r"^patch_embed\.seq\.0\.", "patch_embed.conv1.", key)
    key = re.sub(r"^patch_embed\.seq\.2\.", "patch_embed.conv2.", key)
    key = re.sub(r"^layers\.(\d+)\.downsample\.", lambda m: f"stages.{int(m[1]) + 1}.downsample.", key)
    return re.sub(r"^layers\.", "stages.", key)


def _widths(state: StateDict) -> tuple[int, ...]:
    num_stages = num_children(state, "layers.")
    stem = shape_of(state, "patch_embed.seq.2.c.weight")[0]
    steps = (shape_of(state, f"layers.{i}.downsample.conv3.c.weight")[0] for i in range(num_stages - 1))
    return (stem, *steps)
