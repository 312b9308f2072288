"""Embeddings from the embedding service, through the client."""

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np

from vplab.client.embedding.area import AsyncEmbedding
from vplab.client.embedding.values import Embedding, OutputRole, Precision
from vplab.errors import ResourceExhausted
from vplab.segmentation.errors import ModelMismatch
from vplab.segmentation.values import Embedded, EncodedImage, FrameImage, ImageInput, KnownImage, ModelRef
from vplab.vision.images import PixelFormat
from vplab.wire import images as wire_images


class GrpcEmbedding:
    """Implements Embedder."""

    def __init__(self, embedding: AsyncEmbedding, precision: Precision) -> None:
        self._embedding = embedding
        self._precision = precision

    async def embed(self, image: ImageInput, encoders: Mapping[ModelRef, Sequence[str]]) -> Mapping[ModelRef, Embedded]:
        """Ask once for all encoders; tensors that do not fit into a message are read in chunks."""
        roles = cast(list[OutputRole], sorted({role for wanted in encoders.values() for role in wanted}))
        names = [model.name for model in encoders]
        source = _source(image)
        try:
            found = await self._embedding.embed_image(source, names, precision=self._precision, output_roles=roles)
        except ResourceExhausted as error:
            if error.reason != "MESSAGE_TOO_LARGE":
                raise
            headers = await self._embedding.embed_image(source, names, precision=self._precision, include_tensors=False)
            found = tuple([await self._embedding.get_embedding(header.name, output_roles=roles) for header in headers])
        return {
            model: _checked(embedding, model, wanted)
            for (model, wanted), embedding in zip(encoders.items(), found, strict=True)
        }


def _checked(embedding: Embedding, model: ModelRef, roles: Sequence[str]) -> Embedded:
    if embedding.encoder.digest != model.digest:
        raise ModelMismatch(
            f"the embedding service runs another {model.name}", expected=model.digest, actual=embedding.encoder.digest
        )
    outputs = {t.role: np.asarray(t.array) for t in embedding.tensors if t.role in roles}
    return Embedded(embedding.image_digest, embedding.image_size_hw, model, outputs)


def _source(image: ImageInput) -> wire_images.ImageSource:
    match image:
        case EncodedImage(data):
            return wire_images.EncodedImage(data)
        case FrameImage() as frame:
            if len(frame.data) > wire_images.MAX_FRAME_BYTES and frame.pixel_format is PixelFormat.RGB8:
                # A very large tile; as pixels the client sends it as lossless PNG, below the limit of messages.
                rows = np.frombuffer(frame.data, np.uint8).reshape(frame.height, frame.stride_bytes)
                return rows[:, : 3 * frame.width].reshape(frame.height, frame.width, 3)
            return wire_images.FrameImage(frame.data, frame.width, frame.height, frame.stride_bytes, frame.pixel_format)
        case KnownImage(digest):
            return wire_images.DigestImage(digest)
