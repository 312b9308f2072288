"""Data sets published to a real registry and read back."""

import uuid
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vplab.client import AsyncClient, AsyncSnapshots
from vplab.client.datasets import Dataset, DatasetItem, PackedMasks, publish_dataset, read_dataset
from vplab.client.segmentation.values import SegmentClass
from vplab.errors import FailedPrecondition, InvalidInput
from vplab.vision.mask_formats import mask_to_png

CLASSES = (SegmentClass(1, "scratch"),)


def dataset(num_images: int) -> Dataset:
    items = []
    for index in range(num_images):
        mask = np.zeros((8, 9), np.bool_)
        mask.flat[index : index + 7] = True
        items.append(DatasetItem(f"part_{index}.png", mask_to_png(mask), (8, 9), PackedMasks({1: mask})))
    return Dataset(CLASSES, tuple(items))


async def test_a_published_set_comes_back_as_it_was(client: AsyncClient, tmp_path: Path) -> None:
    whole = dataset(25)
    model = await publish_dataset(client, "parts", whole, str(uuid.uuid4()))
    snapshots = AsyncSnapshots(client.registry, tmp_path)
    snapshot = await snapshots.fetch(model.name)
    found = read_dataset(snapshot.folder)
    snapshots.close()
    assert (snapshot.digest, snapshot.manifest.spec["num_images"]) == (model.digest, 25)
    assert [(i.file_name, i.image) for i in found.items] == [(i.file_name, i.image) for i in whole.items]
    np.testing.assert_array_equal(found.items[24].masks[1], whole.items[24].masks[1])
    assert (await client.registry.get_artifact("artifacts/parts")).kind == "dataset"


async def test_the_same_set_is_the_same_version_and_another_a_new_one(client: AsyncClient) -> None:
    first = await publish_dataset(client, "parts", dataset(2))
    assert await publish_dataset(client, "parts", dataset(2)) == first
    assert (await publish_dataset(client, "parts", dataset(3))).name == "artifacts/parts/versions/2"


async def test_a_wrong_set_publishes_nothing(client: AsyncClient) -> None:
    broken = replace(dataset(2), classes=(SegmentClass(2, "dent"),))
    with pytest.raises(InvalidInput, match=r"part_0\.png"):
        await publish_dataset(client, "parts", broken)
    assert [artifact.name async for artifact in client.registry.list_artifacts(kind="dataset")] == []


async def test_an_artifact_of_another_kind_is_left_alone(client: AsyncClient) -> None:
    await client.registry.create_artifact("parts", "prompt_set")
    with pytest.raises(FailedPrecondition, match="holds prompt_set versions"):
        await publish_dataset(client, "parts", dataset(1))
