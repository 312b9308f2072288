"""Weight files in the publishers' official layouts, random, seeded, made on the spot.

The scales are chosen so that what comes out depends on what goes in: with torch's default initialisation SAM's logits
hardly move with the image or the prompt, and a test on them would pass whatever the code did.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from timm.models.tiny_vit import TinyVit
from torch import Tensor, nn


def write_sam_checkpoint(
    path: Path,
    *,
    width: int = 64,
    depth: int = 2,
    num_heads: int = 2,
    global_blocks: tuple[int, ...] = (1,),
    input_size: int = 1024,
    seed: int = 0,
) -> Sam:
    """Write a ``.pth`` in segment-anything's layout; return segment-anything's model with these weights.

    The defaults are a two-block encoder of width 64 at SAM's own 1024 pixels: window attention, then global.
    """
    sam = build_sam(width, depth, num_heads, global_blocks, input_size)
    randomize(sam, seed)
    torch.save(sam.state_dict(), path)
    return sam


def write_vit_b_checkpoint(path: Path, *, seed: int = 0) -> Sam:
    """Write a file of the size and layout of ``sam_vit_b_01ec64.pth``."""
    return write_sam_checkpoint(path, width=768, depth=12, num_heads=12, global_blocks=(2, 5, 8, 11), seed=seed)


def write_mobile_sam_checkpoint(
    path: Path,
    *,
    widths: tuple[int, ...] = (64, 128, 160, 320),
    depths: tuple[int, ...] = (2, 2, 6, 2),
    num_heads: tuple[int, ...] = (2, 4, 5, 10),
    seed: int = 0,
) -> dict[str, Tensor]:
    """Write a ``.pt`` in MobileSAM's layout, its unused classification head included; return the tensors.

    The defaults are the published sizes.
    """
    sam = build_sam(64, 1, 2, (0,), 1024)
    randomize(sam, seed)
    backbone = TinyVit(
        num_classes=0,
        embed_dims=widths,
        depths=depths,
        num_heads=num_heads,
        window_sizes=(7, 7, 14, 7),
        drop_path_rate=0.0,
    )
    neck = ImageEncoderViT(img_size=16, embed_dim=widths[-1], depth=0, out_chans=256).neck
    randomize(backbone, seed + 1)
    randomize(neck, seed + 2)
    state = {key: value for key, value in sam.state_dict().items() if not key.startswith("image_encoder.")}
    encoder = {mobile_sam_name(k): v for k, v in backbone.state_dict().items() if not k.startswith("head.")}
    encoder |= {f"neck.{key}": value for key, value in neck.state_dict().items()}
    encoder |= {
        "norm_head.weight": torch.ones(widths[-1]),
        "norm_head.bias": torch.zeros(widths[-1]),
        "head.weight": torch.zeros(1000, widths[-1]),
        "head.bias": torch.zeros(1000),
    }
    state |= {f"image_encoder.{key}": value for key, value in encoder.items()}
    torch.save(state, path)
    return state


def write_dino_file(path: Path, architecture: str, *, depth: int | None = None, seed: int = 0) -> nn.Module:
    """Write a ``.safetensors`` in the layout of timm's DINO models; return timm's model with these weights."""
    overrides: dict[str, Any] = {} if depth is None else {"depth": depth}
    model: nn.Module = timm.create_model(architecture, pretrained=False, num_classes=0, **overrides)
    randomize(model, seed)
    save_file(model.state_dict(), path, metadata={"format": "pt"})
    return model


def build_sam(width: int, depth: int, num_heads: int, global_blocks: tuple[int, ...], input_size: int) -> Sam:
    """Return segment-anything's model with an image encoder of these sizes, in evaluation mode."""
    grid = input_size // 16
    return Sam(
        image_encoder=ImageEncoderViT(
            img_size=input_size,
            embed_dim=width,
            depth=depth,
            num_heads=num_heads,
            norm_layer=functools.partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=14,
            global_attn_indexes=global_blocks,
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=256,
            image_embedding_size=(grid, grid),
            input_image_size=(input_size, input_size),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            transformer_dim=256,
            transformer=TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8),
        ),
    ).eval()


@torch.no_grad()
def randomize(module: nn.Module, seed: int) -> None:
    """Give every weight a scale at which signals neither vanish nor explode, and none its neutral value."""
    random = torch.Generator().manual_seed(seed)
    for key, value in module.state_dict().items():
        owner_name, _, name = key.rpartition(".")
        owner = module.get_submodule(owner_name)
        if not value.is_floating_point():
            continue
        if name == "running_var" or "gamma" in name or (name == "weight" and "Norm" in type(owner).__name__):
            value.uniform_(0.7, 1.3, generator=random)
        elif name == "positional_encoding_gaussian_matrix":
            value.normal_(0, 1, generator=random)
        elif isinstance(owner, nn.Linear | nn.Conv2d | nn.ConvTranspose2d) and name == "weight":
            # Somewhat above 1 / sqrt(fan in), so that attention is far from uniform.
            value.normal_(0, 1.3 / _fan_in(owner) ** 0.5, generator=random)
        elif value.ndim >= 2:
            value.normal_(0, 0.5, generator=random)  # embeddings, tokens, absolute and relative positions
        else:
            value.normal_(0, 0.1, generator=random)


def _fan_in(layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d) -> int:
    # SAM's transposed convolutions do not overlap, so a pixel receives from each input channel once.
    return layer.weight.shape[0] if isinstance(layer, nn.ConvTranspose2d) else layer.weight[0].numel()


def mobile_sam_name(timm_key: str) -> str:
    """Translate a tensor's name from timm's TinyVit into MobileSAM's."""
    key = timm_key.replace(".conv.weight", ".c.weight")
    key = key.replace("patch_embed.conv1.", "patch_embed.seq.0.").replace("patch_embed.conv2.", "patch_embed.seq.2.")
    stage, dot, rest = key.removeprefix("stages.").partition(".")
    if not key.startswith("stages."):
        return key
    if rest.startswith("downsample."):
        return f"layers.{int(stage) - 1}.{rest}"
    return f"layers.{stage}{dot}{rest}"


def save_state(state: Mapping[str, Tensor], path: Path) -> Path:
    """Write tensors as a ``.pth`` and return the path."""
    torch.save(dict(state), path)
    return path
