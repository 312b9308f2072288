"""A segmentation service without models: bright pixels are the object. For tests of what is around it."""

import hashlib
import io
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vplab.api.registry.v1 import registry_service_pb2 as registry_pb
from vplab.api.registry.v1 import registry_service_pb2_grpc as registry_grpc
from vplab.api.segmentation.v1 import segmentation_service_pb2 as pb
from vplab.api.segmentation.v1 import segmentation_service_pb2_grpc as pb_grpc
from vplab.api.vision.v1 import vision_pb2
from vplab.errors import InvalidInput, NotFound, VPLabError
from vplab.wire.masks import mask_from_proto, mask_to_proto
from vplab.wire.status import code_of, trailers_from_error

THRESHOLD = 128


def reference(name: str) -> vision_pb2.ModelReference:
    return vision_pb2.ModelReference(name=f"artifacts/{name}/versions/1", digest="d" * 64)


class FakeSegmentation(pb_grpc.SegmentationServiceServicer):
    """Keeps prompt sets in memory; ``before_segment`` may raise, wait or count. An adapter is another threshold."""

    def __init__(self) -> None:
        self.prompt_sets: dict[str, list[pb.PromptSet]] = {}
        self.created: list[pb.CreatePromptSetRequest] = []
        self.blobs: dict[str, bytes] = {}
        self.num_segmented = 0
        self.adapters_asked: list[str] = []
        self.priorities_asked: list[str] = []
        self.predictions_asked: list[pb.PredictMasksRequest] = []
        self.before_segment: Callable[[bytes], None] = lambda data: None
        self.before_predict: Callable[[], None] = lambda: None
        self.seen: dict[str, bytes] = {}
        self.adapter_thresholds: dict[str, int] = {}
        self._lock = threading.Lock()

    def PredictMasks(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.predictions_asked.append(request)
        self._note_priority(context)
        with refusing(context):
            self.before_predict()
            digest, data = self._image(request.image)
            pixels = decode(data)
            threshold = self.adapter_thresholds.get(request.models.adapter, THRESHOLD)
            masks = [pixels >= threshold, pixels >= threshold // 2, pixels >= 0]
            chosen = masks if request.multimask else masks[:1]
            predicted = [
                pb.PredictedMask(mask=mask_to_proto(mask), predicted_iou=0.9 - 0.1 * index)
                for index, mask in enumerate(chosen)
            ]
            return pb.PredictMasksResponse(
                objects=[pb.ObjectMasks(masks=predicted) for _ in request.prompts],
                image_size=vision_pb2.ImageSize(height=pixels.shape[0], width=pixels.shape[1]),
                provenance=vision_pb2.Provenance(segmenter=reference("fake-segmenter"), image_digest=digest),
            )

    def CreatePromptSet(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.created.append(request)
        with refusing(context):
            versions = self.prompt_sets.setdefault(request.prompt_set_id, [])
            prompt_set = pb.PromptSet(
                model=vision_pb2.ModelReference(
                    name=f"artifacts/{request.prompt_set_id}/versions/{len(versions) + 1}", digest="e" * 64
                ),
                classes=request.classes,
                segmenter=reference("fake-segmenter"),
                feature_encoder=reference("fake-encoder"),
            )
            for item in request.references:
                digest = f"{len(self.blobs):064x}"
                self.blobs[digest] = item.image.encoded
                height, width = decode(item.image.encoded).shape
                for mask in item.masks:
                    mask_from_proto(mask.mask, field="mask", size_hw=(height, width))
                size = vision_pb2.ImageSize(height=height, width=width)
                prompt_set.references.add(image_digest=digest, image_size=size, masks=item.masks)
            versions.append(prompt_set)
            return pb.CreatePromptSetResponse(prompt_set=prompt_set)

    def GetPromptSet(self, request: Any, context: grpc.ServicerContext) -> Any:
        with refusing(context):
            versions = self.prompt_sets.get(request.name.split("/")[1])
            if not versions:
                raise NotFound(f"{request.name} does not exist")
            return pb.GetPromptSetResponse(prompt_set=versions[-1])

    def SegmentImage(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._note_priority(context)
        with refusing(context):
            _, data = self._image(request.image)
            self.before_segment(data)
            pixels = decode(data)
            with self._lock:
                self.num_segmented += 1
                self.adapters_asked.append(request.adapter)
            mask = pixels >= self.adapter_thresholds.get(request.adapter, THRESHOLD)
            prompt_set = self.prompt_sets[request.prompt_set.split("/")[1]][-1]
            return pb.SegmentImageResponse(
                classes=[
                    pb.ClassResult(
                        class_id=item.class_id,
                        display_name=item.display_name,
                        present=bool(mask.any()),
                        presence_score=0.8,
                        mask=mask_to_proto(mask),
                        score=0.7 if mask.any() else 0.0,
                    )
                    for item in prompt_set.classes
                ],
                image_size=vision_pb2.ImageSize(height=pixels.shape[0], width=pixels.shape[1]),
                provenance=vision_pb2.Provenance(segmenter=reference("fake-segmenter")),
            )

    def _note_priority(self, context: grpc.ServicerContext) -> None:
        metadata = {key: value for key, value in context.invocation_metadata()}
        self.priorities_asked.append(metadata.get("x-vplab-priority", ""))

    def _image(self, image: vision_pb2.Image) -> tuple[str, bytes]:
        digest = image.digest or hashlib.sha256(image.encoded).hexdigest()
        if image.encoded:
            self.seen[digest] = image.encoded
        if digest not in self.seen:
            raise NotFound("nobody sent that image", reason="EMBEDDING_NOT_CACHED")
        return digest, self.seen[digest]


class FakeBlobs(registry_grpc.RegistryServiceServicer):
    """The blobs of a ``FakeSegmentation``'s references, whatever digest they are asked by."""

    def __init__(self, segmentation: FakeSegmentation) -> None:
        self._segmentation = segmentation

    def DownloadBlob(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        data = self._segmentation.blobs[request.sha256]
        yield registry_pb.DownloadBlobResponse(size_bytes=len(data), chunk=data)


def decode(data: bytes) -> NDArray[np.uint8]:
    try:
        return np.asarray(Image.open(io.BytesIO(data)).convert("L"))
    except OSError as error:
        raise InvalidInput("the file is no image", field="image.encoded", reason="IMAGE_UNREADABLE") from error


@contextmanager
def refusing(context: grpc.ServicerContext) -> Iterator[None]:
    try:
        yield
    except VPLabError as error:
        context.set_trailing_metadata(trailers_from_error(error))
        context.abort(code_of(error), error.message)


@contextmanager
def serving_in_threads(servicer: FakeSegmentation) -> Iterator[str]:
    """Serve in threads, for programs that have an event loop of their own; gives the address."""
    server = grpc.server(futures.ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
    pb_grpc.add_SegmentationServiceServicer_to_server(servicer, server)
    registry_grpc.add_RegistryServiceServicer_to_server(FakeBlobs(servicer), server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield address
    finally:
        server.stop(None).wait()
