"""Puts a registry together from its settings: which database, which store, which threads."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import structlog

from vplab.api.registry.v1 import registry_service_pb2_grpc as pb_grpc
from vplab.errors import FailedPrecondition, VPLabError
from vplab.registry.alias_feed import AliasFeed
from vplab.registry.backends.file_blobs import FileBlobs
from vplab.registry.backends.file_uploads import FileUploads
from vplab.registry.backends.sql_catalog import SqlCatalog
from vplab.registry.backends.sql_migrations import migrate
from vplab.registry.builtin_models import publish_builtin_models
from vplab.registry.config import RegistryConfig
from vplab.registry.core.registry import Registry
from vplab.registry.errors import StoreUnavailable
from vplab.registry.offload import Offload
from vplab.registry.ports import BlobStore
from vplab.registry.servicer import RegistryServicer
from vplab.runtime.database import open_engine
from vplab.runtime.server import Registration, StartError

if TYPE_CHECKING:
    from sqlalchemy import Engine

SERVICE_NAME: Final = "vplab.api.registry.v1.RegistryService"

RETRY_S: Final = 1.0
"""Between attempts to reach a database at the start."""

_log = structlog.get_logger(__name__)


@dataclass
class RegistryService:
    """A registry ready to be added to a server."""

    registration: Registration
    registry: Registry
    config: RegistryConfig
    _engine: "Engine"
    _work: Offload
    _collector: "asyncio.Task[None] | None" = None

    async def ready(self) -> None:
        """Bring the database up to date, publish the built-in models, start collecting.

        Waits for a database or object store that does not answer yet, as happens when a whole cluster starts.
        Raises StartError if the database's schema is not ours.
        """
        while True:
            try:
                await self._work(self._prepare)
                break
            except StoreUnavailable as error:
                _log.warning("not ready, trying again", error=error.message)
                await asyncio.sleep(RETRY_S)
            except FailedPrecondition as error:
                raise StartError(error.message) from error
        if self.config.gc_interval_hours > 0:
            self._collector = asyncio.create_task(self._collect())

    def _prepare(self) -> None:
        migrate(self._engine)
        if self.config.builtin_models:
            versions = publish_builtin_models(self.registry)
            _log.info("built-in models", versions=[str(version.key) for version in versions])

    async def _collect(self) -> None:
        while True:
            await asyncio.sleep(timedelta(hours=self.config.gc_interval_hours).total_seconds())
            try:
                report = await self._work(self.registry.garbage.collect)
            except VPLabError as error:
                _log.warning("garbage collection failed", error=error.message)
                continue
            _log.info(
                "garbage collected",
                artifacts=len(report.artifact_ids),
                blobs=len(report.blob_digests),
                freed_bytes=report.freed_bytes,
            )

    async def stop(self) -> None:
        """Stop collecting."""
        if self._collector is not None:
            self._collector.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._collector


@asynccontextmanager
async def open_registry(config: RegistryConfig) -> AsyncIterator[RegistryService]:
    """Open a registry while the context lasts. Raises InvalidInput for a URL that is not supported."""
    engine = open_engine(config.database_url, connections=config.threads * 2)
    catalog = SqlCatalog(engine)
    registry = Registry(catalog, open_blob_store(config), FileUploads(config.upload_folder), config.retention)
    catalog_work = Offload("registry-catalog", config.threads)
    blob_work = Offload("registry-blobs", config.threads)
    feed = AliasFeed(registry.aliases, catalog_work, poll_s=config.watch_poll_s, heartbeat_s=config.watch_heartbeat_s)
    servicer = RegistryServicer(registry, feed, catalog_work, blob_work)
    registration = Registration(
        SERVICE_NAME, lambda server: pb_grpc.add_RegistryServiceServicer_to_server(servicer, server)
    )
    service = RegistryService(registration, registry, config, engine, blob_work)
    try:
        yield service
    finally:
        await service.stop()
        await asyncio.to_thread(catalog_work.close)
        await asyncio.to_thread(blob_work.close)
        catalog.close()


def open_blob_store(config: RegistryConfig) -> BlobStore:
    if config.blob_folder is not None:
        return FileBlobs(config.blob_folder)
    from vplab.registry.backends.obstore_blobs import ObstoreBlobs, open_bucket

    return ObstoreBlobs(open_bucket(config.blob_url, allow_http=config.allows_http))
