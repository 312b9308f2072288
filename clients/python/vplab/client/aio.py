"""The asyncio client."""

from functools import cached_property
from types import TracebackType

import grpc.aio
from grpc_health.v1 import health_pb2_grpc

from vplab.api.embedding.v1.embedding_service_pb2_grpc import EmbeddingServiceStub
from vplab.api.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from vplab.api.runtime.v1.runtime_service_pb2_grpc import RuntimeServiceStub
from vplab.api.segmentation.v1.segmentation_service_pb2_grpc import SegmentationServiceStub
from vplab.api.training.v1.training_service_pb2_grpc import TrainingServiceStub
from vplab.client.calls import Calls
from vplab.client.channels import open_channel
from vplab.client.embedding.area import AsyncEmbedding
from vplab.client.options import Area, ClientOptions, missing_address, resolve_addresses
from vplab.client.registry.area import AsyncRegistry
from vplab.client.replicas import AsyncReplica
from vplab.client.segmentation.area import AsyncSegmentation
from vplab.client.training.area import AsyncTraining


class AsyncClient:
    """All services behind one object, each at its own address.

    An area's address comes from its argument, else from ``address``, else from VPLAB_<AREA>_ADDRESS, else from
    VPLAB_ADDRESS; an area without one can be left unused. Channels open at the first call and belong to the event loop
    that makes it. Close the client, or use it as an ``async with`` block.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        registry: str | None = None,
        embedding: str | None = None,
        segmentation: str | None = None,
        training: str | None = None,
        options: ClientOptions | None = None,
    ) -> None:
        """Name the addresses (``host:port``, ``unix:/path``, ``dns:///host:port``); nothing connects yet.

        options: as the environment says unless given.
        """
        named: dict[Area, str | None] = {
            "registry": registry,
            "embedding": embedding,
            "segmentation": segmentation,
            "training": training,
        }
        self.addresses = resolve_addresses(named, address)
        self.options = ClientOptions.from_environment() if options is None else options
        self._channels: dict[Area, grpc.aio.Channel] = {}

    @cached_property
    def registry(self) -> AsyncRegistry:
        """Artifacts, versions, aliases and blobs. Raises InvalidInput without an address."""
        return AsyncRegistry(self._calls("registry"), RegistryServiceStub(self._channel("registry")))

    @cached_property
    def embedding(self) -> AsyncEmbedding:
        """Image embeddings. Raises InvalidInput without an address."""
        return AsyncEmbedding(self._calls("embedding"), EmbeddingServiceStub(self._channel("embedding")))

    @cached_property
    def segmentation(self) -> AsyncSegmentation:
        """Masks from prompts and from prompt sets. Raises InvalidInput without an address."""
        return AsyncSegmentation(self._calls("segmentation"), SegmentationServiceStub(self._channel("segmentation")))

    @cached_property
    def training(self) -> AsyncTraining:
        """Tuning jobs. Raises InvalidInput without an address."""
        return AsyncTraining(self._calls("training"), TrainingServiceStub(self._channel("training")))

    def replica(self, area: Area) -> AsyncReplica:
        """Return health and self-description of the server of an area. Raises InvalidInput without an address."""
        channel = self._channel(area)
        return AsyncReplica(self._calls(area), RuntimeServiceStub(channel), health_pb2_grpc.HealthStub(channel))

    async def close(self) -> None:
        """Close every connection; calls in progress end as Cancelled."""
        channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            await channel.close(None)

    async def __aenter__(self) -> "AsyncClient":
        """Return the client."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the client."""
        await self.close()

    def _address(self, area: Area) -> str:
        if area not in self.addresses:
            raise missing_address(area)
        return self.addresses[area]

    def _calls(self, area: Area) -> Calls:
        return Calls(area, self._address(area), self.options)

    def _channel(self, area: Area) -> grpc.aio.Channel:
        if area not in self._channels:
            self._channels[area] = open_channel(area, self._address(area), self.options)
        return self._channels[area]
