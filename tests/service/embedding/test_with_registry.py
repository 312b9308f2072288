"""The embedding service with a real registry between them: names, aliases, damage, and the registry going away."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from fakes import tiny_models
from fakes.embedding_server import png, serve_embedding
from fakes.registry_process import RegistryProcess, registry_config
from vplab.client import AsyncClient, AsyncSnapshots, ClientOptions
from vplab.client.registry.values import Manifest
from vplab.embedding.backends.client_models import ClientModels
from vplab.errors import DataLoss, FailedPrecondition, NotFound, Unavailable

NAME = "artifacts/tiny-encoder"


def files_of(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in folder.iterdir()}


@dataclass
class Site:
    """A registry, its client, and a client of the embedding service."""

    registry: RegistryProcess
    client: AsyncClient
    folder: Path

    async def publish(self, seed: int) -> str:
        folder = self.folder / f"model-{seed}"
        tiny_models.write_encoder(folder, seed)
        version = await self.client.registry.publish_files(
            files_of(folder), "tiny-encoder", "encoder", metrics=tiny_models.OWN_REFERENCE, alias="production"
        )
        return version.name

    @asynccontextmanager
    async def embedding(self, address: str) -> AsyncIterator[AsyncClient]:
        """Serve embeddings with models from the registry at ``address``, with the same cache each time."""
        async with AsyncClient(registry=address, options=ClientOptions()) as upstream:
            snapshots = AsyncSnapshots(upstream.registry, self.folder / "cache" / "models")
            source = ClientModels(upstream.registry, snapshots)
            settings = {"cache_dir": self.folder / "cache", "intra_op_threads": 1}
            try:
                async with (
                    serve_embedding(source, **settings) as serving,
                    AsyncClient(embedding=serving.address, options=ClientOptions()) as client,
                ):
                    yield client
            finally:
                snapshots.close()


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    registry = RegistryProcess(registry_config(tmp_path / "registry", listen=f"unix:{tmp_path}/registry.sock"))
    async with AsyncClient(registry=f"unix:{tmp_path}/registry.sock", options=ClientOptions()) as client:
        yield Site(registry, client, tmp_path)


async def version_of(client: AsyncClient, name: str = NAME, seed: int = 0) -> str:
    (embedding,) = await client.embedding.embed_image(png(seed), name)
    return embedding.encoder.name


async def test_an_alias_is_followed_and_a_version_stays(site: Site) -> None:
    async with site.registry.running() as registry:
        first = await site.publish(1)
        async with site.embedding(registry.address) as client:
            assert await version_of(client) == first
            second = await site.publish(2)
            for _ in range(300):
                if await version_of(client) == second:
                    break
                await asyncio.sleep(0.02)
            assert await version_of(client) == second
            assert await version_of(client, first) == first
            names = [encoder.model.name async for encoder in client.embedding.list_encoders()]
            assert names == [first, second]


async def test_without_the_registry_the_last_known_encoder_serves_even_after_a_restart(site: Site) -> None:
    async with site.registry.running() as registry:
        first = await site.publish(1)
        async with site.embedding(registry.address) as client:
            assert await version_of(client) == first
    async with site.embedding(f"unix:{site.folder}/registry.sock") as client:
        assert await version_of(client, seed=1) == first
        with pytest.raises(Unavailable):
            await version_of(client, "artifacts/other-encoder")


async def test_damaged_files_are_refused(site: Site) -> None:
    async with site.registry.running() as registry:
        await site.publish(1)
        graph = tiny_models.encoder_onnx(1)
        (blob,) = [
            p for p in (site.folder / "registry" / "blobs").rglob("*") if p.is_file() and p.read_bytes() == graph
        ]
        blob.chmod(0o644)
        blob.write_bytes(graph[:-1] + b"?")
        async with site.embedding(registry.address) as client:
            with pytest.raises(DataLoss) as caught:
                await version_of(client)
            assert caught.value.reason == "DIGEST_MISMATCH"


async def test_what_is_no_encoder_is_unsupported(site: Site) -> None:
    async with site.registry.running() as registry:
        folder = site.folder / "segmenter"
        tiny_models.write_segmenter(folder)
        await site.client.registry.publish_files(
            files_of(folder), "tiny-segmenter", "segmenter", metrics=tiny_models.OWN_REFERENCE, alias="production"
        )
        async with site.embedding(registry.address) as client:
            with pytest.raises(FailedPrecondition) as caught:
                await version_of(client, "artifacts/tiny-segmenter")
            assert caught.value.reason == "MODEL_UNSUPPORTED"
            with pytest.raises(NotFound):
                await version_of(client, "artifacts/absent")


async def test_a_job_embeds_a_dataset_of_the_registry(site: Site) -> None:
    async with site.registry.running() as registry:
        await site.publish(1)
        files = [
            await site.client.registry.upload_bytes(png(i), as_path=f"{i}.png", media_type="image/png")
            for i in range(3)
        ]
        note = await site.client.registry.upload_bytes(b"hello", as_path="note.txt", media_type="text/plain")
        await site.client.registry.create_artifact("parts", "dataset")
        dataset = await site.client.registry.publish_version("artifacts/parts", Manifest((*files, note)))
        async with site.embedding(registry.address) as client:
            job = await client.embedding.precompute(NAME, dataset=dataset.name)
            while not job.end_time:
                await asyncio.sleep(0.02)
                job = await client.embedding.get_precompute_job(job.name)
            assert (job.num_done, job.num_failed) == (3, 0)
