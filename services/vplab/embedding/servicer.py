"""The RPCs of EmbeddingService: check, convert, call the core, convert back."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import structlog

from vplab.api.embedding.v1 import embedding_service_pb2 as pb
from vplab.api.embedding.v1 import embedding_service_pb2_grpc as pb_grpc
from vplab.embedding import convert
from vplab.embedding.core import EmbeddingCore, Urgency
from vplab.embedding.jobs import PrecomputeJobs
from vplab.embedding.streams import StreamLimits, answer_each
from vplab.errors import Internal, InvalidInput, ResourceExhausted, VPLabError
from vplab.runtime import request as current
from vplab.runtime.device_queue import Priority
from vplab.wire.names import parse_embedding_name

_log = structlog.get_logger(__name__)

# 64 images are enough to keep every thread and the device busy; large ones are held back by their bytes.
STREAM_LIMITS: Final = StreamLimits(max_in_flight=64, max_bytes=64 << 20)
_MAX_PAUSE_S: Final = 0.2
_MAX_ITEM_ID: Final = 200


class EmbeddingServicer(pb_grpc.EmbeddingServiceServicer):
    """Speaks the contract; decides nothing."""

    def __init__(self, core: EmbeddingCore, jobs: PrecomputeJobs, max_send_bytes: int) -> None:
        self._core = core
        self._jobs = jobs
        self._max_send_bytes = max_send_bytes

    async def ListEncoders(self, request: pb.ListEncodersRequest, context: Any) -> pb.ListEncodersResponse:
        encoders = await self._core.directory.list_encoders()
        page, token = convert.page_of_encoders(encoders, convert.page_size(request.page_size), request.page_token)
        return pb.ListEncodersResponse(encoders=[convert.encoder(e) for e in page], next_page_token=token)

    async def EmbedImage(self, request: pb.EmbedImageRequest, context: Any) -> pb.EmbedImageResponse:
        return await self._embed(request, _urgency(Priority.INTERACTIVE))

    async def EmbedImages(
        self, requests: AsyncIterator[pb.EmbedImagesRequest], context: Any
    ) -> AsyncIterator[pb.EmbedImagesResponse]:
        outstanding: set[str] = set()
        # A stream is a machine's, or a folder's: whoever clicks goes first.
        urgency = _urgency(Priority.INLINE)

        async def answer(request: pb.EmbedImagesRequest) -> pb.EmbedImagesResponse:
            item_id = request.item_id
            if not 1 <= len(item_id) <= _MAX_ITEM_ID:
                raise InvalidInput(f"is required, and at most {_MAX_ITEM_ID} characters", field="item_id")
            if item_id in outstanding:
                raise InvalidInput(f"{item_id!r} is the id of an item that is not answered yet", field="item_id")
            outstanding.add(item_id)
            try:
                response = await self._embed_patiently(request.request, urgency)
            except Exception as error:
                return pb.EmbedImagesResponse(item_id=item_id, error=convert.item_error(item_id, _as_ours(error)))
            finally:
                outstanding.discard(item_id)
            return pb.EmbedImagesResponse(item_id=item_id, response=response)

        async for response in answer_each(requests, answer, STREAM_LIMITS, pb.EmbedImagesRequest.ByteSize):
            yield response

    async def GetEmbedding(
        self, request: pb.GetEmbeddingRequest, context: Any
    ) -> AsyncIterator[pb.GetEmbeddingResponse]:
        found = await self._core.get(parse_embedding_name(request.name, field="name"))
        wanted = convert.roles(request.output_roles, field="output_roles")
        for part in convert.embedding_parts(found, wanted):
            yield part

    async def PrecomputeEmbeddings(
        self, request: pb.PrecomputeEmbeddingsRequest, context: Any
    ) -> pb.PrecomputeEmbeddingsResponse:
        dataset, blobs = convert.job_images(request)
        job = await self._jobs.create(
            dataset=dataset,
            blobs=blobs,
            encoders=convert.encoder_names(request.encoders, field="encoders"),
            precision=convert.precision(request.precision, field="precision"),
            request_id=convert.request_id(request.request_id),
        )
        return pb.PrecomputeEmbeddingsResponse(job=convert.job(job))

    async def GetPrecomputeJob(self, request: pb.GetPrecomputeJobRequest, context: Any) -> pb.GetPrecomputeJobResponse:
        job = await self._jobs.get(convert.job_id(request.name))
        return pb.GetPrecomputeJobResponse(job=convert.job(job))

    async def ListPrecomputeJobs(
        self, request: pb.ListPrecomputeJobsRequest, context: Any
    ) -> pb.ListPrecomputeJobsResponse:
        before = convert.page_position(request.page_token)
        jobs, rest = await self._jobs.list_page(convert.page_size(request.page_size), before)
        token = "" if rest is None else str(rest)
        return pb.ListPrecomputeJobsResponse(jobs=[convert.job(job) for job in jobs], next_page_token=token)

    async def CancelPrecomputeJob(
        self, request: pb.CancelPrecomputeJobRequest, context: Any
    ) -> pb.CancelPrecomputeJobResponse:
        job = await self._jobs.cancel(convert.job_id(request.name))
        return pb.CancelPrecomputeJobResponse(job=convert.job(job))

    async def _embed_patiently(self, request: pb.EmbedImageRequest, urgency: Urgency) -> pb.EmbedImageResponse:
        """Wait where a single call would be refused: a stream is held up by not being read."""
        while True:
            try:
                return await self._embed(request, urgency)
            except ResourceExhausted as error:
                if error.reason != ResourceExhausted.default_reason:
                    raise
                await asyncio.sleep(min(error.retry_after_s or _MAX_PAUSE_S, _MAX_PAUSE_S))

    async def _embed(self, request: pb.EmbedImageRequest, urgency: Urgency) -> pb.EmbedImageResponse:
        image = convert.image(request.image, field="image")
        names = convert.encoder_names(request.encoders, field="encoders")
        precision = convert.precision(request.precision, field="precision")
        wanted = convert.roles(request.output_roles, field="output_roles")
        encoders = await self._core.resolve(names)
        if request.include_tensors:
            convert.check_answer_fits(encoders, precision, wanted, self._max_send_bytes)
        found = await self._core.embed(image, encoders, precision, urgency)
        return convert.embed_response(found, wanted if request.include_tensors else None)


def _urgency(own: Priority) -> Urgency:
    return Urgency(current.take_priority(own), current.deadline(), current.client())


def _as_ours(error: Exception) -> VPLabError:
    """Return what one item's failure may say; the text of a foreign exception stays in the log."""
    if isinstance(error, VPLabError):
        return error
    _log.error("item_failed", exc_info=error)
    return Internal(f"internal error; request id {current.request_id()} finds it in the log")
