"""What imported models are called, and under which terms their publishers give them. Imports no torch."""

import re

from vplab.errors import InvalidInput

DINO_ARCHITECTURE = re.compile(
    r"vit_(?P<size>tiny|small|small_plus|base|large|giant|huge_plus|7b)_patch(?P<patch>\d+)_"
    r"(?P<registers>reg4_)?(?P<family>dinov[23])(?P<qkv_bias>_qkvb)?"
)
"""timm's names of DINO models, without the tag of the training data."""

_ARTIFACT_NAME = re.compile(r"[a-z][a-z0-9-]{0,46}(?<!-)")
_SIZES = {
    "tiny": "t{}",
    "small": "s{}",
    "small_plus": "s{}plus",
    "base": "b{}",
    "large": "l{}",
    "giant": "g{}",
    "huge_plus": "h{}plus",
    "7b": "7b{}",
}
_USUAL_TAGS = ("lvd142m", "lvd1689m")
_PUBLISHED_NAMES = {("sam", "vit_b"): "sam-vit-b", ("sam", "vit_l"): "sam-vit-l", ("sam", "vit_h"): "sam-vit-h"} | {
    ("mobile_sam", "vit_t"): "mobile-sam"
}


def model_name(family: str, architecture: str, wanted: str | None = None, suffix: str = "") -> str:
    """Return the first part of a model's artifact ids: ``wanted`` or the publisher's name, then ``suffix``.

    Raises InvalidInput (field ``name``) if ``wanted`` cannot begin an artifact id.
    """
    if wanted is None:
        return _publishers_name(family, architecture) + suffix
    if not _ARTIFACT_NAME.fullmatch(wanted):
        raise InvalidInput(
            f"{wanted!r} is not a model name: a letter, then up to 46 letters, digits and hyphens, all lower case",
            field="name",
        )
    return wanted + suffix


def _publishers_name(family: str, architecture: str) -> str:
    if family == "timm":
        return dino_name(architecture)
    published = _PUBLISHED_NAMES.get((family, architecture))
    return published or f"{family}-{architecture}".replace("_", "-")


def dino_name(architecture: str) -> str:
    """Return the short name of timm's DINO model: ``vit_small_patch14_reg4_dinov2`` is ``dinov2-vits14-reg``.

    A tag other than the usual training data stays in the name.
    """
    match = DINO_ARCHITECTURE.match(architecture)
    if match is None:
        raise InvalidInput(f"{architecture} is not a DINOv2 or DINOv3 model of timm", field="architecture")
    marks = ("-reg" if match["registers"] else "") + ("-qkvb" if match["qkv_bias"] else "")
    rest = [part for part in re.split(r"[._]", architecture[match.end() :]) if part and part not in _USUAL_TAGS]
    return "-".join([f"{match['family']}-vit{_SIZES[match['size']].format(match['patch'])}{marks}", *rest])


def licence_of(family: str, architecture: str) -> str:
    """Return the terms of the published weights: an SPDX identifier, or the publisher's name of them."""
    if family != "timm" or "dinov2" in architecture:
        return "Apache-2.0"
    # Distilled from DINOv3 and others, and published for research only.
    return "fair-noncommercial-research-license" if "eupe" in architecture else "dinov3-license"
