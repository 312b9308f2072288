"""The synchronous client: the asyncio one, driven from an event loop in a thread of its own.

There is no second implementation: each method below is the asyncio method, and keeps its signature and documentation.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from functools import cached_property, update_wrapper
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from vplab.client.aio import AsyncClient
from vplab.client.embedding.area import AsyncEmbedding
from vplab.client.options import Area, ClientOptions
from vplab.client.registry.area import AsyncRegistry
from vplab.client.replicas import AsyncReplica
from vplab.client.segmentation.area import AsyncSegmentation
from vplab.client.training.area import AsyncTraining
from vplab.errors import FailedPrecondition

P = ParamSpec("P")
Result = TypeVar("Result")
AsyncArea = TypeVar("AsyncArea")
Self = TypeVar("Self", bound="_Area[Any]")

_DONE = object()


class _Loop:
    """An event loop in a daemon thread, started by the first call."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="vplab-client", daemon=True)
        self._lock = threading.Lock()

    def wait_for(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine to its end; an interrupt of the waiting thread cancels it."""
        with self._lock:
            if self._loop.is_closed():
                work.close()
                raise FailedPrecondition("the client is closed")
            if not self._thread.is_alive():
                self._thread.start()
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    @property
    def is_closed(self) -> bool:
        return self._loop.is_closed()

    def stop(self) -> None:
        """End the loop and its thread."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._loop.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())


class _Area(Generic[AsyncArea]):
    def __init__(self, area: AsyncArea, loop: _Loop) -> None:
        self._area = area
        self._loop = loop


def _call(
    method: Callable[Concatenate[AsyncArea, P], Coroutine[Any, Any, Result]],
) -> Callable[Concatenate[_Area[AsyncArea], P], Result]:
    def call(self: _Area[AsyncArea], /, *args: P.args, **kwargs: P.kwargs) -> Result:
        return self._loop.wait_for(method(self._area, *args, **kwargs))

    update_wrapper(call, method)
    return call


def _stream(
    method: Callable[Concatenate[AsyncArea, P], AsyncIterator[Result]],
) -> Callable[Concatenate[_Area[AsyncArea], P], Iterator[Result]]:
    def iterate(self: _Area[AsyncArea], /, *args: P.args, **kwargs: P.kwargs) -> Iterator[Result]:
        iterator = method(self._area, *args, **kwargs)

        async def next_or_done() -> Any:
            return await anext(iterator, _DONE)

        async def close() -> None:
            await iterator.aclose()  # type: ignore[attr-defined]

        try:
            while (item := self._loop.wait_for(next_or_done())) is not _DONE:
                yield item
        finally:
            self._loop.wait_for(close())

    update_wrapper(iterate, method)
    return iterate


class Registry(_Area[AsyncRegistry]):
    """Calls of the registry service; see ``AsyncRegistry``."""

    create_artifact = _call(AsyncRegistry.create_artifact)
    get_artifact = _call(AsyncRegistry.get_artifact)
    list_artifacts = _stream(AsyncRegistry.list_artifacts)
    delete_artifact = _call(AsyncRegistry.delete_artifact)
    undelete_artifact = _call(AsyncRegistry.undelete_artifact)
    query_upload = _call(AsyncRegistry.query_upload)
    upload_file = _call(AsyncRegistry.upload_file)
    upload_bytes = _call(AsyncRegistry.upload_bytes)
    download_file = _call(AsyncRegistry.download_file)
    read_blob = _call(AsyncRegistry.read_blob)
    publish_version = _call(AsyncRegistry.publish_version)
    publish_files = _call(AsyncRegistry.publish_files)
    get_version = _call(AsyncRegistry.get_version)
    list_versions = _stream(AsyncRegistry.list_versions)
    set_alias = _call(AsyncRegistry.set_alias)
    list_aliases = _call(AsyncRegistry.list_aliases)
    list_alias_changes = _stream(AsyncRegistry.list_alias_changes)
    watch_aliases = _stream(AsyncRegistry.watch_aliases)
    create_lease = _call(AsyncRegistry.create_lease)
    renew_lease = _call(AsyncRegistry.renew_lease)
    delete_lease = _call(AsyncRegistry.delete_lease)
    collect_garbage = _call(AsyncRegistry.collect_garbage)


class Embedding(_Area[AsyncEmbedding]):
    """Calls of the embedding service; see ``AsyncEmbedding``."""

    list_encoders = _stream(AsyncEmbedding.list_encoders)
    embed_image = _call(AsyncEmbedding.embed_image)
    embed_images = _stream(AsyncEmbedding.embed_images)
    get_embedding = _call(AsyncEmbedding.get_embedding)
    precompute = _call(AsyncEmbedding.precompute)
    get_precompute_job = _call(AsyncEmbedding.get_precompute_job)
    list_precompute_jobs = _stream(AsyncEmbedding.list_precompute_jobs)
    cancel_precompute_job = _call(AsyncEmbedding.cancel_precompute_job)


class Segmentation(_Area[AsyncSegmentation]):
    """Calls of the segmentation service; see ``AsyncSegmentation``."""

    predict_masks = _call(AsyncSegmentation.predict_masks)
    create_prompt_set = _call(AsyncSegmentation.create_prompt_set)
    get_prompt_set = _call(AsyncSegmentation.get_prompt_set)
    list_prompt_sets = _stream(AsyncSegmentation.list_prompt_sets)
    segment_image = _call(AsyncSegmentation.segment_image)
    segment_images = _stream(AsyncSegmentation.segment_images)


class Training(_Area[AsyncTraining]):
    """Calls of the training service; see ``AsyncTraining``."""

    create_tuning_job = _call(AsyncTraining.create_tuning_job)
    get_tuning_job = _call(AsyncTraining.get_tuning_job)
    list_tuning_jobs = _stream(AsyncTraining.list_tuning_jobs)
    cancel_tuning_job = _call(AsyncTraining.cancel_tuning_job)
    watch_tuning_job = _stream(AsyncTraining.watch_tuning_job)
    create_export_job = _call(AsyncTraining.create_export_job)
    get_export_job = _call(AsyncTraining.get_export_job)


class Replica(_Area[AsyncReplica]):
    """Health and self-description of one server; see ``AsyncReplica``."""

    info = _call(AsyncReplica.info)
    health = _call(AsyncReplica.health)


class Client:
    """All services behind one object, each at its own address, for programs without asyncio.

    Addresses and options as in ``AsyncClient``. Safe to use from several threads. Close it, or use it as a ``with``
    block.
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
        """Name the addresses; nothing connects yet."""
        self._client = AsyncClient(
            address,
            registry=registry,
            embedding=embedding,
            segmentation=segmentation,
            training=training,
            options=options,
        )
        self._loop = _Loop()

    @property
    def addresses(self) -> Mapping[Area, str]:
        """The address of each area that has one."""
        return self._client.addresses

    @cached_property
    def registry(self) -> Registry:
        """Artifacts, versions, aliases and blobs. Raises InvalidInput without an address."""
        return Registry(self._made(lambda: self._client.registry), self._loop)

    @cached_property
    def embedding(self) -> Embedding:
        """Image embeddings. Raises InvalidInput without an address."""
        return Embedding(self._made(lambda: self._client.embedding), self._loop)

    @cached_property
    def segmentation(self) -> Segmentation:
        """Masks from prompts and from prompt sets. Raises InvalidInput without an address."""
        return Segmentation(self._made(lambda: self._client.segmentation), self._loop)

    @cached_property
    def training(self) -> Training:
        """Tuning jobs. Raises InvalidInput without an address."""
        return Training(self._made(lambda: self._client.training), self._loop)

    def wait_for(self, work: Callable[[AsyncClient], Coroutine[Any, Any, Result]]) -> Result:
        """Run a coroutine function on the asyncio client, for what takes one, such as ``publish_dataset``."""
        return self._loop.wait_for(work(self._client))

    def replica(self, area: Area) -> Replica:
        """Return health and self-description of the server of an area. Raises InvalidInput without an address."""
        return Replica(self._made(lambda: self._client.replica(area)), self._loop)

    def close(self) -> None:
        """Close every connection and the client's thread; doing it twice does nothing."""
        if not self._loop.is_closed:
            self._loop.wait_for(self._client.close())
            self._loop.stop()

    def __enter__(self) -> "Client":
        """Return the client."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the client."""
        self.close()

    def _made(self, make: Callable[[], Result]) -> Result:
        # gRPC binds a channel to the running loop, so channels are opened on the loop that will use them.
        async def on_the_loop() -> Result:
            return make()

        return self._loop.wait_for(on_the_loop())
