"""Registry, embedding and segmentation in one process over real channels, with tiny models or others."""

import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from fakes import tiny_models
from fakes.registry_process import RegistryProcess, registry_config
from vplab.client import AsyncClient, AsyncSnapshots, ClientOptions
from vplab.client.registry.values import Lineage, Version
from vplab.embedding.backends.client_models import ClientModels as EmbeddingModels
from vplab.embedding.composition import open_embedding
from vplab.embedding.config import EmbeddingConfig
from vplab.runtime.server import running_server
from vplab.segmentation.__main__ import client_options
from vplab.segmentation.backends.client_models import ClientModels
from vplab.segmentation.backends.client_prompt_sets import ClientPromptSets
from vplab.segmentation.backends.grpc_embedding import GrpcEmbedding
from vplab.segmentation.composition import SegmentationService, open_segmentation
from vplab.segmentation.config import SegmentationConfig

RED, GREEN, GREY = (220, 40, 40), (30, 200, 60), (120, 120, 120)


@dataclass
class Site:
    """The three services; each can be left out and started again on the same folder and address."""

    folder: Path
    registry: RegistryProcess = field(init=False)

    def __post_init__(self) -> None:
        self.registry = RegistryProcess(
            registry_config(self.folder / "registry", listen=f"unix:{self.folder}/registry.sock")
        )

    @property
    def registry_address(self) -> str:
        return f"unix:{self.folder}/registry.sock"

    @property
    def embedding_address(self) -> str:
        return f"unix:{self.folder}/embedding.sock"

    @asynccontextmanager
    async def embedding(self) -> AsyncIterator[None]:
        """Serve embeddings."""
        config = EmbeddingConfig(
            listen=self.embedding_address,
            cache_dir=self.folder / "embedding",
            intra_op_threads=1,
            drain_grace_s=0.2,
        )
        async with AsyncClient(registry=self.registry_address, options=ClientOptions()) as upstream:
            snapshots = AsyncSnapshots(upstream.registry, config.cache_dir / "models")
            try:
                async with (
                    open_embedding(config, EmbeddingModels(upstream.registry, snapshots)) as service,
                    running_server([service.registration], config, service="embedding"),
                ):
                    yield
            finally:
                snapshots.close()

    @asynccontextmanager
    async def segmentation(self, **settings: object) -> AsyncIterator["Serving"]:
        """Serve segmentation with ``settings`` over those that suit a test."""
        values: dict[str, object] = {
            "listen": "127.0.0.1:0",
            "cache_dir": self.folder / "segmentation",
            "default_segmenter": "artifacts/tiny-segmenter",
            "default_feature_encoder": "artifacts/tiny-encoder",
            "embedding_precision": "float32",
            "refines": "never",  # the tiny decoder adds a box to what it is refined from, so its masks would grow
            "intra_op_threads": 1,
            "drain_grace_s": 0.2,
        }
        config = SegmentationConfig(**(values | settings))  # type: ignore[arg-type]
        addresses = {"registry": self.registry_address, "embedding": self.embedding_address}
        async with AsyncClient(**addresses, options=client_options(config)) as upstream:
            snapshots = AsyncSnapshots(upstream.registry, config.cache_dir / "models")
            source = ClientModels(upstream.registry, snapshots, config.cache_dir / "encoders")
            store = ClientPromptSets(upstream.registry, snapshots, config.cache_dir / "names")
            embedder = GrpcEmbedding(upstream.embedding, config.embedding_precision)
            try:
                async with (
                    open_segmentation(config, source, store, embedder) as service,
                    running_server(
                        [service.registration], config, service="segmentation", served_models=service.served_models
                    ) as server,
                    AsyncClient(
                        segmentation=server.address, registry=self.registry_address, options=ClientOptions()
                    ) as client,
                ):
                    yield Serving(client, service, server.address)
            finally:
                snapshots.close()

    async def publish_model(
        self, folder: Path, artifact_id: str, *, image_encoder: Version | None = None, production: bool = True
    ) -> Version:
        """Publish a folder with ``model.json``; a segmenter names its encoder."""
        lineage = ()
        if image_encoder is not None:
            lineage = (Lineage("image_encoder", image_encoder.name, image_encoder.digest),)
        async with AsyncClient(registry=self.registry_address, options=ClientOptions()) as client:
            return await client.registry.publish_files(
                {path.name: path for path in folder.iterdir()},
                artifact_id,
                "encoder" if image_encoder is None else "segmenter",
                lineage=lineage,
                metrics=tiny_models.OWN_REFERENCE,
                alias="production" if production else None,
            )

    async def publish_adapter(
        self, artifact_id: str, shift: float, *, base: Version | None = None, alias: str = "production"
    ) -> Version:
        """Publish an adapter that adds ``shift`` to every logit of the tiny segmenter, or says that it is for ``base``.

        An empty alias moves none.
        """
        folder = self.folder / f"adapter-{uuid.uuid4().hex}"
        tiny_models.write_adapter(folder, shift)
        return await self.publish_adapter_files(folder, artifact_id, base=base, alias=alias)

    async def publish_adapter_files(
        self, folder: Path, artifact_id: str, *, base: Version | None = None, alias: str = "production"
    ) -> Version:
        """Publish a folder as an adapter version."""
        async with AsyncClient(registry=self.registry_address, options=ClientOptions()) as client:
            base = base or await client.registry.get_version("artifacts/tiny-segmenter")
            return await client.registry.publish_files(
                {path.name: path for path in folder.iterdir()},
                artifact_id,
                "adapter",
                lineage=(Lineage("segmenter", base.name, base.digest),),
                metrics=tiny_models.OWN_REFERENCE,
                alias=alias or None,
            )

    async def publish_tiny_models(self) -> tuple[Version, Version]:
        """Publish the tiny encoder and segmenter."""
        folder = self.folder / f"models-{uuid.uuid4().hex}"
        tiny_models.write_encoder(folder / "encoder")
        tiny_models.write_segmenter(folder / "segmenter")
        encoder = await self.publish_model(folder / "encoder", "tiny-encoder")
        segmenter = await self.publish_model(folder / "segmenter", "tiny-segmenter", image_encoder=encoder)
        return encoder, segmenter


@dataclass
class Serving:
    """A running segmentation service."""

    client: AsyncClient
    service: SegmentationService
    address: str


@asynccontextmanager
async def tiny_site(folder: Path, **settings: object) -> AsyncIterator[tuple[Site, Serving]]:
    """Run all three with the tiny models."""
    site = Site(folder)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(site.registry.running())
        await site.publish_tiny_models()
        await stack.enter_async_context(site.embedding())
        yield site, await stack.enter_async_context(site.segmentation(**settings))


def scene(
    *blobs: tuple[int, int, int, tuple[int, int, int]], size_hw: tuple[int, int] = (96, 128), seed: int = 0
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return a grey picture with discs (x, y, radius, colour), and where the first colour is."""
    noise = np.random.default_rng(seed).integers(-8, 9, (*size_hw, 1))
    picture = np.clip(np.array(GREY) + noise, 0, 255).astype(np.uint8)
    y, x = np.mgrid[: size_hw[0], : size_hw[1]]
    mask = np.zeros(size_hw, np.bool_)
    for centre_x, centre_y, radius, colour in blobs:
        inside = (x - centre_x) ** 2 + (y - centre_y) ** 2 <= radius**2
        picture[inside] = colour
        if colour == blobs[0][3]:
            mask |= inside
    return picture, mask


def as_png(picture: NDArray[np.uint8]) -> bytes:
    """Return an RGB picture as a PNG file."""
    return bytes(cv2.imencode(".png", picture[..., ::-1])[1].tobytes())


def iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Return intersection over union; 1 for two empty masks."""
    either = int((a | b).sum())
    return int((a & b).sum()) / either if either else 1.0
