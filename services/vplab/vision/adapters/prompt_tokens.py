"""Deep prompt tokens: learned memory before the prompt's and the image's sequence, new in each layer.

Source: Jia et al., "Visual Prompt Tuning" (arXiv 2203.12119), the deep variant; VP Lab prepends them "to both of the
decoder's input sequences". The gate is that of Zhang et al., "LLaMA-Adapter" (arXiv 2303.16199).
"""

import torch
from segment_anything.modeling import MaskDecoder
from segment_anything.modeling.transformer import Attention
from torch import Tensor

from vplab.errors import InvalidInput
from vplab.vision.adapters.part import Part
from vplab.vision.adapters.spec import PromptTokensSpec
from vplab.vision.adapters.tensors import Tensors


class PromptTokens(Part):
    """Tensors ``prompt_tokens.<stage>.<sequence>`` (K, C) and, gated, ``prompt_tokens.<attention>.gate`` (heads,)."""

    def __init__(self, spec: PromptTokensSpec, decoder: MaskDecoder) -> None:
        layers = decoder.transformer.layers
        for field, numbers, expected in (
            ("query_tokens", spec.query_tokens, len(layers)),
            ("image_tokens", spec.image_tokens, len(layers) + 1),
        ):
            if len(numbers) != expected:
                raise InvalidInput(f"{field} has {len(numbers)} numbers, this decoder needs {expected}", field=field)
        stages = [f"layers.{i}" for i in range(len(layers))]
        lengths = {f"{stage}.queries": n for stage, n in zip(stages, spec.query_tokens, strict=True)}
        lengths |= {f"{stage}.image": n for stage, n in zip((*stages, "final"), spec.image_tokens, strict=True)}
        self.lengths = {f"prompt_tokens.{place}": n for place, n in lengths.items() if n}
        self.width, self.std = decoder.transformer_dim, spec.initial_std
        self.gates = _gates(decoder, self.lengths) if spec.gate == "zero" else {}

    def initial(self) -> dict[str, Tensor]:
        tokens = {name: torch.randn(n, self.width) * self.std for name, n in self.lengths.items()}
        return tokens | {name: torch.zeros(heads) for name, heads in self.gates.items()}

    def memory(self, tensors: Tensors, stage: str, sequence: str) -> Tensor | None:
        name = f"prompt_tokens.{stage}.{sequence}"
        return tensors[name] if name in self.lengths else None

    def memory_gate(self, tensors: Tensors, attention: str) -> Tensor | None:
        name = f"prompt_tokens.{attention}.gate"
        return tensors[name] if name in self.gates else None


def _gates(decoder: MaskDecoder, lengths: dict[str, int]) -> dict[str, int]:
    """Return the heads of each attention whose keys include memory."""
    attentions: dict[str, tuple[str, Attention]] = {}
    for index, layer in enumerate(decoder.transformer.layers):
        stage = f"layers.{index}"
        for block, sequence in (
            ("self_attn", "queries"),
            ("cross_attn_token_to_image", "image"),
            ("cross_attn_image_to_token", "queries"),
        ):
            attentions[f"{stage}.{block}"] = (f"{stage}.{sequence}", getattr(layer, block))
    final = decoder.transformer.final_attn_token_to_image
    attentions["final_attn_token_to_image"] = ("final.image", final)
    return {
        f"prompt_tokens.{name}.gate": block.num_heads
        for name, (place, block) in attentions.items()
        if f"prompt_tokens.{place}" in lengths
    }
