"""The comparators by name. Each maker imports its libraries when it is called, and lets ImportError through."""

import os
from collections.abc import Callable
from pathlib import Path

from vplab.evaluation.ports import ClickMethod, ShotMethod


def _plain_box() -> ClickMethod:
    from vplab.evaluation.comparators.plain_box import PlainBox

    return PlainBox()


def _grabcut() -> ClickMethod:
    from vplab.evaluation.comparators.grabcut import GrabCut

    return GrabCut()


def _random_walker() -> ClickMethod:
    from vplab.evaluation.comparators.random_walker import RandomWalker

    return RandomWalker()


def _random_forest() -> ShotMethod:
    from vplab.evaluation.comparators.random_forest import RandomForest

    return RandomForest()


def _unet() -> ShotMethod:
    from vplab.evaluation.comparators.unet import UNet

    file = Path(os.environ.get("VPLAB_DATA", "../shared/data")) / "weights" / "mobilenetv2_100_imagenet.safetensors"
    return UNet(trunk_weights=file if file.is_file() else None)


SHOT_METHODS: dict[str, Callable[[], ShotMethod]] = {"random_forest": _random_forest, "unet": _unet}
CLICK_METHODS: dict[str, Callable[[], ClickMethod]] = {
    "plain_box": _plain_box,
    "grabcut": _grabcut,
    "random_walker": _random_walker,
}
