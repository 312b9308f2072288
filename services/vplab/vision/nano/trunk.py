"""The MobileNetV2 trunk of the nano models, with batch norm folded into its convolutions.

Source: Sandler et al., "MobileNetV2" (arXiv 1801.04381), as timm builds it (``mobilenetv2_100``). Folding keeps the
statistics frozen while fine-tuning, which small batches need, and makes a training step cheaper.
"""

import copy
from collections.abc import Iterable
from pathlib import Path

import timm
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from vplab.errors import InvalidInput

TRUNK_NAME = "mobilenetv2_100"
CHANNELS = {4: 24, 8: 32, 16: 96, 32: 320}
_LAST_BLOCK = {2: 8, 4: 16, 6: 32}
_UNUSED = ("conv_head.", "bn2.", "classifier.")
"""What comes after the last map taken; a file may lack it."""
NUM_FROZEN_BLOCKS = 2
"""Blocks up to stride 4 keep their ImageNet weights: edges need no retraining, and their backward pass costs most."""
_CONV_AND_NORM = {
    "DepthwiseSeparableConv": (("conv_dw", "bn1"), ("conv_pw", "bn2")),
    "InvertedResidual": (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")),
}


class MobileNetTrunk(nn.Module):
    """Feature maps of strides 4, 8, 16 and 32."""

    def __init__(self) -> None:
        super().__init__()
        model = timm.create_model(TRUNK_NAME, pretrained=False, pad_type="same")
        self._take(model)

    @classmethod
    def from_weights(cls, path: Path | None) -> "MobileNetTrunk":
        """Start from a timm ``mobilenetv2_100`` state dict, or from timm's download where ``path`` is None.

        The file may lack what comes after the last block: the head of the classifier.
        Raises InvalidInput if the file does not hold that architecture.
        """
        model = timm.create_model(TRUNK_NAME, pretrained=path is None, pad_type="same")
        if path is not None:
            try:
                state = {name: value.float() for name, value in load_file(path).items()}
                missing, unknown = model.load_state_dict(state, strict=False)
                if unknown or any(not name.startswith(_UNUSED) for name in missing):
                    raise RuntimeError(f"missing {missing[:3]}, unknown {unknown[:3]}")
            except (OSError, RuntimeError) as error:
                raise InvalidInput(f"{path.name} does not hold {TRUNK_NAME} weights: {error}", field="trunk") from error
        trunk = cls.__new__(cls)
        nn.Module.__init__(trunk)
        trunk._take(model)
        return trunk

    def _take(self, model: nn.Module) -> None:
        model.eval()
        _fold(model, "conv_stem", "bn1")
        for module in list(model.modules()):
            for conv, norm in _CONV_AND_NORM.get(type(module).__name__, ()):
                _fold(module, conv, norm)
        self.stem = nn.Sequential(model.get_submodule("conv_stem"), model.get_submodule("bn1"))
        self.blocks = nn.ModuleList(model.get_submodule("blocks").children())
        for frozen in (self.stem, *self.blocks[:NUM_FROZEN_BLOCKS]):
            frozen.requires_grad_(False)

    def forward(self, image: Tensor) -> dict[int, Tensor]:
        """Return the maps by stride; image: (B, 3, H, W) float32 in -1..1, sides multiples of 32."""
        x = self.stem(image)
        for block in self.blocks[:NUM_FROZEN_BLOCKS]:
            x = block(x)
        return {4: x} | upper_maps(self.blocks[NUM_FROZEN_BLOCKS:], x)

    def upper_copy(self) -> nn.ModuleList:
        """Return a frozen copy of the blocks above stride 4, as they are now."""
        return copy.deepcopy(self.blocks[NUM_FROZEN_BLOCKS:]).requires_grad_(False)


def upper_maps(blocks: Iterable[nn.Module], x: Tensor) -> dict[int, Tensor]:
    """Run the blocks above stride 4 on the stride-4 map and return the maps of strides 8, 16 and 32."""
    maps: dict[int, Tensor] = {}
    for index, block in enumerate(blocks, NUM_FROZEN_BLOCKS):
        x = block(x)
        if index in _LAST_BLOCK:
            maps[_LAST_BLOCK[index]] = x
    return maps


def _fold(parent: nn.Module, conv_name: str, norm_name: str) -> None:
    conv, norm = parent.get_submodule(conv_name), parent.get_submodule(norm_name)
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    setattr(parent, conv_name, fuse_conv_bn_eval(conv, norm))
    setattr(parent, norm_name, norm.get_submodule("act"))
