"""Puts the service together from its settings and backends; ``__main__`` and tests start here."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import structlog

from vplab.api.training.v1 import training_service_pb2_grpc as pb_grpc
from vplab.errors import FailedPrecondition, InvalidInput, Unavailable
from vplab.runtime.background import Background
from vplab.runtime.server import Registration, StartError
from vplab.runtime.server_info import instance
from vplab.runtime.settings import SettingsError
from vplab.training.backends.sql_exports import SqlExports
from vplab.training.backends.sql_jobs import SqlJobs
from vplab.training.config import TrainingConfig
from vplab.training.core.exports import Exporter, ExportJobs
from vplab.training.core.trainer import Trainer
from vplab.training.core.tuning_jobs import TuningJobs
from vplab.training.core.wake_up import WakeUp
from vplab.training.ports import BundleMaker, DatasetSource, Executor, ModelSource
from vplab.training.servicer import TrainingServicer

SERVICE_NAME = "vplab.api.training.v1.TrainingService"
_RETRY_S = 1.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class TrainingService:
    """Everything the server frame needs to serve."""

    registration: Registration
    _store: SqlJobs
    _trainers: tuple[Trainer | Exporter, ...]
    _background: Background
    _warm_up: Callable[[], Coroutine[Any, Any, None]] | None

    async def ready(self) -> None:
        """Bring the job queue's schema up to date, waiting for a database that is away, and begin to work on jobs.

        Raises StartError if the schema is of a newer release.
        """
        while True:
            try:
                await self._store.open()
                break
            except Unavailable as error:
                _log.warning("not_ready", error=error.message)
                await asyncio.sleep(_RETRY_S)
            except FailedPrecondition as error:
                raise StartError(error.message) from error
        if self._warm_up is not None:
            self._background.start("warm-up", self._warm_up())
        for trainer in self._trainers:
            self._background.start(trainer.owner, trainer.run())


@asynccontextmanager
async def open_training(
    config: TrainingConfig,
    datasets: DatasetSource,
    models: ModelSource,
    executor: Executor,
    bundles: BundleMaker,
    warm_up: Callable[[], Coroutine[Any, Any, None]] | None = None,
) -> AsyncIterator[TrainingService]:
    """Open the job queue; work on it once ``ready`` was awaited, and stop at the end.

    warm_up: done beside the work once the service is ready. The executor is the caller's to close, afterwards.
    Raises StartError if the cache folder cannot be used, SettingsError for a database of an unknown kind.
    """
    try:
        await asyncio.to_thread(config.cache_dir.mkdir, parents=True, exist_ok=True)
    except OSError as error:
        raise StartError(f"cannot use {config.cache_dir}: {error.strerror or error}") from error
    async with AsyncExitStack() as stack:
        try:
            store = SqlJobs(config.job_database_url, keep_jobs=config.keep_jobs)
        except InvalidInput as error:
            raise SettingsError(f"VPLAB_TRAINING_DATABASE_URL: {error.message}") from error
        stack.push_async_callback(store.close)
        wake_up, cancelled = WakeUp(), WakeUp()
        jobs = TuningJobs(
            store,
            datasets,
            models,
            executor,
            wake_up,
            cancelled,
            default_segmenter=config.default_segmenter,
            default_feature_encoder=config.default_feature_encoder,
            poll_s=config.poll_s,
        )
        trainers = tuple(
            Trainer(
                store,
                models,
                executor,
                wake_up,
                cancelled,
                owner=f"{instance()}/{slot}",
                lease_s=config.lease_s,
                poll_s=config.poll_s,
                max_claims=config.max_claims,
            )
            for slot in range(executor.num_slots)
        )
        exports, ordered = SqlExports(store), WakeUp()
        exporter = Exporter(
            exports,
            bundles,
            ordered,
            owner=f"{instance()}/exporter",
            lease_s=config.lease_s,
            poll_s=config.poll_s,
            max_claims=config.max_claims,
        )
        background = Background()
        stack.push_async_callback(background.close)
        servicer = TrainingServicer(jobs, ExportJobs(exports, bundles, ordered))

        def add(server: Any) -> None:
            pb_grpc.add_TrainingServiceServicer_to_server(servicer, server)

        workers: tuple[Trainer | Exporter, ...] = (*trainers, exporter) if config.trains else trainers
        yield TrainingService(Registration(SERVICE_NAME, add), store, workers, background, warm_up)
