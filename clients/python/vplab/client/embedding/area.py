"""The embedding service: images to embeddings, and the cache that keeps them."""

import math
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from contextlib import aclosing

import numpy as np

from vplab.api.embedding.v1 import embedding_service_pb2 as pb
from vplab.api.embedding.v1 import embedding_service_pb2_grpc as pb_grpc
from vplab.client.calls import Calls
from vplab.client.embedding import convert
from vplab.client.embedding.values import (
    Embedding,
    Encoder,
    OutputRole,
    Precision,
    PrecomputeJob,
    StreamedEmbeddings,
)
from vplab.client.pages import PAGE_SIZE, all_pages
from vplab.client.sources import as_async
from vplab.errors import InvalidInput
from vplab.wire.images import ImageSource, image_to_proto
from vplab.wire.tensors import tensor_header_from_proto

_SHORT_S = 15.0
_EMBED_S = 60.0
_STREAM_S = 3600.0


class AsyncEmbedding:
    """Calls of the embedding service. Encoders are version or alias names, ``artifacts/nano-encoder`` for instance.

    Every method raises the kinds of ``vplab.errors``; ``timeout_s`` overrides the method's default deadline.
    """

    def __init__(self, calls: Calls, stub: pb_grpc.EmbeddingServiceStub) -> None:
        """Take the calls and the stub of one channel; ``AsyncClient.embedding`` makes it."""
        self._calls = calls
        self._stub = stub

    async def list_encoders(self, *, timeout_s: float | None = None) -> AsyncIterator[Encoder]:
        """Iterate over the encoders the service has loaded or can load, by name."""

        async def read_page(token: str) -> tuple[Sequence[Encoder], str]:
            return await self._calls.unary(
                self._stub.ListEncoders,
                pb.ListEncodersRequest(page_size=PAGE_SIZE, page_token=token),
                lambda answer: ([convert.encoder(m) for m in answer.encoders], answer.next_page_token),
                timeout_s=timeout_s,
                default_s=_SHORT_S,
            )

        async for encoder in all_pages(read_page):
            yield encoder

    async def embed_image(
        self,
        image: ImageSource,
        encoders: Sequence[str] | str,
        *,
        precision: Precision | None = None,
        include_tensors: bool = True,
        output_roles: Sequence[OutputRole] = (),
        timeout_s: float | None = None,
    ) -> tuple[Embedding, ...]:
        """Embed an image with each encoder; results are in the order of the encoders.

        precision: of the arrays that come back, float16 unless given. output_roles: empty returns all outputs.
        Raises InvalidInput for an unreadable image, NotFound for an encoder or for a digest that is not cached.
        """
        request = _request(image, encoders, precision, include_tensors, output_roles)
        return await self._calls.unary(
            self._stub.EmbedImage, request, convert.embeddings, timeout_s=timeout_s, default_s=_EMBED_S
        )

    async def embed_images(
        self,
        images: AsyncIterable[tuple[str, ImageSource]] | Iterable[tuple[str, ImageSource]],
        encoders: Sequence[str] | str,
        *,
        precision: Precision | None = None,
        include_tensors: bool = True,
        output_roles: Sequence[OutputRole] = (),
        timeout_s: float | None = None,
    ) -> AsyncIterator[StreamedEmbeddings]:
        """Embed a stream of (item id, image) and yield each answer as it is done, in any order.

        An image at fault gets an error in its own answer. ``images`` is read only as fast as the service takes it.
        """

        async def requests() -> AsyncIterator[pb.EmbedImagesRequest]:
            async for item_id, image in as_async(images):
                request = _request(image, encoders, precision, include_tensors, output_roles)
                yield pb.EmbedImagesRequest(item_id=item_id, request=request)

        stream = self._calls.both_streams(self._stub.EmbedImages, requests(), timeout_s=timeout_s, default_s=_STREAM_S)
        async with aclosing(stream):
            async for answer in stream:
                yield self._calls.converted(answer, convert.streamed)

    async def get_embedding(
        self, name: str, *, output_roles: Sequence[OutputRole] = (), timeout_s: float | None = None
    ) -> Embedding:
        """Return a cached embedding with its arrays, however large. output_roles: empty returns all outputs.

        Raises NotFound.
        """
        request = pb.GetEmbeddingRequest(name=name, output_roles=_roles(output_roles))
        header: pb.Embedding | None = None
        data = bytearray()
        stream = self._calls.server_stream(self._stub.GetEmbedding, request, timeout_s=timeout_s, default_s=_EMBED_S)
        async with aclosing(stream):
            async for answer in stream:
                if answer.WhichOneof("part") == "header":
                    header = answer.header
                else:
                    data.extend(answer.chunk)
        return self._calls.converted((header, bytes(data)), _assembled)

    async def precompute(
        self,
        encoders: Sequence[str] | str,
        *,
        dataset: str | None = None,
        blob_digests: Sequence[str] = (),
        precision: Precision | None = None,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> PrecomputeJob:
        """Start a job that embeds a dataset's images, or the blobs of those digests, of the registry.

        Raises InvalidInput unless exactly one of ``dataset`` and ``blob_digests`` is given; NotFound.
        """
        if bool(dataset) == bool(blob_digests):
            raise InvalidInput("give either a dataset or blob digests", field="source")
        request = pb.PrecomputeEmbeddingsRequest(
            encoders=_names(encoders),
            precision=convert.PRECISIONS.value(precision, field="precision"),  # type: ignore[arg-type]
            request_id=request_id or str(uuid.uuid4()),
        )
        if dataset:
            request.dataset = dataset
        else:
            request.blobs.sha256.extend(blob_digests)
        return await self._calls.unary(
            self._stub.PrecomputeEmbeddings,
            request,
            lambda answer: convert.precompute_job(answer.job),
            timeout_s=timeout_s,
            default_s=_EMBED_S,
        )

    async def get_precompute_job(self, name: str, *, timeout_s: float | None = None) -> PrecomputeJob:
        """Return a job's progress. Raises NotFound."""
        return await self._calls.unary(
            self._stub.GetPrecomputeJob,
            pb.GetPrecomputeJobRequest(name=name),
            lambda answer: convert.precompute_job(answer.job),
            timeout_s=timeout_s,
            default_s=_SHORT_S,
        )

    async def list_precompute_jobs(self, *, timeout_s: float | None = None) -> AsyncIterator[PrecomputeJob]:
        """Iterate over the jobs, newest first."""

        async def read_page(token: str) -> tuple[Sequence[PrecomputeJob], str]:
            return await self._calls.unary(
                self._stub.ListPrecomputeJobs,
                pb.ListPrecomputeJobsRequest(page_size=PAGE_SIZE, page_token=token),
                lambda answer: ([convert.precompute_job(m) for m in answer.jobs], answer.next_page_token),
                timeout_s=timeout_s,
                default_s=_SHORT_S,
            )

        async for job in all_pages(read_page):
            yield job

    async def cancel_precompute_job(self, name: str, *, timeout_s: float | None = None) -> PrecomputeJob:
        """End a job; what it embedded stays cached. Raises NotFound."""
        return await self._calls.unary(
            self._stub.CancelPrecomputeJob,
            pb.CancelPrecomputeJobRequest(name=name),
            lambda answer: convert.precompute_job(answer.job),
            timeout_s=timeout_s,
            default_s=_SHORT_S,
        )


def _names(encoders: Sequence[str] | str) -> list[str]:
    return [encoders] if isinstance(encoders, str) else list(encoders)


def _request(
    image: ImageSource,
    encoders: Sequence[str] | str,
    precision: Precision | None,
    include_tensors: bool,
    output_roles: Sequence[OutputRole],
) -> pb.EmbedImageRequest:
    return pb.EmbedImageRequest(
        image=image_to_proto(image),
        encoders=_names(encoders),
        precision=convert.PRECISIONS.value(precision, field="precision"),  # type: ignore[arg-type]
        include_tensors=include_tensors,
        output_roles=_roles(output_roles),
    )


def _roles(output_roles: Sequence[OutputRole]) -> list[pb.OutputRole]:
    return [convert.ROLES.value(role, field="output_roles") for role in output_roles]  # type: ignore[misc]


def _assembled(parts: tuple[pb.Embedding | None, bytes]) -> Embedding:
    header, data = parts
    if header is None:
        raise InvalidInput("the stream held no header", field="header")
    tensors, start = [], 0
    for index, message in enumerate(header.tensors):
        dtype, shape = tensor_header_from_proto(message.tensor, field=f"tensors[{index}].tensor")
        size_bytes = math.prod(shape) * dtype.itemsize
        if start + size_bytes > len(data):
            raise InvalidInput(f"the stream held only {len(data)} bytes", field=f"tensors[{index}].tensor.data")
        array = np.frombuffer(data, dtype, math.prod(shape), start).reshape(shape)
        tensors.append(convert.output_tensor(message, array))
        start += size_bytes
    return convert.embedding_with(header, tensors)
