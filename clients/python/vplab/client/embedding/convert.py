"""The embedding service's messages to values."""

from typing import Any

from google.rpc import status_pb2
from numpy.typing import NDArray

from vplab.api.embedding.v1 import embedding_service_pb2 as pb
from vplab.client.embedding.values import (
    Embedding,
    Encoder,
    EncoderOutput,
    OutputTensor,
    PrecomputeJob,
    StreamedEmbeddings,
)
from vplab.client.models import model_reference
from vplab.client.times import time_of
from vplab.errors import InvalidInput, VPLabError
from vplab.wire.enums import EnumWords
from vplab.wire.status import error_from_status
from vplab.wire.tensors import tensor_from_proto

PRECISIONS = EnumWords(pb.Precision)
ROLES = EnumWords(pb.OutputRole)
TIERS = EnumWords(pb.CacheTier)
STATES = EnumWords(pb.JobState)


def encoder(message: pb.Encoder) -> Encoder:
    """Return the value of an encoder message."""
    return Encoder(
        model=model_reference(message.model),
        family=message.family,
        architecture=message.architecture,
        outputs=tuple(EncoderOutput(o.name, ROLES.word(o.role), tuple(o.shape), o.stride) for o in message.outputs),
        input_size=message.input_size,
        preprocessing_digest=message.preprocessing_digest,
        loaded=message.loaded,
        execution_provider=message.execution_provider,
    )


def embedding(message: pb.Embedding) -> Embedding:
    """Return the value of an embedding message with its tensors. Raises InvalidInput for a broken tensor."""
    tensors = [
        OutputTensor(t.name, ROLES.word(t.role), tensor_from_proto(t.tensor, field=f"tensors[{index}].tensor"))
        for index, t in enumerate(message.tensors)
    ]
    return embedding_with(message, tensors)


def embedding_with(message: pb.Embedding, tensors: list[OutputTensor]) -> Embedding:
    """Return the value of an embedding message whose tensors came separately."""
    if not message.image_size.width or not message.image_size.height:
        raise InvalidInput("is missing or zero", field="embedding.image_size")
    return Embedding(
        name=message.name,
        encoder=model_reference(message.encoder),
        image_digest=message.image_digest,
        image_size_hw=(message.image_size.height, message.image_size.width),
        precision=PRECISIONS.word(message.precision),
        tensors=tuple(tensors),
        tier=TIERS.word(message.tier),
    )


def output_tensor(message: pb.NamedTensor, array: NDArray[Any]) -> OutputTensor:
    """Return the value of a tensor whose data came separately."""
    return OutputTensor(message.name, ROLES.word(message.role), array)


def embeddings(message: pb.EmbedImageResponse) -> tuple[Embedding, ...]:
    """Return the values of an answer."""
    return tuple(embedding(m) for m in message.embeddings)


def streamed(message: pb.EmbedImagesResponse) -> StreamedEmbeddings:
    """Return the value of one answer of a stream. Raises InvalidInput when it holds neither result nor error."""
    match message.WhichOneof("outcome"):
        case "response":
            return StreamedEmbeddings(message.item_id, embeddings(message.response), None)
        case "error":
            return StreamedEmbeddings(message.item_id, (), item_error(message.error))
    raise InvalidInput("one of response and error is required", field="outcome")


def item_error(message: pb.ItemError) -> VPLabError:
    """Return the error of one item, as a call of its own would have raised it."""
    error = error_from_status(status_pb2.Status(code=message.code, message=message.message))
    error.reason = message.reason or error.reason
    return error


def precompute_job(message: pb.PrecomputeJob) -> PrecomputeJob:
    """Return the value of a job message."""
    return PrecomputeJob(
        name=message.name,
        state=STATES.word(message.state),
        num_images=message.num_images,
        num_done=message.num_done,
        num_failed=message.num_failed,
        errors=tuple((error.item_id, item_error(error)) for error in message.errors),
        encoders=tuple(model_reference(m) for m in message.encoders),
        message=message.message,
        create_time=time_of(message, "create_time"),
        end_time=time_of(message, "end_time"),
    )
