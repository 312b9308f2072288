"""Adapters that stand in for tuned ones, served as those are."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fakes.banked_adapters import write_banked_sam
from fakes.segmentation_site import Site as Running
from fakes.segmentation_site import tiny_site
from fakes.small_sam import ENCODER, SEGMENTER, small_site
from vplab.bench.pictures import make_pictures
from vplab.bench.site import Site
from vplab.bench.works import Called
from vplab.client import Client, ClientOptions
from vplab.errors import InvalidInput
from vplab.segmentation import metrics

PICTURES = make_pictures(2, 128, num_points=4)
MODELS = {"default_segmenter": f"artifacts/{SEGMENTER}", "default_feature_encoder": f"artifacts/{ENCODER}"}


async def adapters(running: Running, address: str, number: int, *, is_own: bool = True) -> list[str]:
    """Ask for adapters and click with each of them, as a run does."""

    def prepare() -> list[str]:
        with Client(segmentation=address, registry=running.registry_address, options=ClientOptions()) as client:
            site = Site(client, Called(client.addresses, ClientOptions()), is_own=is_own)
            found = site.some_adapters(number)
            site.load(found)
            return found

    return await asyncio.to_thread(prepare)


async def test_stand_ins_are_versions_that_are_served(tmp_path: Path) -> None:
    async with tiny_site(tmp_path) as (site, serving):
        found = await adapters(site, serving.address, 3)
        assert len(set(found)) == 3
        served = [model.name for model in serving.service.served_models() if model.role == "adapter"]
        assert sorted(served) == sorted(found)


async def test_somebodys_registry_is_searched_and_not_written(tmp_path: Path) -> None:
    async with tiny_site(tmp_path) as (site, serving):
        await adapters(site, serving.address, 2)  # adapters that fit, whoever made them
        found = await adapters(site, serving.address, 2, is_own=False)
        assert len(set(found)) == 2
        with pytest.raises(InvalidInput, match="has 2 adapters"):
            await adapters(site, serving.address, 3, is_own=False)


async def test_a_prompt_set_in_somebodys_registry_is_deleted_afterwards(tmp_path: Path) -> None:
    async with tiny_site(tmp_path) as (site, serving):

        def publish_and_leave() -> tuple[str, list[str], list[str]]:
            address, registry = serving.address, site.registry_address
            with Client(segmentation=address, registry=registry, options=ClientOptions()) as client:
                prepared = Site(client, Called(client.addresses, ClientOptions()), is_own=False)
                name = prepared.prompt_set(PICTURES)
                num_references = len(client.segmentation.get_prompt_set(name).references)
                assert num_references == len(PICTURES)
                not_deleted = prepared.close()
                return name, not_deleted, [found.name for found in client.registry.list_artifacts(kind="prompt_set")]

        name, not_deleted, left = await asyncio.to_thread(publish_and_leave)
        assert name.startswith("artifacts/bench-")
        assert not_deleted == []
        assert left == []


@pytest.fixture(scope="module")
def banked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_banked_sam(tmp_path_factory.mktemp("models"))


@pytest.fixture
async def site(tmp_path: Path, banked: Path) -> AsyncIterator[Running]:
    async with small_site(tmp_path, banked) as running:
        yield running


@pytest.mark.slow
async def test_where_the_segmenter_has_a_bank_they_are_rows_of_it(site: Running) -> None:
    async with site.segmentation(**MODELS) as serving:
        await adapters(site, serving.address, 5)
        assert metrics.BANK_ADAPTERS._value.get() == 5
