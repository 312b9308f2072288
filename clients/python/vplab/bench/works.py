"""What one call is: the requests of our services that can be measured."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vplab.api.embedding.v1 import embedding_service_pb2 as embedding_pb
from vplab.api.segmentation.v1 import segmentation_service_pb2 as segmentation_pb
from vplab.api.vision.v1 import vision_pb2
from vplab.bench.grpc_calls import GrpcCalls, split_stream, stream_body
from vplab.bench.pictures import Picture
from vplab.bench.requests import Requests, unique_jpeg
from vplab.client.options import Area, ClientOptions
from vplab.wire.prompts import points_to_proto

_SEGMENTATION = "/vplab.api.segmentation.v1.SegmentationService"
_EMBEDDING = "/vplab.api.embedding.v1.EmbeddingService"

ServerTimes = Callable[[bytes], Mapping[str, float]]


@dataclass(frozen=True)
class Work:
    """Calls of one kind."""

    target: GrpcCalls
    requests: Requests
    server_times: ServerTimes | None = None
    """Reads, from an answer, the seconds of stages that the server says it took; None where answers say nothing."""
    num_failed: Callable[[bytes], int] | None = None
    """Reads, from an answer to a stream, how many of its parts failed."""


@dataclass(frozen=True)
class Called:
    """Where the services are, and what is asked of them."""

    addresses: Mapping[Area, str]
    options: ClientOptions
    segmenter: str = ""
    encoder: str = ""

    def clicks(
        self,
        pictures: Sequence[Picture],
        digests: Sequence[str] | None,
        adapters: Sequence[str] = ("",),
        num_objects: int = 1,
        seed: int = 0,
    ) -> Work:
        """Return clicks, each on a picture drawn at random, with the next adapter in turn.

        digests: of the pictures, whose embeddings are cached; None sends the picture itself.
        """
        rng = np.random.default_rng(seed)
        num_bodies = max(_NUM_BODIES if digests else _NUM_IMAGE_BODIES, len(adapters))
        num_bodies += -num_bodies % len(adapters)  # so that each adapter comes equally often
        bodies = []
        for index in range(num_bodies):
            chosen = int(rng.integers(len(pictures)))
            picture, points = pictures[chosen], rng.permutation(pictures[chosen].points_xy)
            image = vision_pb2.Image(digest=digests[chosen]) if digests else vision_pb2.Image(encoded=picture.data)
            request = segmentation_pb.PredictMasksRequest(
                image=image,
                models=segmentation_pb.ModelSelection(
                    segmenter=self.segmenter, adapter=adapters[index % len(adapters)]
                ),
                prompts=[_prompt(points[number % len(points)]) for number in range(num_objects)],
            )
            bodies.append(request.SerializeToString())
        return Work(self._target("segmentation", f"{_SEGMENTATION}/PredictMasks"), Requests(bodies))

    def embeddings(self, pictures: Sequence[Picture]) -> Work:
        """Return images to embed, one in each call."""
        bodies = [self._embed_request(picture).SerializeToString() for picture in pictures]
        return Work(self._target("embedding", f"{_EMBEDDING}/EmbedImage"), Requests(bodies))

    def embedding_streams(self, pictures: Sequence[Picture], num_images: int) -> Work:
        """Return calls that embed ``num_images`` images each."""
        messages = [
            embedding_pb.EmbedImagesRequest(item_id=str(i), request=self._embed_request(pictures[i % len(pictures)]))
            for i in range(num_images)
        ]
        body = stream_body([message.SerializeToString() for message in messages])
        target = self._target("embedding", f"{_EMBEDDING}/EmbedImages", is_stream=True)
        return Work(target, Requests([body]), num_failed=_num_failed)

    def segmentations(self, pictures: Sequence[Picture], prompt_set: str, adapters: Sequence[str] = ("",)) -> Work:
        """Return images to segment by a prompt set."""
        bodies = [
            segmentation_pb.SegmentImageRequest(
                image=vision_pb2.Image(encoded=unique_jpeg(picture.data)),
                prompt_set=prompt_set,
                adapter=adapters[index % len(adapters)],
            ).SerializeToString()
            for index, picture in enumerate(list(pictures) * len(adapters))
        ]
        target = self._target("segmentation", f"{_SEGMENTATION}/SegmentImage")
        return Work(target, Requests(bodies), _segmentation_times)

    def _embed_request(self, picture: Picture) -> embedding_pb.EmbedImageRequest:
        image = vision_pb2.Image(encoded=unique_jpeg(picture.data))
        return embedding_pb.EmbedImageRequest(image=image, encoders=[self.encoder])

    def _target(self, area: Area, method: str, *, is_stream: bool = False) -> GrpcCalls:
        return GrpcCalls(self.addresses[area], method, area, self.options, is_stream)


_NUM_BODIES = 256
# Bodies with images in them go to every generator process.
_NUM_IMAGE_BODIES = 32


def _prompt(point_xy: Any) -> segmentation_pb.ObjectPrompt:
    points = points_to_proto(np.asarray(point_xy, np.float32).reshape(1, 2), np.ones(1, np.int64))
    return segmentation_pb.ObjectPrompt(points=points)


def _segmentation_times(answer: bytes) -> Mapping[str, float]:
    timings = segmentation_pb.SegmentImageResponse.FromString(answer).timings
    stages = (timings.embed, timings.match, timings.decode, timings.total)
    return dict(zip(("embed", "match", "decode", "total"), (s.ToNanoseconds() / 1e9 for s in stages), strict=True))


def _num_failed(answer: bytes) -> int:
    return sum(embedding_pb.EmbedImagesResponse.FromString(part).HasField("error") for part in split_stream(answer))
