"""SAM's mask decoder, step by step, with the places at which an adapter's parts act.

The arithmetic is that of segment-anything's ``TwoWayTransformer`` and ``MaskDecoder.predict_masks``; without parts the
result is the same. Memory tokens lie before a sequence and are taken off again after each layer, because SAM reads its
output tokens by position and reshapes the image's sequence to its grid.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import cast

import torch
from segment_anything.modeling import MaskDecoder
from segment_anything.modeling.common import MLPBlock
from segment_anything.modeling.transformer import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from vplab.vision.adapters.part import Linear, Part, PlaneInputs, Site
from vplab.vision.adapters.tensors import Tensors, affine
from vplab.vision.sam.onnx_decoder import PromptDecoder
from vplab.vision.sam.upscaling import as_planes, fine_cells

_LINEARS = ("q_proj", "k_proj", "v_proj", "out_proj", "lin1", "lin2")
MASK_HEAD = "output_hypernetworks_mlps"
Grid = tuple[int, int] | None


def linear_sites(decoder: MaskDecoder) -> dict[str, nn.Linear]:
    """Return by path the linear layers of the two-way transformer, then those that make the planes' mask vectors.

    A path begins at the transformer, or with ``output_hypernetworks_mlps`` at the decoder.
    """
    modules = decoder.transformer.named_modules()
    sites = {name: cast(nn.Linear, module) for name, module in modules if name.rpartition(".")[2] in _LINEARS}
    for plane, mlp in enumerate(decoder.output_hypernetworks_mlps):
        sites |= {f"{MASK_HEAD}.{plane}.layers.{place}": layer for place, layer in enumerate(mlp.layers)}
    return sites


def put_linear(decoder: MaskDecoder, site: str, layer: nn.Linear) -> None:
    """Put another layer at one of ``linear_sites``."""
    owner = decoder if site.startswith(MASK_HEAD) else decoder.transformer
    owner.set_submodule(site, layer)


def decode_adapted(
    base: PromptDecoder,
    parts: Sequence[Part],
    tensors: Tensors,
    inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor],
    early_features: Tensor | None = None,
    is_training: bool = False,
    *,
    folds_image_side: bool = False,
) -> tuple[Tensor, Tensor]:
    """Answer prompts as ``PromptDecoder.forward`` does, with an adapter at work.

    inputs: those of PromptDecoder. tensors: what the parts need, by flat name; each as trained, or each with an axis N
    in front and so with an adapter of its own for every prompt. early_features: (B, E, h, w) float32, for parts that
    ask for them. folds_image_side: make the weights of linears whose rows are image cells in place of computing beside
    them; the result is the same.
    """
    image_embedding, image_index, coords, labels, mask_input, has_mask_input = inputs
    image_mean = image_embedding.mean((2, 3)).index_select(0, image_index)
    sparse = base.embed_points(coords, labels)
    for part in parts:
        sparse = part.sparse_prompts(tensors, sparse, image_mean)
    image = image_embedding.index_select(0, image_index) + base.embed_masks(mask_input, has_mask_input)

    decoder = base.mask_decoder
    walk = _Walk(decoder, parts, tensors, folds_image_side)
    output_tokens, num_extra = walk.output_tokens(sparse.shape[0])
    queries, keys = walk.transformer(image, cast(Tensor, base.dense_pe), torch.cat([output_tokens, sparse], dim=1))

    # Behind memory tokens that were taken off it is a slice, which torch would multiply prompt by prompt.
    fine = fine_cells(decoder.output_upscaling, keys.contiguous())  # (N, h*w*16, C/8)
    hyper = walk.mask_vectors(queries[:, 1 : 1 + decoder.num_mask_tokens])
    grid_hw = (image.shape[-2], image.shape[-1])
    logits = as_planes(hyper @ fine.transpose(1, 2), grid_hw)
    first_extra = 1 + decoder.num_mask_tokens
    extra_queries = queries[:, first_extra : first_extra + num_extra]
    for part in parts:
        planes = PlaneInputs(fine, grid_hw, extra_queries, image_embedding, early_features, image_index, is_training)
        logits = part.planes(tensors, logits, planes)
    return logits, decoder.iou_prediction_head(queries[:, 0])


class _Walk:
    def __init__(self, decoder: MaskDecoder, parts: Sequence[Part], tensors: Tensors, folds_image_side: bool) -> None:
        self.decoder = decoder
        self.parts = parts
        self.tensors = tensors
        self.folds_image_side = folds_image_side

    def output_tokens(self, num_prompts: int) -> tuple[Tensor, int]:
        """Return SAM's output tokens and the parts' behind them, (N, 5 + E, C), and E."""
        own = torch.cat([self.decoder.iou_token.weight, self.decoder.mask_tokens.weight])
        extra = [tokens for part in self.parts if (tokens := part.output_tokens(self.tensors)) is not None]
        rows = [_per_prompt(tokens, num_prompts) for tokens in (own, *extra)]
        return torch.cat(rows, dim=1), sum(tokens.shape[-2] for tokens in extra)

    def transformer(self, image: Tensor, image_pe: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens (N, T, C) and the image's cells (N, h*w, C) after the two-way transformer."""
        transformer = self.decoder.transformer
        grid = (int(image_pe.shape[-2]), int(image_pe.shape[-1]))
        keys, key_pe = image.flatten(2).transpose(1, 2), image_pe.flatten(2).transpose(1, 2)
        queries = tokens
        for index in range(len(transformer.layers)):
            queries, keys = self._layer(index, queries, keys, tokens, key_pe, grid)

        memory = self._memory("final", "image", tokens.shape[0])
        cells, cells_pe = _prepend(memory, keys), _prepend_zeros(memory, key_pe)
        attended = self._attention(
            "final_attn_token_to_image",
            transformer.final_attn_token_to_image,
            (queries + tokens, cells + cells_pe, cells),
            _length(memory),
            key_grid=grid,
        )
        return transformer.norm_final_attn(queries + attended), keys

    def mask_vectors(self, mask_tokens: Tensor) -> Tensor:
        """Return what each plane's mask is read from the image feature with, (N, M, C/8); mask_tokens: (N, M, C)."""
        vectors = []
        for plane, mlp in enumerate(self.decoder.output_hypernetworks_mlps):
            x = mask_tokens[:, plane : plane + 1]
            for place, layer in enumerate(mlp.layers):
                x = self._linear(f"{MASK_HEAD}.{plane}.layers.{place}", layer, x)
                x = F.relu(x) if place < mlp.num_layers - 1 else x
            vectors.append(x)
        return torch.cat(vectors, dim=1)

    def _layer(
        self, index: int, queries: Tensor, keys: Tensor, query_pe: Tensor, key_pe: Tensor, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        layer, name = self.decoder.transformer.layers[index], f"layers.{index}"
        before_queries = self._memory(name, "queries", queries.shape[0])
        before_image = self._memory(name, "image", queries.shape[0])
        num_queries, num_image = _length(before_queries), _length(before_image)
        # SAM adds a token itself as its position at every attention; a memory token on that side is treated alike.
        queries, query_pe = _prepend(before_queries, queries), _prepend(before_queries, query_pe)
        keys, key_pe = _prepend(before_image, keys), _prepend_zeros(before_image, key_pe)

        own, block = f"{name}.self_attn", layer.self_attn
        if layer.skip_first_layer_pe:
            queries = self._attention(own, block, (queries, queries, queries), num_queries)
        else:
            q = queries + query_pe
            queries = queries + self._attention(own, block, (q, q, queries), num_queries)
        queries = layer.norm1(queries)

        q, k = queries + query_pe, keys + key_pe
        name_to_image = f"{name}.cross_attn_token_to_image"
        attended = self._attention(
            name_to_image, layer.cross_attn_token_to_image, (q, k, keys), num_image, key_grid=grid
        )
        queries = layer.norm2(queries + attended)
        queries = layer.norm3(queries + self._mlp(f"{name}.mlp", layer.mlp, queries))

        q = queries + query_pe
        name_to_token = f"{name}.cross_attn_image_to_token"
        attended = self._attention(
            name_to_token, layer.cross_attn_image_to_token, (k, q, queries), num_queries, query_grid=grid
        )
        keys = layer.norm4(keys + attended)
        return queries[:, num_queries:], keys[:, num_image:]

    def _attention(
        self,
        name: str,
        block: Attention,
        qkv: tuple[Tensor, Tensor, Tensor],
        num_memory: int,
        query_grid: Grid = None,
        key_grid: Grid = None,
    ) -> Tensor:
        """Attend to keys of which the first num_memory are memory; a grid says that those rows are image cells."""
        grids = {"q_proj": query_grid, "k_proj": key_grid, "v_proj": key_grid}
        q, k, v = (
            block._separate_heads(self._linear(f"{name}.{key}", getattr(block, key), x, grids[key]), block.num_heads)
            for key, x in zip(grids, qkv, strict=True)
        )
        # An exported graph has the usual order only: comparing sizes would bind its free axes.
        if not torch.compiler.is_exporting() and q.shape[2] > k.shape[2]:
            # torch's softmax over the last axis goes row by row: a thousand cells of ten tokens each take three times
            # as long as ten rows of a thousand.
            scores = k @ q.transpose(-1, -2) / math.sqrt(q.shape[-1])
            weights = self._weights(name, scores, num_memory, dim=-2).transpose(-1, -2)
        else:
            scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
            weights = self._weights(name, scores, num_memory, dim=-1)
        out = block._recombine_heads(weights @ v)
        return self._after_block(name, self._linear(f"{name}.out_proj", block.out_proj, out, query_grid))

    def _weights(self, name: str, scores: Tensor, num_memory: int, dim: int) -> Tensor:
        gates = [gate for part in self.parts if (gate := part.memory_gate(self.tensors, name)) is not None]
        if not num_memory or not gates:
            return torch.softmax(scores, dim)
        (gate,) = gates
        num_others = scores.shape[dim] - num_memory
        to_memory = torch.softmax(scores.narrow(dim, 0, num_memory), dim) * gate[..., None, None].tanh()
        return torch.cat([to_memory, torch.softmax(scores.narrow(dim, num_memory, num_others), dim)], dim)

    def _mlp(self, name: str, block: MLPBlock, x: Tensor) -> Tensor:
        hidden = block.act(self._linear(f"{name}.lin1", block.lin1, x))
        return self._after_block(name, self._linear(f"{name}.lin2", block.lin2, hidden))

    def _linear(self, name: str, layer: nn.Linear, x: Tensor, grid: Grid = None) -> Tensor:
        site, run, parts = Site(name, layer, grid), cast(Linear, layer), self.parts
        if grid is not None and self.folds_image_side:
            # A rank of 8 beside 256 x 128 costs 4 % of a row's product, and making the weight that of 85 rows; an image
            # has a thousand rows and more.
            run, parts = self._folded(site), [rest for part in parts if (rest := part.after_folding()) is not None]
        for part in parts:
            run = partial(part.linear, self.tensors, site, inner=run)
        return run(x)

    def _folded(self, site: Site) -> Linear:
        weight: Tensor = site.layer.weight
        bias: Tensor = site.layer.bias
        for part in self.parts:
            weight, bias = part.fold(self.tensors, site, weight, bias)
        is_own = weight is site.layer.weight and bias is site.layer.bias
        return cast(Linear, site.layer) if is_own else partial(affine, weight=weight, bias=bias)

    def _after_block(self, name: str, y: Tensor) -> Tensor:
        for part in self.parts:
            y = part.after_block(self.tensors, name, y)
        return y

    def _memory(self, stage: str, sequence: str, num_prompts: int) -> Tensor | None:
        found = [m for part in self.parts if (m := part.memory(self.tensors, stage, sequence)) is not None]
        return _per_prompt(found[0], num_prompts) if found else None


def _per_prompt(tokens: Tensor, num_prompts: int) -> Tensor:
    return tokens.expand(num_prompts, -1, -1)


def _length(memory: Tensor | None) -> int:
    return 0 if memory is None else memory.shape[1]


def _prepend(memory: Tensor | None, sequence: Tensor) -> Tensor:
    return sequence if memory is None else torch.cat([memory, sequence], dim=1)


def _prepend_zeros(memory: Tensor | None, position: Tensor) -> Tensor:
    return position if memory is None else F.pad(position, (0, 0, memory.shape[1], 0))
