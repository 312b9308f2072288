"""SAM from a published state dict: every size is read from the tensors' shapes, so no model name is needed.

Layout: segment-anything's ``.pth`` files (``image_encoder.*``, ``prompt_encoder.*``, ``mask_decoder.*``). MobileSAM's
differs in the image encoder, which is in ``tiny_vit``.
"""

from dataclasses import dataclass
from functools import partial

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import nn

from vplab.errors import InvalidInput
from vplab.vision.sam.state_dict import StateDict, load_strict, num_children, prefixed, shape_of
from vplab.vision.sam.tiny_vit import INPUT_SIZE as TINY_VIT_INPUT_SIZE
from vplab.vision.sam.tiny_vit import TinyViTEncoder, is_tiny_vit, tiny_vit_architecture

DECODER_NUM_HEADS = 8
"""Heads of the mask decoder's attentions in every published SAM; no tensor's shape tells it."""
PIXEL_MEAN_RGB = (123.675, 116.28, 103.53)
PIXEL_STD_RGB = (58.395, 57.12, 57.375)

_PUBLISHED_VIT = {(768, 12): "vit_b", (1024, 24): "vit_l", (1280, 32): "vit_h"}


@dataclass(frozen=True)
class SamModel:
    """The three networks of one SAM, in evaluation mode, float32."""

    image_encoder: nn.Module
    """(B, 3, S, S) to (B, C, h, w)."""
    prompt_encoder: PromptEncoder
    mask_decoder: MaskDecoder
    family: str
    """``sam`` or ``mobile_sam``."""
    architecture: str
    """``vit_b``, ``vit_l``, ``vit_h``, ``vit_t``; other sizes as ``vit_<width>x<depth>``."""
    input_size: int
    """Side S of the square input, in pixels."""


def sam_from_state_dict(state: StateDict) -> SamModel:
    """Build the SAM whose weights these are.

    Raises InvalidInput naming missing, unexpected and misshapen tensors; DataLoss for values that are not finite.
    """
    known = ("image_encoder.", "prompt_encoder.", "mask_decoder.")
    foreign = sorted(key for key in state if not key.startswith(known))
    if foreign:
        raise InvalidInput(
            f"not a SAM checkpoint: unexpected tensor {foreign[0]} ({len(foreign)} in all)", field="path"
        )
    encoder_state = prefixed(state, "image_encoder.")
    if is_tiny_vit(encoder_state):
        family, architecture, input_size = "mobile_sam", tiny_vit_architecture(encoder_state), TINY_VIT_INPUT_SIZE
        encoder: nn.Module = TinyViTEncoder.from_state_dict(encoder_state)
        stride = TinyViTEncoder.stride
    else:
        shape = VitShape.of(encoder_state)
        family, architecture, input_size, stride = "sam", shape.architecture, shape.input_size, shape.patch_size
        encoder = shape.build(encoder_state)
    return SamModel(
        image_encoder=encoder,
        prompt_encoder=_prompt_encoder(prefixed(state, "prompt_encoder."), input_size, input_size // stride),
        mask_decoder=_mask_decoder(prefixed(state, "mask_decoder.")),
        family=family,
        architecture=architecture,
        input_size=input_size,
    )


@dataclass(frozen=True)
class VitShape:
    """Sizes of segment-anything's ImageEncoderViT."""

    width: int
    depth: int
    num_heads: int
    mlp_ratio: float
    patch_size: int
    grid: int
    """Side of the patch grid; also of the absolute position embedding."""
    window_size: int
    global_blocks: tuple[int, ...]
    """Blocks that attend to the whole grid; the others attend within windows."""
    num_channels: int
    """Channels of the image embedding."""

    @classmethod
    def of(cls, state: StateDict) -> "VitShape":
        """Read the sizes from the encoder's tensors. A block's relative positions span 2s - 1 offsets, s its window."""
        _, grid, _, width = shape_of(state, "pos_embed")
        depth = num_children(state, "blocks.")
        spans, head_widths = zip(*(shape_of(state, f"blocks.{i}.attn.rel_pos_h") for i in range(depth)), strict=True)
        windows = [(span + 1) // 2 for span in spans]
        local = {w for w in windows if w != grid}
        if len(local) > 1 or width % head_widths[0]:
            raise InvalidInput(
                f"not SAM's image encoder: attention windows {sorted(local)}, width {width}", field="path"
            )
        return cls(
            width=width,
            depth=depth,
            num_heads=width // head_widths[0],
            mlp_ratio=shape_of(state, "blocks.0.mlp.lin1.weight")[0] / width,
            patch_size=shape_of(state, "patch_embed.proj.weight")[-1],
            grid=grid,
            window_size=local.pop() if local else 0,
            global_blocks=tuple(i for i, w in enumerate(windows) if w == grid),
            num_channels=shape_of(state, "neck.0.weight")[0],
        )

    @property
    def input_size(self) -> int:
        """Side of the square input, in pixels."""
        return self.grid * self.patch_size

    @property
    def architecture(self) -> str:
        """The publisher's name, or width x depth of a size that was not published."""
        return _PUBLISHED_VIT.get((self.width, self.depth), f"vit_{self.width}x{self.depth}")

    def build(self, state: StateDict) -> ImageEncoderViT:
        """Return the encoder with these weights."""
        with torch.device("meta"):
            encoder = ImageEncoderViT(
                img_size=self.input_size,
                patch_size=self.patch_size,
                embed_dim=self.width,
                depth=self.depth,
                num_heads=self.num_heads,
                mlp_ratio=self.mlp_ratio,
                out_chans=self.num_channels,
                norm_layer=partial(nn.LayerNorm, eps=1e-6),
                use_rel_pos=True,
                window_size=self.window_size,
                global_attn_indexes=self.global_blocks,
            )
        load_strict(encoder, state, what=f"SAM's image encoder {self.architecture}")
        return encoder


def _prompt_encoder(state: StateDict, input_size: int, grid: int) -> PromptEncoder:
    with torch.device("meta"):
        encoder = PromptEncoder(
            embed_dim=shape_of(state, "no_mask_embed.weight")[1],
            image_embedding_size=(grid, grid),
            input_image_size=(input_size, input_size),
            mask_in_chans=shape_of(state, "mask_downscaling.3.weight")[0],
        )
    load_strict(encoder, state, what="SAM's prompt encoder")
    return encoder


def _mask_decoder(state: StateDict) -> MaskDecoder:
    num_masks, width = shape_of(state, "mask_tokens.weight")
    with torch.device("meta"):
        decoder = MaskDecoder(
            transformer_dim=width,
            transformer=TwoWayTransformer(
                depth=num_children(state, "transformer.layers."),
                embedding_dim=width,
                num_heads=DECODER_NUM_HEADS,
                mlp_dim=shape_of(state, "transformer.layers.0.mlp.lin1.weight")[0],
                attention_downsample_rate=width
                // shape_of(state, "transformer.final_attn_token_to_image.q_proj.weight")[0],
            ),
            num_multimask_outputs=num_masks - 1,
            iou_head_depth=num_children(state, "iou_prediction_head.layers."),
            iou_head_hidden_dim=shape_of(state, "iou_prediction_head.layers.0.weight")[0],
        )
    load_strict(decoder, state, what="SAM's mask decoder")
    return decoder
