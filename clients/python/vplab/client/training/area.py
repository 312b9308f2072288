"""The training service: validated masks to adapters, adapters to bundles."""

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

from vplab.api.training.v1 import training_service_pb2 as pb
from vplab.api.training.v1 import training_service_pb2_grpc as pb_grpc
from vplab.client.calls import Calls
from vplab.client.pages import PAGE_SIZE, all_pages
from vplab.client.training import convert
from vplab.client.training.values import ExportJob, TuningEvent, TuningJob, TuningRequest

_SHORT_S = 15.0
_CREATE_S = 120.0
_STREAM_S = 86_400.0


class AsyncTraining:
    """Calls of the training service; a server without trainers answers Unimplemented.

    Every method raises the kinds of ``vplab.errors``; ``timeout_s`` overrides the method's default deadline.
    """

    def __init__(self, calls: Calls, stub: pb_grpc.TrainingServiceStub) -> None:
        """Take the calls and the stub of one channel; ``AsyncClient.training`` makes it."""
        self._calls = calls
        self._stub = stub

    async def create_tuning_job(
        self, request: TuningRequest, *, request_id: str | None = None, timeout_s: float | None = None
    ) -> TuningJob:
        """Queue a job after all of its input was checked. Raises InvalidInput, NotFound, FailedPrecondition."""
        return await self._calls.unary(
            self._stub.CreateTuningJob,
            convert.request_to_proto(request, request_id or str(uuid.uuid4())),
            lambda answer: convert.tuning_job(answer.job),
            timeout_s=timeout_s,
            default_s=_CREATE_S,
        )

    async def get_tuning_job(self, name: str, *, timeout_s: float | None = None) -> TuningJob:
        """Return one job. Raises NotFound."""
        return await self._calls.unary(
            self._stub.GetTuningJob,
            pb.GetTuningJobRequest(name=name),
            lambda answer: convert.tuning_job(answer.job),
            timeout_s=timeout_s,
            default_s=_SHORT_S,
        )

    async def list_tuning_jobs(self, *, timeout_s: float | None = None) -> AsyncIterator[TuningJob]:
        """Iterate over the jobs, newest first."""

        async def read_page(token: str) -> tuple[Sequence[TuningJob], str]:
            return await self._calls.unary(
                self._stub.ListTuningJobs,
                pb.ListTuningJobsRequest(page_size=PAGE_SIZE, page_token=token),
                lambda answer: ([convert.tuning_job(m) for m in answer.jobs], answer.next_page_token),
                timeout_s=timeout_s,
                default_s=_SHORT_S,
            )

        async for job in all_pages(read_page):
            yield job

    async def cancel_tuning_job(self, name: str, *, timeout_s: float | None = None) -> TuningJob:
        """End a job; no adapter is published. Raises NotFound."""
        return await self._calls.unary(
            self._stub.CancelTuningJob,
            pb.CancelTuningJobRequest(name=name),
            lambda answer: convert.tuning_job(answer.job),
            timeout_s=timeout_s,
            default_s=_SHORT_S,
        )

    async def watch_tuning_job(
        self, name: str, *, from_sequence: int = 0, timeout_s: float | None = None
    ) -> AsyncIterator[TuningEvent]:
        """Iterate over a job's events after ``from_sequence`` until the terminal one. Raises NotFound, OutOfRange."""
        stream = self._calls.server_stream(
            self._stub.WatchTuningJob,
            pb.WatchTuningJobRequest(name=name, from_sequence=from_sequence),
            timeout_s=timeout_s,
            default_s=_STREAM_S,
        )
        async with aclosing(stream):
            async for answer in stream:
                yield self._calls.converted(answer, convert.tuning_event)

    async def create_export_job(
        self,
        bundle_id: str,
        prompt_set: str,
        *,
        adapter: str = "",
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> ExportJob:
        """Queue the making of a line bundle. Raises InvalidInput, NotFound, FailedPrecondition."""
        request = pb.CreateExportJobRequest(
            bundle_id=bundle_id, prompt_set=prompt_set, adapter=adapter, request_id=request_id or str(uuid.uuid4())
        )
        return await self._calls.unary(
            self._stub.CreateExportJob,
            request,
            lambda answer: convert.export_job(answer.job),
            timeout_s=timeout_s,
            default_s=_SHORT_S,
        )

    async def get_export_job(self, name: str, *, timeout_s: float | None = None) -> ExportJob:
        """Return one export job. Raises NotFound."""
        return await self._calls.unary(
            self._stub.GetExportJob,
            pb.GetExportJobRequest(name=name),
            lambda answer: convert.export_job(answer.job),
            timeout_s=timeout_s,
            default_s=_SHORT_S,
        )
