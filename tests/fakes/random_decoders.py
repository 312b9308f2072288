"""Prompt decoders with SAM's published widths, random weights and small embeddings."""

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import Tensor

from fakes.sam_checkpoints import randomize
from vplab.vision.adapters.adapt import AdaptedDecoder
from vplab.vision.sam.onnx_decoder import PromptDecoder

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def build_decoder(grid: int = 8, stride: int = 16, seed: int = 0) -> PromptDecoder:
    size = (grid * stride, grid * stride)
    prompt_encoder = PromptEncoder(256, (grid, grid), size, mask_in_chans=16)
    transformer = TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
    mask_decoder = MaskDecoder(transformer_dim=256, transformer=transformer)
    randomize(prompt_encoder, seed)
    randomize(mask_decoder, seed + 1)
    return PromptDecoder(prompt_encoder, mask_decoder).eval()


def make_inputs(decoder: PromptDecoder, num_images: int = 2, num_prompts: int = 3, num_points: int = 4) -> Inputs:
    """Draw prompts on several images; the last two tokens are a box where there are two, every second has a mask."""
    random = torch.Generator().manual_seed(num_images + 10 * num_prompts + 100 * num_points)
    height, width = decoder.prompt_encoder.image_embedding_size
    labels = torch.randint(0, 2, (num_prompts, num_points), generator=random).float()
    if num_points >= 2:
        labels[:, -2:] = torch.tensor([2.0, 3.0])
    return (
        torch.randn(num_images, 256, height, width, generator=random),
        torch.arange(num_prompts) % num_images,
        torch.rand(num_prompts, num_points, 2, generator=random) * decoder.prompt_encoder.input_image_size[0],
        labels,
        torch.randn(num_prompts, 1, 4 * height, 4 * width, generator=random) * 5,
        (torch.arange(num_prompts) % 2).float(),
    )


def disturb(decoder: AdaptedDecoder, scale: float = 0.1, seed: int = 7) -> AdaptedDecoder:
    """Move every tensor of the adapter off its start, so that each has an effect."""
    random = torch.Generator().manual_seed(seed)
    state = decoder.adapter_state()
    decoder.load_adapter_state({k: v + scale * torch.randn(v.shape, generator=random) for k, v in state.items()})
    return decoder
