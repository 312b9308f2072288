"""Drawn prompts as the decoder's tensors: grouped by number of tokens, with the embeddings they are of."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vplab.training.tuning.ports import TunableDecoder
from vplab.training.tuning.prompting import DrawnPrompt
from vplab.training.tuning.values import TuningExample
from vplab.vision.colour_evidence import ColourModel
from vplab.vision.prompts import PromptTokens, group_by_token_count
from vplab.vision.specs import SegmenterSpec


@dataclass(frozen=True, eq=False)
class Batch:
    """N prompts of P tokens each, over B embeddings, on the device."""

    embedding: Tensor
    """(B, C, h, w) float32."""
    image_index: Tensor
    """(N,) int64."""
    coords: Tensor
    """(N, P, 2) float32."""
    labels: Tensor
    """(N, P) float32."""
    mask_input: Tensor
    """(N, 1, h, w) float32."""
    has_mask_input: Tensor
    """(N,) float32."""
    targets: Tensor
    """(N, S, S) float32 of 0 and 1."""
    early_features: Tensor | None = None
    """(B, E, h, w) float32 where the examples have them."""
    colours: Sequence[ColourModel | None] = ()
    """Of each prompt's image."""

    def decode(self, decoder: TunableDecoder) -> tuple[Tensor, Tensor]:
        """Return logits (N, M, h, w) and predicted IoU (N, M), in the precision of the decoder."""
        wants_early = getattr(decoder, "needs_early_features", False)
        early = (self.early_features,) if wants_early and self.early_features is not None else ()
        return decoder(
            self.embedding, self.image_index, self.coords, self.labels, self.mask_input, self.has_mask_input, *early
        )

    def sharpened(self, logits: Tensor) -> Tensor:
        """Return logits (N, M, h, w) as serving sharpens them by the image's colours, (N, M, H, W) float32.

        What the colours say is a constant: the gradient flows through the logits that it is added to.
        """
        models = [model for model in self.colours if model is not None]
        if len(models) < len(logits):
            return logits
        planes = logits.detach().float().cpu().numpy()
        rows = [np.stack([m.sharpen(plane) for plane in row]) for m, row in zip(models, planes, strict=True)]
        sharp: Tensor = _Sharpened.apply(logits, torch.from_numpy(np.stack(rows)).to(logits.device))  # type: ignore[no-untyped-call]
        return sharp


class _Sharpened(torch.autograd.Function):
    """Planes as they were sharpened, with the gradient of the bilinear enlargement that they began with.

    As two products, which take less time than torch's own way back on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, sharp: Tensor) -> Tensor:
        ctx.grid_hw = logits.shape[-2:]
        return sharp

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        rows, columns = (
            _enlargement(size, fine, gradient) for size, fine in zip(ctx.grid_hw, gradient.shape[-2:], strict=True)
        )
        return rows.T @ (gradient @ columns), None


def _enlargement(size: int, fine: int, like: Tensor) -> Tensor:
    """Return the matrix (fine, size) that enlarges an axis bilinearly, in a tensor's type and on its device."""
    identity = torch.eye(size, dtype=like.dtype, device=like.device)
    return F.interpolate(identity[None], fine, mode="linear", align_corners=False)[0].T


def batches(
    prompts: Sequence[DrawnPrompt],
    examples: Sequence[TuningExample],
    segmenter: SegmenterSpec,
    device: str,
    at_most: int | None = None,
) -> Iterator[tuple[list[int], Batch]]:
    """Yield the prompts that may share a decoder call, with their positions; at most ``at_most`` in one."""
    for _, members in sorted(group_by_token_count([p.tokens for p in prompts]).items()):
        step = at_most or len(members)
        for start in range(0, len(members), step):
            chunk = members[start : start + step]
            yield chunk, make_batch([prompts[i] for i in chunk], examples, segmenter, device)


def make_batch(
    prompts: Sequence[DrawnPrompt], examples: Sequence[TuningExample], segmenter: SegmenterSpec, device: str
) -> Batch:
    """Stack prompts of equally many tokens."""
    used = sorted({p.example for p in prompts})
    tokens = [p.tokens for p in prompts]
    early = [examples[i].early_features for i in used]
    fuses = all(e is not None for e in early)
    return Batch(
        embedding=_stacked([examples[i].embedding for i in used], device),
        image_index=torch.tensor([used.index(p.example) for p in prompts], device=device),
        coords=_stacked([t.coords for t in tokens], device),
        labels=_stacked([t.labels for t in tokens], device),
        mask_input=_stacked([_mask_input(t, segmenter)[None] for t in tokens], device),
        has_mask_input=torch.tensor([float(t.mask_logits is not None) for t in tokens], device=device),
        targets=_stacked([p.target for p in prompts], device),
        early_features=_stacked([e for e in early if e is not None], device) if fuses else None,
        colours=[examples[p.example].colours for p in prompts],
    )


def _mask_input(tokens: PromptTokens, segmenter: SegmenterSpec) -> np.ndarray:
    return np.zeros(segmenter.low_res_hw, np.float32) if tokens.mask_logits is None else tokens.mask_logits


def _stacked(arrays: Sequence[np.ndarray], device: str) -> Tensor:
    return torch.from_numpy(np.stack(arrays)).to(device).float()
