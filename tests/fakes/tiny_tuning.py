"""A tiny segment-anything decoder, and images with bright discs whose embedding says where they are."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from vplab.training.tuning.examples import build_examples
from vplab.training.tuning.values import EmbeddedView, TuningExample
from vplab.vision.matching import PatchFeatures
from vplab.vision.preprocessing import FrameTransform
from vplab.vision.sam.onnx_decoder import PromptDecoder
from vplab.vision.specs import PromptRaster, SegmenterSpec

SIDE = 64
WIDTH = 32
STRIDE = 8
SEGMENTER = SegmenterSpec(
    family="tiny",
    architecture="two_way",
    input_size=SIDE,
    embedding_shape=(WIDTH, SIDE // 8, SIDE // 8),
    low_res_hw=(SIDE // 2, SIDE // 2),
    prompt_raster=PromptRaster(box_inside=2.0, box_outside=-4.0, click_peak=4.0, click_sigma=2.0),
)


def tiny_decoder(seed: int = 0) -> PromptDecoder:
    """Make SAM's own prompt encoder and mask decoder, 32 wide."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        prompt_encoder = PromptEncoder(
            embed_dim=WIDTH, image_embedding_size=(8, 8), input_image_size=(SIDE, SIDE), mask_in_chans=8
        )
        transformer = TwoWayTransformer(depth=2, embedding_dim=WIDTH, mlp_dim=32, num_heads=4)
        mask_decoder = MaskDecoder(
            transformer_dim=WIDTH, transformer=transformer, iou_head_depth=2, iou_head_hidden_dim=32
        )
    return PromptDecoder(prompt_encoder, mask_decoder).eval()


class WholeDecoder(nn.Module):
    """All of a decoder's parameters as the adapter."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.decoder = tiny_decoder(seed)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        logits, iou = self.decoder(*inputs)
        return logits, iou

    def adapter_parameters(self) -> Iterator[nn.Parameter]:
        return iter(self.decoder.mask_decoder.parameters())

    def adapter_state(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.decoder.mask_decoder.state_dict().items()}

    def load_adapter_state(self, state: Mapping[str, Tensor]) -> None:
        self.decoder.mask_decoder.load_state_dict(dict(state))


def disc(centre_xy: tuple[int, int], radius: int, size_hw: tuple[int, int] = (SIDE, SIDE)) -> NDArray[np.bool_]:
    y, x = np.mgrid[: size_hw[0], : size_hw[1]]
    return np.asarray((x - centre_xy[0]) ** 2 + (y - centre_xy[1]) ** 2 <= radius**2)


def view_of(
    masks: Mapping[int, NDArray[np.bool_]],
    image_index: int = 0,
    *,
    is_original: bool = True,
    has_patches: bool = True,
) -> EmbeddedView:
    """Embed an image that shows nothing but the classes, each as a direction of its own."""
    size_hw = next(iter(masks.values())).shape
    transform = FrameTransform((size_hw[0], size_hw[1]), (size_hw[0], size_hw[1]), (SIDE, SIDE))
    planes = np.zeros((WIDTH, SIDE, SIDE), np.float32)
    planes[0] = 0.2
    for class_id, mask in masks.items():
        planes[class_id, : size_hw[0], : size_hw[1]] = mask
    coarse = F.avg_pool2d(torch.from_numpy(planes), STRIDE).numpy()
    noise = np.random.default_rng(image_index).normal(0, 0.02, coarse.shape)
    embedding = (4 * coarse + noise).astype(np.float16)
    features = (coarse + noise).transpose(1, 2, 0).astype(np.float32)
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    patches = PatchFeatures(features, transform, STRIDE) if has_patches else None
    return EmbeddedView(image_index, is_original, embedding, transform, masks, patches)


def discs(num_images: int) -> list[EmbeddedView]:
    """Make images with one disc of class 1 each, at different places."""
    places = [(16, 20), (44, 40), (30, 46), (40, 18), (22, 34), (34, 28)]
    return [view_of({1: disc(places[i], 9 + i % 3)}, i) for i in range(num_images)]


def examples_of(views: Sequence[EmbeddedView], class_ids: Sequence[int] = (1,)) -> list[TuningExample]:
    return build_examples(views, class_ids, SEGMENTER)
