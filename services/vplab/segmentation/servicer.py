"""The RPCs of SegmentationService: check, convert, call the core, convert back."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, Final, TypeVar

import structlog

from vplab.api.segmentation.v1 import segmentation_service_pb2 as pb
from vplab.api.segmentation.v1 import segmentation_service_pb2_grpc as pb_grpc
from vplab.errors import Internal, InvalidInput, ResourceExhausted, VPLabError
from vplab.runtime import request as current
from vplab.runtime.device_queue import Priority
from vplab.segmentation import convert, metrics
from vplab.segmentation.core import SegmentationCore
from vplab.segmentation.decode_queue import Urgency
from vplab.segmentation.streams import Dropped, FrameStream
from vplab.segmentation.values import Chosen, Options, Prediction

_log = structlog.get_logger(__name__)

Value = TypeVar("Value")

_MAX_PAUSE_S: Final = 0.2
_SMALL_BYTES: Final = 32 << 10


class SegmentationServicer(pb_grpc.SegmentationServiceServicer):
    """Speaks the contract; decides nothing."""

    def __init__(self, core: SegmentationCore, stream_frames_at_once: int) -> None:
        self._core = core
        self._frames_at_once = stream_frames_at_once

    async def PredictMasks(self, request: pb.PredictMasksRequest, context: Any) -> pb.PredictMasksResponse:
        image = convert.image(request.image, field="image")
        prompts = await _converted(request.ByteSize(), lambda: convert.prompts(request.prompts))
        prediction = await self._core.predict_masks(
            image,
            prompts,
            convert.model_name(request.models.segmenter, field="models.segmenter"),
            convert.model_name(request.models.adapter, field="models.adapter"),
            multimask=request.multimask,
            includes_logits=request.include_low_res_logits,
            urgency=_urgency(Priority.INTERACTIVE),
        )
        return await _converted(
            _num_bytes(prediction, includes_logits=request.include_low_res_logits),
            lambda: convert.prediction_response(prediction, includes_logits=request.include_low_res_logits),
        )

    async def CreatePromptSet(self, request: pb.CreatePromptSetRequest, context: Any) -> pb.CreatePromptSetResponse:
        draft = await asyncio.to_thread(convert.draft, request)
        prompt_set = await self._core.prompt_sets.create(draft)
        return pb.CreatePromptSetResponse(prompt_set=convert.prompt_set(prompt_set))

    async def GetPromptSet(self, request: pb.GetPromptSetRequest, context: Any) -> pb.GetPromptSetResponse:
        found = await self._core.prompt_sets.get(convert.prompt_set_name(request.name, field="name"))
        return pb.GetPromptSetResponse(prompt_set=convert.prompt_set(found))

    async def ListPromptSets(self, request: pb.ListPromptSetsRequest, context: Any) -> pb.ListPromptSetsResponse:
        after = convert.page_position(request.page_token)
        found, rest = await self._core.prompt_sets.list_page(convert.page_size(request.page_size), after)
        return pb.ListPromptSetsResponse(
            prompt_sets=[convert.prompt_set(item) for item in found], next_page_token=rest or ""
        )

    async def SegmentImage(self, request: pb.SegmentImageRequest, context: Any) -> pb.SegmentImageResponse:
        urgency = _urgency(Priority.INLINE)
        image = convert.image(request.image, field="image")
        name = convert.prompt_set_name(request.prompt_set, field="prompt_set")
        adapter = convert.model_name(request.adapter, field="adapter")
        options = convert.options(request.options, field="options")
        chosen = await self._core.choose(name, adapter)
        found = await self._core.segment(image, chosen, options, urgency)
        return await asyncio.to_thread(convert.segment_response, found)

    async def SegmentImages(
        self, requests: AsyncIterator[pb.SegmentImagesRequest], context: Any
    ) -> AsyncIterator[pb.SegmentImagesResponse]:
        urgency = _urgency(Priority.INLINE)
        config = await _first(requests)
        name = convert.prompt_set_name(config.prompt_set, field="config.prompt_set")
        adapter = convert.model_name(config.adapter, field="config.adapter")
        options = convert.options(config.options, field="config.options")
        policy = convert.drop_policy(config.drop_policy, field="config.drop_policy")
        max_in_flight = convert.max_in_flight(config.max_in_flight, field="config.max_in_flight")
        chosen = await self._core.choose(name, adapter)

        async def work(frame: pb.Frame) -> pb.SegmentImagesResponse:
            return await self._answer(frame, chosen, options, urgency)

        stream = FrameStream(
            work,
            lambda frame: frame.frame_id,
            policy,
            max_in_flight=max_in_flight,
            num_at_once=min(self._frames_at_once, max_in_flight),
        )
        async with aclosing(stream.answers(_frames(requests))) as answers:  # type: ignore[type-var]
            async for answer in answers:
                if isinstance(answer, Dropped):
                    dropped = pb.FrameDropped(num_dropped=answer.num_dropped)
                    answer = pb.SegmentImagesResponse(frame_id=answer.frame_id, dropped=dropped)
                yield answer

    async def _answer(
        self, frame: pb.Frame, chosen: Chosen, options: Options, urgency: Urgency
    ) -> pb.SegmentImagesResponse:
        try:
            if not 1 <= len(frame.frame_id) <= convert.MAX_NAME:
                raise InvalidInput(f"must be 1 to {convert.MAX_NAME} characters", field="frame.frame_id")
            image = convert.image(frame.image, field="frame.image")
            while True:
                try:
                    found = await self._core.segment(image, chosen, options, urgency)
                    break
                except ResourceExhausted as error:
                    # A single call would be refused; a stream is held up, or drops, by not being read.
                    if error.reason != ResourceExhausted.default_reason:
                        raise
                    await asyncio.sleep(min(error.retry_after_s or _MAX_PAUSE_S, _MAX_PAUSE_S))
            result = await asyncio.to_thread(convert.segment_response, found)
        except Exception as error:
            metrics.FRAMES.labels("error").inc()
            return convert.frame_error(frame.frame_id[: convert.MAX_NAME], _as_ours(error))
        metrics.FRAMES.labels("result").inc()
        return pb.SegmentImagesResponse(frame_id=frame.frame_id, result=result)


async def _converted(num_bytes: int, work: Callable[[], Value]) -> Value:
    """Convert here what is small, for which a thread would only be a detour, and the rest in a thread."""
    return work() if num_bytes <= _SMALL_BYTES else await asyncio.to_thread(work)


def _num_bytes(prediction: Prediction, *, includes_logits: bool) -> int:
    masks = [mask for masks in prediction.objects for mask in masks]
    return sum(m.mask.runs.nbytes + (m.low_res_logits.nbytes if includes_logits else 0) for m in masks)


def _urgency(own: Priority) -> Urgency:
    """Settle the class of a call before anything is asked of embedding, which is told."""
    return Urgency(current.take_priority(own), current.deadline(), current.client())


async def _first(requests: AsyncIterator[pb.SegmentImagesRequest]) -> pb.SegmentImagesConfig:
    request = await anext(requests, None)
    if request is None or request.WhichOneof("part") != "config":
        raise InvalidInput("the first message must be the configuration", field="config")
    return request.config


async def _frames(requests: AsyncIterator[pb.SegmentImagesRequest]) -> AsyncIterator[pb.Frame]:
    async for request in requests:
        if request.WhichOneof("part") != "frame":
            raise InvalidInput("every message after the first must be a frame", field="part")
        yield request.frame


def _as_ours(error: Exception) -> VPLabError:
    """Return what one frame's failure may say; the text of a foreign exception stays in the log."""
    if isinstance(error, VPLabError):
        return error
    _log.error("frame_failed", exc_info=error)
    return Internal(f"internal error; request id {current.request_id()} finds it in the log")
