"""Data that came with a request, looked at pixel by pixel before anything is published."""

import io
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from vplab.errors import InvalidInput
from vplab.training.backends.client_datasets import ClientDatasets
from vplab.training.values import DraftDataset, DraftImage, DraftMask, EncodedImage, FrameImage
from vplab.vision.images import ImageLimits

LIMITS = ImageLimits(max_bytes=32 << 20, max_pixels=1_000_000)


@pytest.fixture
def datasets() -> Iterator[ClientDatasets]:
    """Data sets that must be refused before a registry is asked: there is none."""
    nobody = cast(Any, None)
    made = ClientDatasets(nobody, nobody, LIMITS, max_images=64, max_inline_pixels=2_000_000, threads=1)
    yield made
    made.close()


def png(height: int = 6, width: int = 8) -> EncodedImage:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(file, format="PNG")
    return EncodedImage(file.getvalue())


def mask(class_id: int = 1, size_hw: tuple[int, int] = (6, 8), runs: tuple[int, ...] = (20, 28)) -> DraftMask:
    return DraftMask(class_id, size_hw, runs, f"inline.images[1].masks[{class_id - 1}].mask")


def draft(image: EncodedImage | FrameImage, *masks: DraftMask) -> DraftDataset:
    """Return a data set whose second image is as given."""
    good = DraftImage("good.png", png(), (mask(),))
    return DraftDataset({1: "one", 2: "two"}, (good, DraftImage("bad.png", image, masks)))


NOISE = np.random.default_rng(1).bytes(10 << 20)


@pytest.mark.parametrize(
    ("data", "field", "reason"),
    [
        (draft(EncodedImage(NOISE)), "inline.images[1].image", "IMAGE_UNREADABLE"),
        (draft(EncodedImage(png().data[:90])), "inline.images[1].image", "IMAGE_UNREADABLE"),
        (draft(png(1001, 1000)), "inline.images[1].image", "IMAGE_TOO_LARGE"),
        (draft(png(), mask(size_hw=(8, 6))), "inline.images[1].masks[0].mask", "INVALID_FIELD"),
        (draft(png(), mask(), mask(2, size_hw=(6, 9))), "inline.images[1].masks[1].mask", "INVALID_FIELD"),
        (draft(png(), mask(runs=(20, 27))), "inline.images[1].masks[0].mask.runs", "INVALID_FIELD"),
        (draft(png(), mask(runs=(20, 0, 28))), "inline.images[1].masks[0].mask.runs", "INVALID_FIELD"),
    ],
)
async def test_an_image_or_mask_at_fault_is_named_with_its_file(
    datasets: ClientDatasets, data: DraftDataset, field: str, reason: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        await datasets.publish("parts", data, "")
    assert [violation.field for violation in refused.value.violations] == [field]
    assert refused.value.reason == reason
    assert refused.value.message.startswith("bad.png: ")
    assert refused.value.metadata["file"] == "bad.png"


async def test_data_without_any_object_is_refused(datasets: ClientDatasets) -> None:
    nothing = DraftDataset({1: "one"}, (DraftImage("a.png", png(), (mask(runs=(48,)),)),))
    with pytest.raises(InvalidInput) as refused:
        await datasets.publish("parts", nothing, "")
    assert refused.value.violations[0].field == "inline.images"
    assert "nothing to learn from" in refused.value.message


async def test_the_same_picture_twice_is_refused_by_its_place_in_the_request(datasets: ClientDatasets) -> None:
    with pytest.raises(InvalidInput) as refused:
        await datasets.publish("parts", draft(png(), mask()), "")
    assert [violation.field for violation in refused.value.violations] == ["inline.images[1]"]
    assert "good.png" in refused.value.message


async def test_more_pixels_than_fit_into_memory_are_refused(datasets: ClientDatasets) -> None:
    large = png(900, 1000)
    images = tuple(
        DraftImage(f"{index}.png", large, (mask(size_hw=(900, 1000), runs=(900_000,)),)) for index in range(3)
    )
    with pytest.raises(InvalidInput) as refused:
        await datasets.publish("parts", DraftDataset({1: "one"}, images), "")
    assert (refused.value.reason, refused.value.metadata["limit"]) == ("IMAGE_TOO_LARGE", "2000000")
