"""A training service without a trainer: jobs follow a script. For tests of what is around it."""

import threading
import uuid
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np

from fakes.segmentation_server import refusing
from vplab.api.training.v1 import training_service_pb2 as pb
from vplab.api.training.v1 import training_service_pb2_grpc as pb_grpc
from vplab.api.vision.v1 import vision_pb2
from vplab.errors import AlreadyExists, NotFound, Unavailable, VPLabError
from vplab.wire.masks import mask_to_proto

NUM_STEPS = 4


class FakeTraining(pb_grpc.TrainingServiceServicer):
    """Each job tells of ``NUM_STEPS`` steps and succeeds, unless ``fails_with`` says why not.

    ``hold`` keeps jobs before their last step until it is set; ``breaks`` counts how many streams break after two
    events each; ``refuses`` is raised at creation.
    """

    def __init__(self) -> None:
        self.requests: list[pb.CreateTuningJobRequest] = []
        self.jobs: dict[str, pb.TuningJob] = {}
        self.watched_from: list[int] = []
        self.hold = threading.Event()
        self.hold.set()
        self.is_held = threading.Event()
        self.breaks = 0
        self.fails_with = ""
        self.promotion = ""
        self.metrics = {"validation_iou_before": 0.5, "validation_iou_after": 0.8}
        self.adapter_digest = "c" * 64
        self.refuses: VPLabError | None = None
        self._by_request: dict[str, str] = {}

    def CreateTuningJob(self, request: Any, context: grpc.ServicerContext) -> Any:
        with refusing(context):
            if self.refuses is not None:
                raise self.refuses
            self.requests.append(request)
            uuid.UUID(request.request_id)
            known = self._by_request.get(request.request_id)
            if known is not None:
                first = next(r for r in self.requests if r.request_id == request.request_id)
                if first != request:
                    raise AlreadyExists("other content", reason="REQUEST_ID_REUSED")
                return pb.CreateTuningJobResponse(job=self.jobs[known])
            name = f"tuningJobs/{len(self.jobs) + 1}"
            self.jobs[name] = pb.TuningJob(
                name=name,
                state=pb.JOB_STATE_QUEUED,
                stage=pb.TUNING_STAGE_QUEUE,
                method=request.method or pb.TUNING_METHOD_E_PEFT,
                options=request.options,
                adapter_id=request.adapter_id,
                promote_alias=request.promote_alias,
                dataset=vision_pb2.ModelReference(name=request.dataset, digest="a" * 64),
                segmenter=vision_pb2.ModelReference(name="artifacts/fake-segmenter/versions/1", digest="b" * 64),
            )
            self._by_request[request.request_id] = name
            return pb.CreateTuningJobResponse(job=self.jobs[name])

    def GetTuningJob(self, request: Any, context: grpc.ServicerContext) -> Any:
        with refusing(context):
            return pb.GetTuningJobResponse(job=self._job(request.name))

    def ListTuningJobs(self, request: Any, context: grpc.ServicerContext) -> Any:
        return pb.ListTuningJobsResponse(jobs=reversed(list(self.jobs.values())))

    def CancelTuningJob(self, request: Any, context: grpc.ServicerContext) -> Any:
        with refusing(context):
            job = self._job(request.name)
            job.state = pb.JOB_STATE_CANCELLED
            self.hold.set()
            return pb.CancelTuningJobResponse(job=job)

    def WatchTuningJob(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        self.watched_from.append(request.from_sequence)
        num_sent = 0
        with refusing(context):
            for event in self._events(self._job(request.name), context):
                if event.sequence <= request.from_sequence:
                    continue
                yield event
                num_sent += 1
                if self.breaks and num_sent == 2:
                    self.breaks -= 1
                    raise Unavailable("the stream broke")

    def _events(self, job: pb.TuningJob, context: grpc.ServicerContext) -> Iterator[pb.WatchTuningJobResponse]:
        if job.state == pb.JOB_STATE_QUEUED:
            job.state, job.stage = pb.JOB_STATE_RUNNING, pb.TUNING_STAGE_TRAIN
        yield pb.WatchTuningJobResponse(sequence=1, state=pb.JOB_STATE_RUNNING, job=job)
        for step in range(1, NUM_STEPS + 1):
            if step == NUM_STEPS:
                self.is_held.set()
                while not self.hold.wait(0.02):
                    if not context.is_active():
                        return
            iou = 0.4 + 0.1 * step if step % 2 == 0 else None
            progress = pb.TuningProgress(step=step, num_steps=NUM_STEPS, loss=1.0 / step, validation_iou=iou)
            yield pb.WatchTuningJobResponse(sequence=1 + step, state=pb.JOB_STATE_RUNNING, progress=progress)
        preview = pb.TuningPreview(file_name="a.png", class_id=1, mask=mask_to_proto(np.ones((2, 2), bool)))
        yield pb.WatchTuningJobResponse(sequence=2 + NUM_STEPS, state=pb.JOB_STATE_RUNNING, preview=preview)
        self._end(job)
        yield pb.WatchTuningJobResponse(sequence=3 + NUM_STEPS, state=job.state, job=job)

    def _end(self, job: pb.TuningJob) -> None:
        if job.state == pb.JOB_STATE_CANCELLED:
            return
        if self.fails_with:
            job.state, job.message = pb.JOB_STATE_FAILED, self.fails_with
            return
        job.state, job.stage = pb.JOB_STATE_SUCCEEDED, pb.TUNING_STAGE_PROMOTE
        job.adapter.CopyFrom(vision_pb2.ModelReference(name="artifacts/tuned/versions/1", digest=self.adapter_digest))
        job.metrics.update(self.metrics)
        job.promotion = self.promotion

    def _job(self, name: str) -> pb.TuningJob:
        if name not in self.jobs:
            raise NotFound(f"{name} does not exist")
        return self.jobs[name]


@contextmanager
def training_in_threads(servicer: FakeTraining) -> Iterator[str]:
    """Serve in threads, for programs that have an event loop of their own; gives the address."""
    server = grpc.server(futures.ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
    pb_grpc.add_TrainingServiceServicer_to_server(servicer, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield address
    finally:
        servicer.hold.set()
        server.stop(None).wait()
