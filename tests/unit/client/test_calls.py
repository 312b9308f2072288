"""Deadlines, headers and errors of every kind of call, against a server that does as it is told."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from fakes.servers import serving
from vplab.api.embedding.v1 import embedding_service_pb2 as pb
from vplab.api.embedding.v1 import embedding_service_pb2_grpc as pb_grpc
from vplab.client import AsyncClient, ClientOptions
from vplab.client.calls import CLIENT_KEY, PRIORITY_KEY, REQUEST_ID_KEY
from vplab.errors import (
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidInput,
    ResourceExhausted,
    Unavailable,
)
from vplab.runtime import request as runtime_request
from vplab.wire.status import KIND_TO_CODE, code_of, trailers_from_error
from vplab.wire.tensors import tensor_to_proto

Behaviour = Callable[[grpc.aio.ServicerContext], Awaitable[Any]]


class Told(pb_grpc.EmbeddingServiceServicer):
    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.calls: list[dict[str, str]] = []
        self.remaining: list[float] = []
        self.cancelled = asyncio.Event()

    async def GetPrecomputeJob(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        self.calls.append({key: value for key, value in context.invocation_metadata()})
        self.remaining.append(context.time_remaining())
        try:
            return await self.behaviour(context)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def EmbedImage(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        tensor = tensor_to_proto(np.zeros((256, 64, 64), np.float32))
        response = pb.EmbedImageResponse()
        embedding = response.embeddings.add(precision="PRECISION_FLOAT32")
        embedding.image_size.width = embedding.image_size.height = 1024
        embedding.tensors.add(name="image_embedding", role="OUTPUT_ROLE_IMAGE_EMBEDDING", tensor=tensor)
        return response

    async def GetEmbedding(self, request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        for _ in range(3):
            yield pb.GetEmbeddingResponse(chunk=b"x")
        await self.behaviour(context)

    async def EmbedImages(self, requests: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        async for request in requests:
            yield pb.EmbedImagesResponse(item_id=request.item_id, response=pb.EmbedImageResponse())
        await self.behaviour(context)


async def nothing(context: grpc.aio.ServicerContext) -> Any:
    return pb.GetPrecomputeJobResponse(job=pb.PrecomputeJob(name="precomputeJobs/1", state="JOB_STATE_RUNNING"))


async def forever(context: grpc.aio.ServicerContext) -> Any:
    await asyncio.Event().wait()


def refusing(error: Exception) -> Behaviour:
    async def behaviour(context: grpc.aio.ServicerContext) -> Any:
        await context.abort(code_of(error), error.message, trailers_from_error(error))  # type: ignore[attr-defined, arg-type]

    return behaviour


def registration(servicer: Told) -> Any:
    return (pb_grpc.add_EmbeddingServiceServicer_to_server, servicer)


def client_of(address: str, **options: Any) -> AsyncClient:
    return AsyncClient(embedding=address, options=ClientOptions(**options))


@pytest.mark.parametrize(
    "kind", [kind for kind in KIND_TO_CODE if kind is not Unavailable], ids=lambda kind: kind.__name__
)
async def test_every_status_code_becomes_its_kind_with_all_details(kind: type[Exception]) -> None:
    told = (
        InvalidInput("bad box", field="prompts[0].box", metadata={"a": "b"})
        if kind is InvalidInput
        else kind("no", metadata={"a": "b"}, retry_after_s=1.5)  # type: ignore[call-arg]
    )
    async with serving(registration(Told(refusing(told)))) as address, client_of(address) as client:
        with pytest.raises(kind) as caught:
            await client.embedding.get_precompute_job("precomputeJobs/1")
    error: Any = caught.value
    assert type(error) is kind
    assert error.message == told.message  # type: ignore[attr-defined]
    assert error.reason == told.reason  # type: ignore[attr-defined]
    assert error.metadata["a"] == "b"
    assert error.retry_after_s == told.retry_after_s  # type: ignore[attr-defined]
    if kind is InvalidInput:
        assert error.violations == told.violations  # type: ignore[attr-defined]


async def test_an_unavailable_server_is_asked_again_until_it_answers() -> None:
    answers = iter([refusing(Unavailable("starting")), refusing(Unavailable("starting")), nothing])
    told = Told(lambda context: next(answers)(context))
    async with serving(registration(told)) as address, client_of(address) as client:
        assert (await client.embedding.get_precompute_job("precomputeJobs/1")).state == "running"
    assert len(told.calls) == 3
    assert len({call[REQUEST_ID_KEY] for call in told.calls}) == 1


async def test_other_refusals_are_not_repeated() -> None:
    told = Told(refusing(ResourceExhausted("full", retry_after_s=0.01)))
    async with serving(registration(told)) as address, client_of(address) as client:
        with pytest.raises(ResourceExhausted):
            await client.embedding.get_precompute_job("precomputeJobs/1")
    assert len(told.calls) == 1


async def test_a_server_that_is_not_there_is_unavailable_and_named() -> None:
    async with client_of("127.0.0.1:1") as client:
        with pytest.raises(Unavailable, match=r"embedding service at 127\.0\.0\.1:1 cannot be reached") as caught:
            await client.embedding.get_precompute_job("precomputeJobs/1")
    assert caught.value.metadata["service"] == "embedding"


async def test_every_call_has_a_deadline_an_id_and_its_credentials() -> None:
    told = Told(nothing)
    options: dict[str, Any] = {"bearer_token": "s3cret", "metadata": (("x-line", "7"),), "request_id": lambda: "call-9"}
    async with serving(registration(told)) as address, client_of(address, **options) as client:
        await client.embedding.get_precompute_job("precomputeJobs/1")
    assert told.calls[0][REQUEST_ID_KEY] == "call-9"
    assert told.calls[0]["authorization"] == "Bearer s3cret"
    assert told.calls[0]["x-line"] == "7"
    assert told.remaining[0] <= 15
    assert "s3cret" not in repr(client.options)


@pytest.mark.parametrize(
    ("name", "sent"),
    [("ipv4:10.0.0.7:5555", "ipv4:10.0.0.7:5555"), ("certificate:Prüfstand 3", "certificate:Pr%C3%BCfstand 3")],
)
async def test_a_service_says_whom_it_calls_for(name: str, sent: str) -> None:
    told = Told(nothing)
    async with serving(registration(told)) as address, client_of(address, client=lambda: name) as client:
        await client.embedding.get_precompute_job("precomputeJobs/1")
    async with serving(registration(told)) as address, client_of(address, client=lambda: "") as client:
        await client.embedding.get_precompute_job("precomputeJobs/1")
    assert [call.get(CLIENT_KEY) for call in told.calls] == [sent, None]


async def test_a_client_and_a_service_say_how_urgent_their_calls_are() -> None:
    told = Told(nothing)
    for priority in ("batch", lambda: "inline", lambda: "", None):
        async with serving(registration(told)) as address, client_of(address, priority=priority) as client:
            await client.embedding.get_precompute_job("precomputeJobs/1")
    assert [call.get(PRIORITY_KEY) for call in told.calls] == ["batch", "inline", None, None]


async def test_a_call_does_not_outlive_its_callers_own_deadline() -> None:
    told = Told(nothing)
    async with serving(registration(told)) as address:
        async with client_of(address, time_remaining_s=lambda: 3.0) as client:
            await client.embedding.get_precompute_job("precomputeJobs/1", timeout_s=100)
        assert told.remaining[0] <= 3
        async with client_of(address, time_remaining_s=lambda: 0.0) as client:
            with pytest.raises(DeadlineExceeded, match="no time was left"):
                await client.embedding.get_precompute_job("precomputeJobs/1")
    assert len(told.calls) == 1


async def test_a_slow_server_is_left_at_the_deadline() -> None:
    async with serving(registration(Told(forever))) as address, client_of(address, timeout_s=0.2) as client:
        with pytest.raises(DeadlineExceeded):
            await client.embedding.get_precompute_job("precomputeJobs/1")


async def test_cancelling_the_caller_cancels_the_call() -> None:
    told = Told(forever)
    async with serving(registration(told)) as address, client_of(address) as client:
        task = asyncio.create_task(client.embedding.get_precompute_job("precomputeJobs/1"))
        while not told.calls:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(5):
            await told.cancelled.wait()


async def test_closing_the_client_ends_calls_as_cancelled_and_refuses_new_ones() -> None:
    told = Told(forever)
    async with serving(registration(told)) as address:
        client = client_of(address)
        task = asyncio.create_task(client.embedding.get_precompute_job("precomputeJobs/1"))
        while not told.calls:
            await asyncio.sleep(0.01)
        await client.close()
        with pytest.raises(Cancelled, match="closed"):
            await task
        with pytest.raises(FailedPrecondition, match="closed"):
            await client.embedding.get_precompute_job("precomputeJobs/1")


async def test_an_answer_against_the_contract_is_internal_and_names_the_field() -> None:
    async def broken(context: grpc.aio.ServicerContext) -> Any:
        job = pb.PrecomputeJob(name="precomputeJobs/1")
        job.create_time.seconds = 1 << 60
        return pb.GetPrecomputeJobResponse(job=job)

    async with serving(registration(Told(broken))) as address, client_of(address) as client:
        with pytest.raises(Internal, match="create_time"):
            await client.embedding.get_precompute_job("precomputeJobs/1")


async def test_a_stream_that_breaks_off_raises_the_kind() -> None:
    async with serving(registration(Told(refusing(Cancelled("stop"))))) as address, client_of(address) as client:
        with pytest.raises(Cancelled, match="stop"):
            await client.embedding.get_embedding("embeddings/" + "0" * 64)


async def test_an_error_of_the_callers_own_images_reaches_the_caller() -> None:
    async def images() -> AsyncIterator[tuple[str, bytes]]:
        yield "1", b"a"
        raise ZeroDivisionError("the camera fell")

    async with serving(registration(Told(forever))) as address, client_of(address) as client:
        with pytest.raises(ZeroDivisionError, match="camera"):
            async for _ in client.embedding.embed_images(images(), "artifacts/e"):
                pass


@pytest.mark.parametrize("is_async", [True, False])
async def test_streams_read_plain_and_asynchronous_sources(is_async: bool) -> None:
    async def images() -> AsyncIterator[tuple[str, bytes]]:
        for number in range(5):
            yield str(number), b"a"

    source = images() if is_async else [(str(number), b"a") for number in range(5)]
    async with serving(registration(Told(nothing))) as address, client_of(address) as client:
        answers = [answer.item_id async for answer in client.embedding.embed_images(source, "artifacts/e")]
    assert answers == ["0", "1", "2", "3", "4"]


async def test_a_float32_sam_embedding_fits_though_it_exceeds_grpcs_default() -> None:
    async with serving(registration(Told(nothing))) as address, client_of(address) as client:
        (embedding,) = await client.embedding.embed_image(b"image", "artifacts/e", precision="float32")
    array = embedding.output("image_embedding")
    assert array.nbytes == 4 << 20
    assert (array.shape, array.dtype) == ((256, 64, 64), np.float32)


async def test_a_message_above_the_limit_is_named_as_such() -> None:
    async with serving(registration(Told(nothing))) as address, client_of(address) as client:
        with pytest.raises(ResourceExhausted) as caught:
            await client.embedding.embed_image(bytes(33 << 20), "artifacts/e")
    assert caught.value.reason == "MESSAGE_TOO_LARGE"


def test_client_and_servers_name_their_headers_alike() -> None:
    assert REQUEST_ID_KEY == runtime_request.REQUEST_ID_KEY
    assert CLIENT_KEY == runtime_request.CLIENT_KEY
    assert PRIORITY_KEY == runtime_request.PRIORITY_KEY


@pytest.mark.parametrize("kind", [InvalidInput, FailedPrecondition])
async def test_a_stream_refused_while_it_is_written_to_raises_what_the_server_said(kind: type[Exception]) -> None:
    async def images(count: int) -> AsyncIterator[tuple[str, bytes]]:
        for number in range(count):
            yield str(number), b"a" * 3000

    class RefusesTheFirst(Told):
        async def EmbedImages(self, requests: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
            async for _ in requests:
                await self.behaviour(context)
            yield pb.EmbedImagesResponse()

    async with (
        serving(registration(RefusesTheFirst(refusing(kind("no"))))) as address,
        client_of(address) as client,
    ):
        for attempt in range(200):  # without the status as it was sent, a fifth of these are Internal
            with pytest.raises(kind, match="no"):
                async for _ in client.embedding.embed_images(images(1 + attempt % 5), "artifacts/e"):
                    pass


async def test_a_stream_answered_before_its_end_keeps_its_answers() -> None:
    async def images() -> AsyncIterator[tuple[str, bytes]]:
        for number in range(5):
            yield str(number), b"a" * 3000

    class AnswersTheFirst(Told):
        async def EmbedImages(self, requests: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
            async for request in requests:
                yield pb.EmbedImagesResponse(item_id=request.item_id, response=pb.EmbedImageResponse())
                return

    async with serving(registration(AnswersTheFirst(nothing))) as address, client_of(address) as client:
        for _ in range(200):
            answers = [answer.item_id async for answer in client.embedding.embed_images(images(), "artifacts/e")]
            assert answers == ["0"]
