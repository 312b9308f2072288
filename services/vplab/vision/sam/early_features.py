"""Image encoders that also return the early feature which HQ-SAM fuses, in one pass and with the same embedding.

Source: Ke et al., "Segment Anything in High Quality" (arXiv 2306.01567), SysCV/sam-hq: of a ViT the output of the first
block that attends to the whole grid (``mask_decoder_hq.py``: ``interm_embeddings[0]``), of MobileSAM's TinyViT what its
``tiny_vit_sam.py`` takes, the second stage with its step onto the embedding's grid. Both are on the embedding's grid.
"""

from typing import Any

from segment_anything.modeling import ImageEncoderViT
from torch import Tensor, nn

from vplab.errors import InvalidInput
from vplab.vision.sam.tiny_vit import TinyViTEncoder


class EarlyViT(nn.Module):
    """segment-anything's ViT: (B, 3, S, S) float32 to its embedding (B, C, h, w) and early feature (B, E, h, w)."""

    def __init__(self, encoder: ImageEncoderViT) -> None:
        """Raises InvalidInput (field ``early_features``) if no block attends to the whole grid."""
        super().__init__()
        self.encoder = encoder
        blocks: list[Any] = list(encoder.blocks)
        self.tapped = next((index for index, block in enumerate(blocks) if block.window_size == 0), None)
        if self.tapped is None:
            raise InvalidInput("no block of this encoder attends to the whole grid", field="early_features")
        self.early_channels: int = encoder.patch_embed.proj.out_channels

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Encode as ImageEncoderViT.forward does."""
        x = self.encoder.patch_embed(image)
        if self.encoder.pos_embed is not None:
            x = x + self.encoder.pos_embed
        early = x
        for index, block in enumerate(self.encoder.blocks):
            x = block(x)
            early = x if index == self.tapped else early
        embedding: Tensor = self.encoder.neck(x.permute(0, 3, 1, 2))
        return embedding, early.permute(0, 3, 1, 2)


class EarlyTinyViT(nn.Module):
    """MobileSAM's encoder, with an early feature of 160 channels where it is the published one."""

    def __init__(self, encoder: TinyViTEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        # In timm's layout a stage begins with the step onto its grid, so the third one's is where the second ends.
        third: Any = encoder.stages[2]
        self.early_channels: int = third.out_dim

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Encode as TinyViTEncoder.forward does."""
        stages: list[Any] = list(self.encoder.stages)
        first, second, third, *rest = stages
        early: Tensor = third.downsample(second(first(self.encoder.patch_embed(image))))
        x = third.blocks(early.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        for stage in rest:
            x = stage(x)
        embedding: Tensor = self.encoder.neck(x)
        return embedding, early


def with_early_features(encoder: nn.Module) -> EarlyViT | EarlyTinyViT:
    """Wrap an image encoder of ``build.SamModel``; it stays as it is and its weights are shared.

    Raises as EarlyViT.
    """
    if isinstance(encoder, TinyViTEncoder):
        return EarlyTinyViT(encoder)
    assert isinstance(encoder, ImageEncoderViT)
    return EarlyViT(encoder)
