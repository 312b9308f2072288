"""Image encoders as graphs with a true batch axis: ``image`` (B, 3, S, S) in, SAM's embedding or patch features out."""

import torch
from torch import Tensor, nn

from vplab.vision.sam.onnx_graph import batch_axis, to_onnx

INPUT_NAME = "image"
IMAGE_EMBEDDING = "image_embedding"
PATCH_FEATURES = "patch_features"
EARLY_FEATURES = "early_features"


def encoder_to_onnx(encoder: nn.Module, input_size: int, *output_names: str) -> torch.onnx.ONNXProgram:
    """Export an encoder of square images with as many outputs as there are names.

    encoder: (B, 3, S, S) float32, already normalised and padded, to a tensor whose first axis is B, or to a tuple of
    such tensors in the order of the names. Any B from one up.
    """
    examples = (torch.zeros(2, 3, input_size, input_size),)
    return to_onnx(encoder, examples, ({0: batch_axis("num_images")},), (INPUT_NAME,), output_names)


class PatchFeatures(nn.Module):
    """A timm vision transformer's patch tokens on their grid, after its final norm, L2-normalised.

    (B, 3, S, S) float32 to (B, S/p, S/p, D) float32; the class and register tokens are left out.
    """

    def __init__(self, backbone: nn.Module, num_prefix_tokens: int, grid_hw: tuple[int, int]) -> None:
        super().__init__()
        self.backbone = backbone
        self.num_prefix_tokens = num_prefix_tokens
        self.grid_hw = grid_hw

    def forward(self, image: Tensor) -> Tensor:
        """Return one unit vector per patch, row-major from the top left."""
        tokens: Tensor = self.backbone.forward_features(image)  # type: ignore[operator]
        patches = tokens[:, self.num_prefix_tokens :]
        # A backbone in float16 gives features whose length float16 cannot tell from one exactly enough.
        return nn.functional.normalize(patches.float(), dim=-1).unflatten(1, self.grid_hw)  # type: ignore[no-any-return]
