"""DINOv2 and DINOv3 in timm's safetensors layout, as encoders of L2-normalised patch features.

Source: Oquab et al., "DINOv2" (arXiv 2304.07193), Simeoni et al., "DINOv3" (arXiv 2508.10104); tensor names as timm's
models on the Hugging Face hub have them. The file does not name its architecture, so it is found by comparing tensors.
"""

import re
from functools import cache
from math import isqrt
from typing import Any

import timm
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from vplab.errors import InvalidInput
from vplab.training.models.names import DINO_ARCHITECTURE
from vplab.vision.sam.onnx_encoder import PATCH_FEATURES, PatchFeatures
from vplab.vision.sam.state_dict import StateDict, load_strict, num_children, shape_of
from vplab.vision.specs import EncoderSpec, OutputSpec, Preprocessing

DINOV3_INPUT_SIZE = 512
"""Unstated: DINOv3 takes any multiple of 16; 512 gives 32 x 32 patches, near DINOv2's 37 x 37 at its own 518."""


def is_timm_dino(state: StateDict) -> bool:
    """Tell whether these tensors can be a DINO vision transformer in timm's layout."""
    return {"cls_token", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "norm.weight"} <= state.keys()


def dino_encoder(
    state: StateDict, *, architecture: str | None = None, input_size: int | None = None
) -> tuple[PatchFeatures, EncoderSpec]:
    """Build the encoder whose weights these are, with its spec.

    architecture: timm's name, with or without the tag of the training data after a dot; found from the tensors if None.
    Only the tag tells satellite weights (``sat493m``), whose mean and standard deviation differ.
    input_size: side of the input in pixels, a multiple of the patch; by default the size of the position embedding, or
    DINOV3_INPUT_SIZE where positions are rotary.
    Raises InvalidInput naming the tensors that do not fit.
    """
    # As timm's own loading does: one served pre-training only, the others are constants that timm computes.
    state = {key: value for key, value in state.items() if key != "mask_token" and not key.startswith("rope.")}
    name, _, tag = architecture.partition(".") if architecture else (find_architecture(state), "", "")
    if not DINO_ARCHITECTURE.fullmatch(name):
        raise InvalidInput(f"{architecture} is not a DINOv2 or DINOv3 model of timm", field="architecture")
    patch_size = shape_of(state, "patch_embed.proj.weight")[-1]
    native_size = _native_input_size(state, patch_size)
    size = input_size if input_size is not None else native_size or DINOV3_INPUT_SIZE
    if size % patch_size or size < patch_size:
        raise InvalidInput(f"input size {size} is not a multiple of the patch, {patch_size} pixels", field="input_size")

    depth = num_children(state, "blocks.")
    model = _create(name, depth=depth, img_size=native_size or size)
    load_strict(model, state, what=f"timm's {name} with {depth} blocks")
    if native_size and size != native_size:
        model.set_input_size(img_size=(size, size))  # type: ignore[operator]
    grid = size // patch_size
    full_name = name if depth == _published_depth(name) else f"{name}_depth{depth}"
    mean, std = _normalisation(name, tag)
    spec = EncoderSpec(
        family="timm",
        architecture=f"{full_name}.{tag}" if tag else full_name,
        preprocessing=Preprocessing(
            resize="fixed", size=size, interpolation="bicubic", mean_rgb=_times_255(mean), std_rgb=_times_255(std)
        ),
        outputs=(
            OutputSpec(
                name=PATCH_FEATURES,
                role="patch_features",
                shape=(grid, grid, shape_of(state, "norm.weight")[0]),
                stride=patch_size,
            ),
        ),
    )
    return PatchFeatures(model, int(model.num_prefix_tokens), (grid, grid)), spec  # type: ignore[arg-type]


def find_architecture(state: StateDict) -> str:
    """Return timm's name of the DINO model that has these tensors, whatever its depth.

    Raises InvalidInput, naming what comes nearest and how it differs, if there is none.
    """
    found = _signature(state)
    differences = {name: found ^ _published_signature(name) for name in published_architectures()}
    nearest = min(differences, key=lambda name: len(differences[name]))
    if differences[nearest]:
        odd = ", ".join(f"{key} {shape}" for key, shape in sorted(differences[nearest])[:6])
        raise InvalidInput(
            f"not a DINOv2 or DINOv3 model of timm; nearest is {nearest}, which differs in {odd}", field="path"
        )
    return nearest


@cache
def published_architectures() -> tuple[str, ...]:
    """Return timm's DINOv2 and DINOv3 architectures."""
    return tuple(name for name in timm.list_models("vit_*dinov*") if DINO_ARCHITECTURE.fullmatch(name))


def _create(name: str, depth: int, img_size: int) -> nn.Module:
    # A fixed size makes the rotary positions of DINOv3 a constant of the graph; DINOv2's size is fixed by itself.
    kwargs: dict[str, Any] = {"dynamic_img_size": False} if "dinov3" in name else {}
    model: nn.Module = timm.create_model(
        name, pretrained=False, num_classes=0, depth=depth, img_size=img_size, **kwargs
    )
    return model.eval()


@cache
def _published_depth(name: str) -> int:
    with torch.device("meta"):
        return num_children(timm.create_model(name, pretrained=False, num_classes=0).state_dict(), "blocks.")


@cache
def _published_signature(name: str) -> frozenset[tuple[str, tuple[int, ...]]]:
    with torch.device("meta"):
        kwargs: dict[str, Any] = {"depth": 1}
        return _signature(timm.create_model(name, pretrained=False, num_classes=0, **kwargs).state_dict())


def _signature(state: StateDict) -> frozenset[tuple[str, tuple[int, ...]]]:
    # One block stands for all, and the number of positions is the input size's matter.
    return frozenset(
        (key, () if key == "pos_embed" else tuple(value.shape))
        for key, value in state.items()
        if not re.match(r"blocks\.[1-9]", key)
    )


def _native_input_size(state: StateDict, patch_size: int) -> int | None:
    if "pos_embed" not in state:
        return None
    num_positions = shape_of(state, "pos_embed")[1]
    # With registers timm gives the class token no position, and without them one.
    num_patches = num_positions if "reg_token" in state else num_positions - 1
    grid = isqrt(num_patches)
    if grid * grid != num_patches:
        raise InvalidInput(f"pos_embed holds {num_positions} positions, which is no square grid", field="path")
    return grid * patch_size


def _normalisation(name: str, tag: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    config = timm.get_pretrained_cfg(f"{name}.{tag}") if tag else None
    if config is None:
        return IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    return config.mean, config.std


def _times_255(values: tuple[float, ...]) -> tuple[float, float, float]:
    red, green, blue = (round(255.0 * v, 6) for v in values)
    return red, green, blue
