"""The segmentation service: prompts to masks, and prompt sets to masks of every image."""

import uuid
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from vplab.api.segmentation.v1 import segmentation_service_pb2 as pb
from vplab.api.segmentation.v1 import segmentation_service_pb2_grpc as pb_grpc
from vplab.api.vision.v1 import vision_pb2
from vplab.client.calls import Calls
from vplab.client.pages import all_pages
from vplab.client.segmentation import convert
from vplab.client.segmentation.values import (
    DropPolicy,
    Prediction,
    PromptSet,
    PromptSetDraft,
    Segmentation,
    SegmentedFrame,
    SegmentOptions,
)
from vplab.client.sources import as_async
from vplab.errors import NotFound
from vplab.vision.prompts import ObjectPrompt
from vplab.wire.images import ImageSource, image_to_proto
from vplab.wire.prompts import object_prompt_to_proto

Value = TypeVar("Value")

_SHORT_S = 15.0
_PREDICT_S = 60.0
_SEGMENT_S = 120.0
_STREAM_S = 86_400.0
_PAGE_SIZE = 20  # prompt sets carry their masks


class AsyncSegmentation:
    """Calls of the segmentation service. Points and boxes are pixels of the oriented original image, x then y.

    Every method raises the kinds of ``vplab.errors``; ``timeout_s`` overrides the method's default deadline.
    """

    def __init__(self, calls: Calls, stub: pb_grpc.SegmentationServiceStub) -> None:
        """Take the calls and the stub of one channel; ``AsyncClient.segmentation`` makes it."""
        self._calls = calls
        self._stub = stub

    async def predict_masks(
        self,
        image: ImageSource,
        prompts: ObjectPrompt | Sequence[ObjectPrompt],
        *,
        segmenter: str = "",
        adapter: str = "",
        multimask: bool = False,
        include_low_res_logits: bool = False,
        known_digest: str | None = None,
        timeout_s: float | None = None,
    ) -> Prediction:
        """Predict the masks of one image's objects, one prompt for each.

        known_digest: ``provenance.image_digest`` of an earlier answer for this image; the picture itself is then sent
        only if the service no longer has its embedding.
        Raises InvalidInput for a prompt outside of the image, NotFound for a model, FailedPrecondition for an adapter
        of another segmenter.
        """
        request = pb.PredictMasksRequest(
            models=pb.ModelSelection(segmenter=segmenter, adapter=adapter),
            prompts=[object_prompt_to_proto(p) for p in ([prompts] if isinstance(prompts, ObjectPrompt) else prompts)],
            multimask=multimask,
            include_low_res_logits=include_low_res_logits,
        )
        return await self._with_image(
            self._stub.PredictMasks, request, image, known_digest, convert.prediction, timeout_s, _PREDICT_S
        )

    async def create_prompt_set(
        self, draft: PromptSetDraft, *, request_id: str | None = None, timeout_s: float | None = None
    ) -> PromptSet:
        """Publish reference images with their masks as a new prompt set version. Raises InvalidInput, NotFound."""
        return await self._calls.unary(
            self._stub.CreatePromptSet,
            convert.draft_to_proto(draft, request_id or str(uuid.uuid4())),
            lambda answer: convert.prompt_set(answer.prompt_set),
            timeout_s=timeout_s,
            default_s=_SEGMENT_S,
        )

    async def get_prompt_set(self, name: str, *, timeout_s: float | None = None) -> PromptSet:
        """Return a prompt set version; an artifact's own name means its newest. Raises NotFound."""
        return await self._calls.unary(
            self._stub.GetPromptSet,
            pb.GetPromptSetRequest(name=name),
            lambda answer: convert.prompt_set(answer.prompt_set),
            timeout_s=timeout_s,
            default_s=_SHORT_S,
        )

    async def list_prompt_sets(self, *, timeout_s: float | None = None) -> AsyncIterator[PromptSet]:
        """Iterate over the newest version of each prompt set, by name."""

        async def read_page(token: str) -> tuple[Sequence[PromptSet], str]:
            return await self._calls.unary(
                self._stub.ListPromptSets,
                pb.ListPromptSetsRequest(page_size=_PAGE_SIZE, page_token=token),
                lambda answer: ([convert.prompt_set(m) for m in answer.prompt_sets], answer.next_page_token),
                timeout_s=timeout_s,
                default_s=_SHORT_S,
            )

        async for prompt_set in all_pages(read_page):
            yield prompt_set

    async def segment_image(
        self,
        image: ImageSource,
        prompt_set: str,
        *,
        adapter: str = "",
        options: SegmentOptions | None = None,
        known_digest: str | None = None,
        timeout_s: float | None = None,
    ) -> Segmentation:
        """Find the classes of a prompt set in one image.

        known_digest: as in ``predict_masks``.
        Raises InvalidInput for an image that cannot be read, NotFound, FailedPrecondition for an adapter of another
        segmenter, ResourceExhausted when the service is overloaded.
        """
        request = pb.SegmentImageRequest(
            prompt_set=prompt_set, adapter=adapter, options=convert.options_to_proto(options)
        )
        return await self._with_image(
            self._stub.SegmentImage, request, image, known_digest, convert.segmentation, timeout_s, _SEGMENT_S
        )

    async def segment_images(
        self,
        frames: AsyncIterable[tuple[str, ImageSource]] | Iterable[tuple[str, ImageSource]],
        prompt_set: str,
        *,
        drop_policy: DropPolicy = "wait",
        max_in_flight: int = 4,
        adapter: str = "",
        options: SegmentOptions | None = None,
        timeout_s: float | None = None,
    ) -> AsyncIterator[SegmentedFrame]:
        """Segment a stream of (frame id, image); answers come in the order of the frames.

        drop_policy: what happens to a frame that arrives while ``max_in_flight`` are held. ``wait`` loses none and
        slows the sender, ``oldest`` keeps results fresh, ``newest`` drops the frame that arrived.
        A frame at fault gets an error in its own answer. Raises as ``segment_image`` does, for the whole stream.
        """
        config = pb.SegmentImagesConfig(
            prompt_set=prompt_set,
            adapter=adapter,
            options=convert.options_to_proto(options),
            max_in_flight=max_in_flight,
            drop_policy=convert.DROP_POLICIES.value(drop_policy, field="drop_policy"),  # type: ignore[arg-type]
        )

        async def requests() -> AsyncIterator[pb.SegmentImagesRequest]:
            yield pb.SegmentImagesRequest(config=config)
            async for frame_id, image in as_async(frames):
                yield pb.SegmentImagesRequest(frame=pb.Frame(frame_id=frame_id, image=image_to_proto(image)))

        stream = self._calls.both_streams(
            self._stub.SegmentImages, requests(), timeout_s=timeout_s, default_s=_STREAM_S
        )
        async with aclosing(stream):
            async for answer in stream:
                yield self._calls.converted(answer, convert.segmented_frame)

    async def _with_image(
        self,
        method: Any,
        request: Any,
        image: ImageSource,
        known_digest: str | None,
        convert_answer: Callable[[Any], Value],
        timeout_s: float | None,
        default_s: float,
    ) -> Value:
        if known_digest:
            request.image.CopyFrom(vision_pb2.Image(digest=known_digest))
            try:
                return await self._calls.unary(
                    method, request, convert_answer, timeout_s=timeout_s, default_s=default_s
                )
            except NotFound as error:
                if error.reason != "EMBEDDING_NOT_CACHED":
                    raise
        request.image.CopyFrom(image_to_proto(image))
        return await self._calls.unary(method, request, convert_answer, timeout_s=timeout_s, default_s=default_s)
