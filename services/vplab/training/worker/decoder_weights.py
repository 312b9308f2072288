"""A published decoder graph back as the torch modules it was exported from.

A segmenter version holds its graph and no checkpoint, so that what is tuned is exactly what is served. The exporter
keeps most parameters under their names; those it reshaped or transposed are recognised by what they are used for. What
comes out is run beside the graph before anybody trusts it.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import NodeProto
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer

from vplab.errors import FailedPrecondition, VPLabError
from vplab.training.models.compare import open_graph
from vplab.training.models.graph_constants import Arrays, GraphConstants
from vplab.vision.sam.build import DECODER_NUM_HEADS
from vplab.vision.sam.onnx_decoder import INPUT_NAMES, OUTPUT_NAMES, PromptDecoder
from vplab.vision.sam.state_dict import load_strict, num_children, prefixed, shape_of
from vplab.vision.sam.upscaling import STEP, convolution_weight
from vplab.vision.specs import SegmenterSpec

_PROMPT, _MASK = "prompt_encoder.", "mask_decoder."
_POINT_ROWS: Final = (
    f"{_PROMPT}not_a_point_embed.weight",
    *(f"{_PROMPT}point_embeddings.{i}.weight" for i in range(4)),
)
_NORMS: Final = (f"{_PROMPT}mask_downscaling.1", f"{_PROMPT}mask_downscaling.4", f"{_MASK}output_upscaling.1")
"""The normalisations over channels, in the order of the graph."""
_UPSCALING_NORM: Final = f"{_NORMS[-1]}.weight"
_TOLERANCE: Final = 1e-3


def load_decoder(folder: Path, spec: SegmenterSpec) -> PromptDecoder:
    """Return the decoder of a segmenter version's files, float32 on the CPU, in evaluation mode.

    Raises FailedPrecondition (MODEL_UNSUPPORTED) for a graph that is not SAM's decoder as exported here.
    """
    path = folder / spec.graph
    try:
        state = {name: torch.from_numpy(value) for name, value in _Graph(path).state().items()}
        decoder = _build(state, spec)
        difference = _largest_difference(decoder, path, spec)
    except (OSError, ValueError, KeyError, IndexError, RuntimeError, VPLabError) as error:
        raise _unsupported(path, f"its weights cannot be read: {error}") from error
    if not difference <= _TOLERANCE:
        raise _unsupported(path, f"the weights read from it give other masks than it does (by {difference:.3g})")
    return decoder


class _Graph(GraphConstants):
    """A decoder's graph, read as segment-anything's parameters."""

    def state(self) -> Arrays:
        """Return the parameters of prompt encoder and mask decoder by their names in segment-anything."""
        named = {n: v for n, v in self.constants.items() if n.startswith((_PROMPT, _MASK))}
        return {
            **named,
            **dict(self._linear_weights()),
            **dict(self._norms()),
            **self._upscaling(),
            **self._point_embeddings(),
            **self._output_tokens(),
            f"{_PROMPT}no_mask_embed.weight": self._used_by("Where", 4).reshape(1, -1),
        }

    def _linear_weights(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Yield the weights of linear layers that became a product with the transposed weight and a sum."""
        for node in self.nodes:
            bias = next((i for i in node.input if i.startswith(_MASK) and i.endswith(".bias")), None)
            if node.op_type != "Add" or bias is None:
                continue
            product = next((self.maker[i] for i in node.input if i in self.maker and i != bias), None)
            if product is not None and product.op_type == "MatMul" and product.input[1] in self.constants:
                weight = self.constants[product.input[1]].T
                yield bias.removesuffix("bias") + "weight", np.ascontiguousarray(weight)

    def _norms(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        names = _NORMS if self._convolves() else _NORMS[:-1]
        for name, (scale, offset) in zip(names, self.channel_norms(), strict=True):
            yield f"{name}.weight", scale
            yield f"{name}.bias", offset

    def _convolves(self) -> bool:
        """Say whether the upscaling is two transposed convolutions, as in graphs of before ``vision.sam.upscaling``."""
        return any(node.op_type == "ConvTranspose" for node in self.nodes)

    def _upscaling(self) -> Arrays:
        """Return the transposed convolutions that two products stand for: one before the norm, one behind it."""
        if self._convolves():
            return {}
        position, norm = next(
            (i, n) for i, n in enumerate(self.nodes) if n.op_type == "LayerNormalization" and _UPSCALING_NORM in n.input
        )
        before = self.maker[self.maker[norm.input[0]].input[0]]  # behind a reshape
        width = len(self.constants[_UPSCALING_NORM])
        behind = next(
            node
            for node in self.nodes[position:]
            if node.op_type == "Add" and (p := self._product(node)) is not None and len(p[0]) == width
        )
        found: Arrays = {}
        for place, node in ((0, before), (3, behind)):
            product = self._product(node)
            if product is None:
                raise ValueError("the upscaling is no product")
            weight, bias = product
            name = f"{_MASK}output_upscaling.{place}"
            found[f"{name}.weight"] = convolution_weight(torch.from_numpy(weight)).contiguous().numpy()
            found[f"{name}.bias"] = bias[: len(bias) // STEP**2].copy()
        return found

    def _product(self, total: NodeProto) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Return weight (C, D) and bias (D,) of a product with a constant and the sum behind it, if it is that."""
        bias = next((self.constants[i] for i in total.input if i in self.constants), None)
        product = next((self.maker[i] for i in total.input if i in self.maker), None)
        if bias is None or bias.ndim != 1 or product is None or product.op_type != "MatMul":
            return None
        name = product.input[1]
        reshape = self.maker.get(name)
        if reshape is not None and reshape.op_type == "Reshape":
            name = reshape.input[0]
        weight = self.constants.get(name)
        return None if weight is None else (weight.reshape(len(weight), -1), bias)

    def _point_embeddings(self) -> Arrays:
        rows = next(
            self.constants[name]
            for node in self.nodes
            if node.op_type == "MatMul"
            for name in node.input[1:]
            if name in self.constants and len(self.constants[name]) == len(_POINT_ROWS)
        )
        return {name: rows[i : i + 1].copy() for i, name in enumerate(_POINT_ROWS)}

    def _output_tokens(self) -> Arrays:
        tokens = self._used_by("Expand", 3)[0]
        return {f"{_MASK}iou_token.weight": tokens[:1].copy(), f"{_MASK}mask_tokens.weight": tokens[1:].copy()}

    def _used_by(self, op_type: str, num_axes: int) -> NDArray[np.float32]:
        """Return the one constant of so many axes that operators of a type take."""
        found = {
            name: self.constants[name]
            for node in self.nodes
            if node.op_type == op_type
            for name in node.input
            if name in self.constants and self.constants[name].ndim == num_axes and self.constants[name].size > 1
        }
        if len(found) != 1:
            raise ValueError(f"{len(found)} constants of {num_axes} axes are used by {op_type}; expected one")
        return next(iter(found.values()))


def _build(state: Mapping[str, torch.Tensor], spec: SegmenterSpec) -> PromptDecoder:
    prompt, mask = prefixed(dict(state), _PROMPT), prefixed(dict(state), _MASK)
    num_masks, width = shape_of(mask, "mask_tokens.weight")
    with torch.device("meta"):
        prompt_encoder = PromptEncoder(
            embed_dim=width,
            image_embedding_size=spec.embedding_shape[1:],
            input_image_size=(spec.input_size, spec.input_size),
            mask_in_chans=shape_of(prompt, "mask_downscaling.3.weight")[0],
        )
        inner = shape_of(mask, "transformer.final_attn_token_to_image.q_proj.weight")[0]
        mask_decoder = MaskDecoder(
            transformer_dim=width,
            transformer=TwoWayTransformer(
                depth=num_children(mask, "transformer.layers."),
                embedding_dim=width,
                num_heads=DECODER_NUM_HEADS,
                mlp_dim=shape_of(mask, "transformer.layers.0.mlp.lin1.weight")[0],
                attention_downsample_rate=width // inner,
            ),
            num_multimask_outputs=num_masks - 1,
            iou_head_depth=num_children(mask, "iou_prediction_head.layers."),
            iou_head_hidden_dim=shape_of(mask, "iou_prediction_head.layers.0.weight")[0],
        )
    load_strict(prompt_encoder, prompt, what="SAM's prompt encoder")
    load_strict(mask_decoder, mask, what="SAM's mask decoder")
    return PromptDecoder(prompt_encoder.eval(), mask_decoder.eval()).eval()


def _largest_difference(decoder: PromptDecoder, path: Path, spec: SegmenterSpec) -> float:
    """Return how far graph and modules are apart on random prompts: points, a box and a mask input."""
    random = np.random.default_rng(0)
    embedding = random.normal(0, 0.5, (2, *spec.embedding_shape)).astype(np.float32)
    feed: dict[str, NDArray[np.generic]] = {
        "image_embedding": embedding,
        "image_index": np.array([0, 1, 1]),
        "point_coords": random.uniform(0, spec.input_size, (3, 5, 2)).astype(np.float32),
        "point_labels": np.array([[1, 0, -1, -1, 2], [2, 3, 1, 0, -1], [0, 1, 2, 3, 1]], np.float32),
        "mask_input": random.normal(0, 4, (3, 1, *spec.low_res_hw)).astype(np.float32),
        "has_mask_input": np.array([0, 1, 1], np.float32),
    }
    actual = open_graph(path).run(list(OUTPUT_NAMES), feed)
    with torch.inference_mode():
        expected = decoder(*(torch.from_numpy(feed[name]) for name in INPUT_NAMES))
    return max(float(np.abs(a - e.numpy()).max()) for a, e in zip(actual, expected, strict=True))


def _unsupported(path: Path, why: str) -> FailedPrecondition:
    return FailedPrecondition(f"{path.name} cannot be tuned: {why}", reason="MODEL_UNSUPPORTED")
