"""A bundle's stand-ins do what the modules do whose place they take."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from vplab.errors import InvalidInput
from vplab.registry import builtin_models
from vplab.segmentation.config import SegmentationConfig
from vplab.segmentation.prompt_sets import DEFAULTS as SERVED_DEFAULTS
from vplab.training.line_bundle import writing
from vplab.training.line_bundle.stand_ins import images as line_images
from vplab.training.line_bundle.stand_ins import resizing as line_resizing
from vplab.training.line_bundle.stand_ins import specs as line_specs
from vplab.vision import resizing, specs

NANO = Path(builtin_models.__file__).parent / "builtin"
NOT_IN_A_BUNDLE = {"adapter_bank"}  # a bundle has its one adapter merged in
SIZES = [
    *[((100, 133), (48, 64)), ((50, 40), (250, 200)), ((301, 301), (64, 64)), ((9, 9), (3, 3)), ((64, 64), (64, 64))],
    *[((301, 7), (64, 64)), ((70, 33), (51, 24)), ((70, 30), (50, 20)), ((71, 30), (50, 20)), ((40, 90), (30, 90))],
]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("before", "after"), SIZES)
def test_images_are_resized_as_pillow_does_bit_for_bit(
    before: tuple[int, int], after: tuple[int, int], interpolation: str
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*before, 3)).astype(np.uint8)
    expected = resizing.resize_rgb(image, after, interpolation)  # type: ignore[arg-type]
    assert np.array_equal(line_resizing.resize_rgb(image, after, interpolation), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name", ["Preprocessing", "OutputSpec", "EncoderSpec", "PromptRaster", "ColourEvidence", "SegmenterSpec"]
)
def test_specs_have_the_same_fields_and_defaults(name: str) -> None:
    original: type[BaseModel] = getattr(specs, name)
    known = {f: v for f, v in original.model_fields.items() if f not in NOT_IN_A_BUNDLE}
    expected = {f: v.default for f, v in known.items() if v.default is not PydanticUndefined}
    fields = dataclasses.fields(getattr(line_specs, name))
    assert {f.name for f in fields} == set(known)
    assert {f.name: f.default for f in fields if f.default is not dataclasses.MISSING} == expected


@pytest.mark.parametrize("model", ["nano-encoder", "nano-segmenter"])
def test_the_nano_models_specs_are_read_alike(model: str) -> None:
    data = (NANO / model / "model.json").read_bytes()
    original = specs.spec_from_json(data).model_dump(exclude=NOT_IN_A_BUNDLE)
    assert dataclasses.asdict(line_specs.spec_from_json(data)) == original


def test_images_are_read_as_rgb_and_turned_upright(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (5, 8, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    Image.fromarray(picture).save(tmp_path / "a.png", exif=exif)
    Image.fromarray(picture).save(tmp_path / "b.bmp")
    assert np.array_equal(line_images.read_image(tmp_path / "a.png"), np.rot90(picture, -1))
    assert np.array_equal(line_images.read_image(tmp_path / "b.bmp"), picture)


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(InvalidInput, match=r"a\.png"):
        line_images.read_image(tmp_path / "a.png")


def test_what_a_prompt_set_leaves_open_is_as_in_the_segmentation_service() -> None:
    served = {name: getattr(SERVED_DEFAULTS, name) for name in writing.DEFAULTS}
    served["matcher"] = served["matcher"].value
    served["tile_side"] = SegmentationConfig.model_fields["tile_side"].default
    assert dict(writing.DEFAULTS) == served
