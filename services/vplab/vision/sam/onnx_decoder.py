"""SAM's prompt encoder and mask decoder as one graph with true batch axes over images, prompts and points.

The exporter published with segment-anything (``scripts/export_onnx_model.py``) fixes the batch at one image; here a
prompt names its image by index, so one call decodes many prompts of many images. Nothing is resized in the graph, and
all mask planes come out; which plane answers a call is decided outside.
"""

from collections.abc import Mapping
from typing import cast

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder
from torch import Tensor, nn

from vplab.vision.sam.onnx_graph import batch_axis, to_onnx
from vplab.vision.sam.upscaling import as_planes, fine_cells

INPUT_NAMES = ("image_embedding", "image_index", "point_coords", "point_labels", "mask_input", "has_mask_input")
OUTPUT_NAMES = ("low_res_logits", "iou_predictions")


class PromptDecoder(nn.Module):
    """Prompts to mask logits, given image embeddings.

    It equals SamPredictor when given SamPredictor's tokens: the points, then two box corners labelled 2 and 3, or
    without a box one point (0, 0) labelled -1. A prompt that is a mask alone has no tokens (P = 0). Padding tokens take
    part in SAM's attention, so prompts with different P belong in different calls.
    """

    def __init__(self, prompt_encoder: PromptEncoder, mask_decoder: MaskDecoder) -> None:
        super().__init__()
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder
        self.register_buffer("dense_pe", prompt_encoder.get_dense_pe().detach().clone(), persistent=False)
        self.register_buffer("label_values", torch.arange(-1.0, 4.0), persistent=False)

    def forward(
        self,
        image_embedding: Tensor,
        image_index: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Decode N prompts over B images.

        image_embedding: (B, C, h, w) float32. image_index: (N,) int64 in 0..B-1, the image of each prompt.
        point_coords: (N, P, 2) float32, (x, y) in pixels of the encoder's input. point_labels: (N, P) float32,
        -1 padding, 0 background, 1 foreground, 2 and 3 the box corners. mask_input: (N, 1, 4h, 4w) float32 logits, used
        where has_mask_input (N,) float32 is 1 and ignored where it is 0.
        Returns low-resolution logits (N, M, 4h, 4w) and predicted IoU (N, M), M = 4 planes, plane 0 the single mask.
        """
        sparse = self.embed_points(point_coords, point_labels)
        dense = self.embed_masks(mask_input, has_mask_input)
        image = torch.index_select(image_embedding, 0, image_index)
        return decode_masks(self.mask_decoder, image + dense, cast(Tensor, self.dense_pe), sparse)

    def embed_points(self, coords: Tensor, labels: Tensor) -> Tensor:
        """Return the prompt tokens (N, P, C) of points and box corners."""
        encoder = self.prompt_encoder
        height, width = encoder.input_image_size
        size_xy = coords.new_tensor([width, height])
        # Half a pixel puts a coordinate at its pixel's centre, as PromptEncoder does.
        position = encoder.pe_layer._pe_encoding((coords + 0.5) / size_xy)
        weights = [encoder.not_a_point_embed.weight, *(e.weight for e in encoder.point_embeddings)]
        is_label = (labels.unsqueeze(-1) == cast(Tensor, self.label_values)).to(position.dtype)
        is_padding = labels.unsqueeze(-1) == -1.0
        return torch.where(is_padding, torch.zeros_like(position), position) + is_label @ torch.cat(weights)

    def embed_masks(self, masks: Tensor, has_mask: Tensor) -> Tensor:
        """Return the dense prompt (N, C, h, w) of mask inputs, or where there is none SAM's stand-in."""
        no_mask = self.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
        is_given = has_mask.reshape(-1, 1, 1, 1) > 0.5
        return torch.where(is_given, self.prompt_encoder.mask_downscaling(masks), no_mask)


def decode_masks(decoder: MaskDecoder, image: Tensor, image_pe: Tensor, sparse: Tensor) -> tuple[Tensor, Tensor]:
    """Run SAM's mask decoder with one image embedding per prompt.

    As MaskDecoder.predict_masks, which repeats one image for all prompts and so cannot take several images.
    image: (N, C, h, w) float32, dense prompt already added. image_pe: (1, C, h, w). sparse: (N, P, C) prompt tokens.
    Returns logits (N, M, 4h, 4w) and IoU predictions (N, M) for all M mask tokens.
    """
    num_prompts = sparse.shape[0]
    output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([output_tokens.unsqueeze(0).expand(num_prompts, -1, -1), sparse], dim=1)
    queries, keys = decoder.transformer(image, image_pe, tokens)

    fine = fine_cells(decoder.output_upscaling, keys)  # (N, h*w*16, C/8)
    hyper = torch.stack(
        [mlp(queries[:, 1 + i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)], dim=1
    )  # (N, M, C/8)
    logits = as_planes(hyper @ fine.transpose(1, 2), (image.shape[-2], image.shape[-1]))
    return logits, decoder.iou_prediction_head(queries[:, 0])


def decoder_to_onnx(prompt_encoder: PromptEncoder, mask_decoder: MaskDecoder) -> torch.onnx.ONNXProgram:
    """Export a PromptDecoder; inputs and outputs are named INPUT_NAMES and OUTPUT_NAMES, float32 but for the index.

    Free are the numbers of images B and prompts N, both at least one, and of points P, which may be zero. The embedding
    has the size the prompt encoder was made for. Write the graph to a file with ``program.save(path)``.
    """
    return module_to_onnx(PromptDecoder(prompt_encoder, mask_decoder).eval(), prompt_encoder)


def module_to_onnx(
    module: nn.Module,
    prompt_encoder: PromptEncoder,
    image_features: Mapping[str, tuple[int, int, int]] | None = None,
    *,
    folds_constants: bool = True,
) -> torch.onnx.ONNXProgram:
    """Export a module with the inputs and outputs of PromptDecoder, of the size ``prompt_encoder`` was made for.

    image_features: further inputs behind PromptDecoder's, by name, each (B, ...) float32 with the shape given.
    folds_constants: as of ``to_onnx``.
    """
    examples, axes = example_inputs(prompt_encoder)
    further = dict(image_features or {})
    images = axes[0][0]
    examples += tuple(torch.zeros(2, *shape) for shape in further.values())
    axes += [{0: images} for _ in further]
    names = (*INPUT_NAMES, *further)
    return to_onnx(module, examples, axes, names, OUTPUT_NAMES, folds_constants=folds_constants)


def example_inputs(prompt_encoder: PromptEncoder) -> tuple[tuple[Tensor, ...], list[dict[int, torch.export.Dim]]]:
    """Return inputs of a PromptDecoder to trace it with, and which of their axes are free."""
    height, width = prompt_encoder.image_embedding_size
    images, prompts, points = batch_axis("num_images"), batch_axis("num_prompts"), batch_axis("num_points")
    examples: tuple[Tensor, ...] = (
        torch.zeros(2, prompt_encoder.embed_dim, height, width),
        torch.tensor([0, 1, 1]),
        torch.zeros(3, 5, 2),
        torch.ones(3, 5),
        torch.zeros(3, 1, 4 * height, 4 * width),
        torch.zeros(3),
    )
    axes = [{0: images}, {0: prompts}, {0: prompts, 1: points}, {0: prompts, 1: points}, {0: prompts}, {0: prompts}]
    return examples, axes
