"""A small U-Net trained on the shots alone (Ronneberger et al., arXiv 1505.04597), on an ImageNet MobileNetV2.

Network and loss come from segmentation-models-pytorch, augmentation from torchvision.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import segmentation_models_pytorch as smp  # type: ignore[import-untyped,import-not-found,unused-ignore]
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import tv_tensors
from torchvision.transforms import v2

from vplab.errors import InvalidInput
from vplab.evaluation.comparators.marks import ScaledImage
from vplab.evaluation.values import LabelArray, LabelledImage, RgbArray

_TRUNK = "mobilenetv2_100"
_DECODER_CHANNELS = (128, 64, 32, 16, 16)
"""Half of the library's default: a third faster on the CPU."""
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_MULTIPLE = 32
"""The trunk's stride: sides are padded to it."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class UNet:
    """Implements ``ShotMethod``."""

    trunk_weights: Path | None = None
    """A timm ``mobilenetv2_100`` state for inputs in -1..1 with TensorFlow's padding; without one timm downloads its
    own, and where that fails too the trunk starts from noise, which is logged."""
    num_steps: int = 80
    """80 steps of 8 crops take about half a minute on one core."""
    batch_size: int = 8
    crop_size: int = 192
    """Side of a training crop in pixels, a multiple of 32."""
    max_side: int = 512
    """Larger images are scaled down, in pixels."""
    learning_rate: float = 2e-3
    """Of the decoder; the trunk learns at a tenth of it."""
    num_threads: int = 1

    name = "unet"
    min_shots = 1
    num_in_flight = 1

    def fit(self, shots: Sequence[LabelledImage], class_ids: Sequence[int], seed: int) -> "UNetPredictor":
        """Train for a fixed number of steps. Raises InvalidInput if ``trunk_weights`` holds something else."""
        values = (0, *class_ids)
        with torch.random.fork_rng(devices=[]), _threads(self.num_threads):
            torch.manual_seed(seed)
            network = _Network(len(values), self.trunk_weights)
            pairs = [_pair(shot, values, self.max_side, self.crop_size) for shot in shots]
            self._train(network, pairs, len(values))
        return UNetPredictor(network.eval(), values, self.max_side, self.num_threads)

    def _train(self, network: "_Network", pairs: Sequence[tuple[Tensor, Tensor]], num_classes: int) -> None:
        network.train()
        rates = [
            {"params": list(network.unet.encoder.parameters()), "lr": self.learning_rate * network.trunk_rate},
            {"params": list(network.unet.decoder.parameters()), "lr": self.learning_rate},
            {"params": list(network.unet.segmentation_head.parameters()), "lr": self.learning_rate},
        ]
        optimizer = torch.optim.AdamW(rates, weight_decay=1e-2)
        peaks = [self.learning_rate * network.trunk_rate, self.learning_rate, self.learning_rate]
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peaks, total_steps=self.num_steps, pct_start=0.15)
        dice = smp.losses.DiceLoss("multiclass", from_logits=True)
        augment = _augmentation(self.crop_size)
        for _ in range(self.num_steps):
            order = torch.randint(len(pairs), (self.batch_size,)).tolist()
            images, masks = zip(*(augment(*pairs[i]) for i in order), strict=True)
            targets = torch.stack([m.as_subclass(Tensor) for m in masks])[:, 0].long()  # (B, S, S)
            logits = network(torch.stack([i.as_subclass(Tensor) for i in images]))  # (B, C, S, S)
            loss = F.cross_entropy(logits, targets) + dice(logits, targets)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call,unused-ignore]
            optimizer.step()
            schedule.step()


@dataclass(frozen=True)
class UNetPredictor:
    """A trained network; implements ``ShotPredictor``."""

    network: "_Network"
    class_values: tuple[int, ...]
    max_side: int
    num_threads: int

    @torch.inference_mode()
    def predict(self, image_rgb: RgbArray, name: str) -> LabelArray:
        """Return the likeliest class of each pixel, (H, W) uint8."""
        scaled = ScaledImage.fit(image_rgb, self.max_side)
        height, width = scaled.size_hw
        below, right = -height % _MULTIPLE, -width % _MULTIPLE
        padded = cv2.copyMakeBorder(scaled.image_rgb, 0, below, 0, right, cv2.BORDER_REFLECT_101)
        with _threads(self.num_threads):
            logits = self.network(_planes(padded.astype(np.uint8))[None])[:, :, :height, :width]
            full = F.interpolate(logits, scaled.original_hw, mode="bilinear", align_corners=False)
        labels: LabelArray = np.array(self.class_values, np.uint8)[full[0].argmax(0).numpy()]
        return labels


class _Network(nn.Module):
    """smp's U-Net on timm's MobileNetV2, from uint8 images to logits."""

    mean: Tensor
    std: Tensor

    def __init__(self, num_classes: int, trunk_weights: Path | None) -> None:
        super().__init__()
        state, self.is_pretrained = (_file_state(trunk_weights), True) if trunk_weights else _downloaded_state()
        is_tensorflow = trunk_weights is not None
        self.unet = smp.Unet(
            f"tu-{_TRUNK}",
            encoder_weights=None,
            decoder_channels=_DECODER_CHANNELS,
            classes=num_classes,
            pad_type="same" if is_tensorflow else "",
        )
        if state:
            self._load_trunk(state, trunk_weights)
        mean, std = ((0.5,) * 3, (0.5,) * 3) if is_tensorflow else (_IMAGENET_MEAN, _IMAGENET_STD)
        self.register_buffer("mean", 255 * torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(std).view(3, 1, 1))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def trunk_rate(self) -> float:
        """Return the trunk's share of the learning rate."""
        return 0.1 if self.is_pretrained else 1.0

    def _load_trunk(self, state: dict[str, Tensor], path: Path | None) -> None:
        trunk = self.unet.encoder.model
        kept = {name: value.float() for name, value in state.items() if name in trunk.state_dict()}
        try:
            trunk.load_state_dict(kept)
        except RuntimeError as error:
            source = path.name if path else "timm's download"
            raise InvalidInput(f"{source} does not hold {_TRUNK} weights: {error}", field="trunk_weights") from error

    def train(self, mode: bool = True) -> "_Network":
        """Switch modes; a pretrained trunk keeps its normalisation, which a few crops would spoil."""
        super().train(mode)
        if self.is_pretrained:
            for module in self.unet.encoder.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, C, H, W) of images (B, 3, H, W) uint8, sides multiples of 32."""
        normalised = (image.float() - self.mean) / self.std
        logits: Tensor = self.unet(normalised.contiguous(memory_format=torch.channels_last))
        return logits


def _file_state(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InvalidInput(f"{path.name} is not a safetensors file: {error}", field="trunk_weights") from error


def _downloaded_state() -> tuple[dict[str, Tensor], bool]:
    import timm

    try:
        return timm.create_model(_TRUNK, pretrained=True).state_dict(), True
    # The hub's client raises errors of several libraries when it is offline; noise is the answer to all of them.
    except (OSError, RuntimeError, ValueError) as error:
        _log.warning("unet starts from noise: no ImageNet weights for %s (%s)", _TRUNK, error)
        return {}, False


def _augmentation(crop_size: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return what makes a crop of an image and its mask: scale, place, flips, quarter turns, light."""
    turn = v2.RandomChoice([v2.RandomRotation((angle, angle)) for angle in (0, 90, 180, 270)])
    transform: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = v2.Compose(
        [
            v2.RandomAffine(degrees=15, scale=(0.75, 1.33), fill={tv_tensors.Image: 0, tv_tensors.Mask: 0}),
            v2.RandomCrop(crop_size),
            v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(),
            turn,
            v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.2, hue=0.02),
        ]
    )
    return transform


def _pair(
    shot: LabelledImage, values: Sequence[int], max_side: int, min_side: int
) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
    """Return the image (3, h, w) uint8 and the indices of its classes (1, h, w) uint8, no side below ``min_side``."""
    scaled = ScaledImage.fit(shot.image_rgb, max_side)
    height, width = scaled.size_hw
    labels = cv2.resize(shot.labels, (width, height), interpolation=cv2.INTER_NEAREST).astype(np.uint8)
    indices = np.searchsorted(np.array(values), labels).astype(np.uint8)
    below, right = max(0, min_side - height), max(0, min_side - width)
    image, indices = (
        cv2.copyMakeBorder(plane, 0, below, 0, right, cv2.BORDER_REFLECT).astype(np.uint8)
        for plane in (scaled.image_rgb, indices)
    )
    return tv_tensors.Image(_planes(image)), tv_tensors.Mask(torch.from_numpy(indices)[None])


def _planes(image_rgb: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image_rgb.transpose(2, 0, 1)))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let torch use so many threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
