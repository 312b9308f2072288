"""The RPCs of TrainingService: check, convert, call the core, convert back."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from vplab.api.training.v1 import training_service_pb2 as pb
from vplab.api.training.v1 import training_service_pb2_grpc as pb_grpc
from vplab.training import convert
from vplab.training.core.exports import ExportJobs
from vplab.training.core.tuning_jobs import TuningJobs


class TrainingServicer(pb_grpc.TrainingServiceServicer):
    """Speaks the contract; decides nothing."""

    def __init__(self, jobs: TuningJobs, exports: ExportJobs) -> None:
        self._jobs = jobs
        self._exports = exports

    async def CreateTuningJob(self, request: pb.CreateTuningJobRequest, context: Any) -> pb.CreateTuningJobResponse:
        job = await self._jobs.create(convert.draft(request))
        return pb.CreateTuningJobResponse(job=convert.job(job))

    async def GetTuningJob(self, request: pb.GetTuningJobRequest, context: Any) -> pb.GetTuningJobResponse:
        job = await self._jobs.get(convert.job_id(request.name))
        return pb.GetTuningJobResponse(job=convert.job(job))

    async def ListTuningJobs(self, request: pb.ListTuningJobsRequest, context: Any) -> pb.ListTuningJobsResponse:
        before = convert.page_position(request.page_token)
        jobs, rest = await self._jobs.list_page(convert.page_size(request.page_size), before)
        token = "" if rest is None else str(rest)
        return pb.ListTuningJobsResponse(jobs=[convert.job(job) for job in jobs], next_page_token=token)

    async def CancelTuningJob(self, request: pb.CancelTuningJobRequest, context: Any) -> pb.CancelTuningJobResponse:
        job = await self._jobs.cancel(convert.job_id(request.name))
        return pb.CancelTuningJobResponse(job=convert.job(job))

    async def WatchTuningJob(
        self, request: pb.WatchTuningJobRequest, context: Any
    ) -> AsyncIterator[pb.WatchTuningJobResponse]:
        job_id, after = convert.job_id(request.name), convert.position(request.from_sequence)
        async with aclosing(self._jobs.watch(job_id, after)) as events:
            async for event in events:
                yield convert.event(event)

    async def CreateExportJob(self, request: pb.CreateExportJobRequest, context: Any) -> pb.CreateExportJobResponse:
        job = await self._exports.create(convert.export_draft(request))
        return pb.CreateExportJobResponse(job=convert.export_job(job))

    async def GetExportJob(self, request: pb.GetExportJobRequest, context: Any) -> pb.GetExportJobResponse:
        job = await self._exports.get(convert.export_job_id(request.name))
        return pb.GetExportJobResponse(job=convert.export_job(job))
