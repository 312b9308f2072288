"""Between the contract's messages and this service's values."""

from collections.abc import Iterator, Sequence
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from vplab import errors
from vplab.api.embedding.v1 import embedding_service_pb2 as pb
from vplab.api.vision.v1 import vision_pb2
from vplab.embedding.errors import AnswerTooLarge
from vplab.embedding.values import (
    EncodedImage,
    EncoderStatus,
    EncoderVersion,
    FoundEmbedding,
    FrameImage,
    ImageInput,
    Job,
    JobState,
    KnownImage,
    ModelRef,
    Precision,
    Role,
    Tier,
)
from vplab.errors import InvalidInput, VPLabError
from vplab.wire import images as wire_images
from vplab.wire.names import parse_job_name, parse_request_id, parse_sha256, parse_version_or_alias
from vplab.wire.status import KIND_TO_CODE, code_of
from vplab.wire.tensors import tensor_to_proto

MAX_ENCODERS: Final = 8
MAX_JOB_IMAGES: Final = 100_000
MAX_PAGE_SIZE: Final = 1000
DEFAULT_PAGE_SIZE: Final = 50
CHUNK_BYTES: Final = 1 << 20
JOBS: Final = "precomputeJobs"

_PRECISIONS: Final = {
    pb.PRECISION_UNSPECIFIED: Precision.FLOAT16,
    pb.PRECISION_FLOAT32: Precision.FLOAT32,
    pb.PRECISION_FLOAT16: Precision.FLOAT16,
}
_PRECISION_VALUES: Final = {Precision.FLOAT32: pb.PRECISION_FLOAT32, Precision.FLOAT16: pb.PRECISION_FLOAT16}
_TIERS: Final = {
    Tier.COMPUTED: pb.CACHE_TIER_COMPUTED,
    Tier.HOST: pb.CACHE_TIER_HOST,
    Tier.DURABLE: pb.CACHE_TIER_DURABLE,
}
_ROLES: Final[dict[Role, pb.OutputRole]] = {
    "image_embedding": pb.OUTPUT_ROLE_IMAGE_EMBEDDING,
    "patch_features": pb.OUTPUT_ROLE_PATCH_FEATURES,
    "early_features": pb.OUTPUT_ROLE_EARLY_FEATURES,
    "colours": pb.OUTPUT_ROLE_COLOURS,
}
_ROLES_BY_VALUE: Final = {value: role for role, value in _ROLES.items()}
_JOB_STATES: Final = {
    JobState.QUEUED: pb.JOB_STATE_QUEUED,
    JobState.RUNNING: pb.JOB_STATE_RUNNING,
    JobState.SUCCEEDED: pb.JOB_STATE_SUCCEEDED,
    JobState.FAILED: pb.JOB_STATE_FAILED,
    JobState.CANCELLED: pb.JOB_STATE_CANCELLED,
}
_CODES: Final = {kind.__name__: int(code.value[0]) for kind, code in KIND_TO_CODE.items()}  # type: ignore[index]


def image(message: vision_pb2.Image, *, field: str) -> ImageInput:
    """Return what to embed, not decoded. Raises InvalidInput."""
    match wire_images.image_from_proto(message, field=field):
        case wire_images.EncodedImage(data):
            return EncodedImage(data)
        case wire_images.FrameImage() as frame:
            return FrameImage(frame.data, frame.width, frame.height, frame.stride_bytes, frame.pixel_format)
        case wire_images.DigestImage(digest):
            return KnownImage(digest)


def encoder_names(names: Sequence[str], *, field: str) -> list[str]:
    """Return full version or alias names: an artifact's own name becomes its production alias. Raises InvalidInput."""
    if not 1 <= len(names) <= MAX_ENCODERS:
        raise InvalidInput(f"{len(names)} encoders; 1 to {MAX_ENCODERS} are allowed", field=field)
    return [str(parse_version_or_alias(name, field=f"{field}[{i}]")) for i, name in enumerate(names)]


def precision(value: int, *, field: str) -> Precision:
    """Return the precision; unspecified is float16. Raises InvalidInput for a number without a name."""
    if value not in _PRECISIONS:
        raise InvalidInput(f"there is no precision {value}", field=field)
    return _PRECISIONS[value]  # type: ignore[index]


def roles(values: Sequence[int], *, field: str) -> frozenset[Role]:
    """Return the roles to send; all where none is named. Raises InvalidInput."""
    for i, value in enumerate(values):
        if value not in _ROLES_BY_VALUE:
            raise InvalidInput("is unspecified or unknown", field=f"{field}[{i}]")
    return frozenset(_ROLES_BY_VALUE[value] for value in values) or frozenset(_ROLES)  # type: ignore[index]


def check_answer_fits(
    encoders: Sequence[EncoderVersion], precision: Precision, wanted: frozenset[Role], max_send_bytes: int
) -> None:
    """Refuse tensors that cannot be sent before they are made. Raises AnswerTooLarge."""
    item_bytes = 2 if precision is Precision.FLOAT16 else 4
    outputs = [output for encoder in encoders for output in encoder.spec.outputs if output.role in wanted]
    num_bytes = sum(output.shape[0] * output.shape[1] * output.shape[2] * item_bytes for output in outputs)
    if num_bytes + 4096 * (len(outputs) + 1) > max_send_bytes:  # 4 KiB is plenty for names, digests and shapes
        raise AnswerTooLarge(num_bytes, max_send_bytes)


def embed_response(found: Sequence[FoundEmbedding], wanted: frozenset[Role] | None) -> pb.EmbedImageResponse:
    """Return the answer with the tensors of the wanted roles, or without any for None."""
    return pb.EmbedImageResponse(embeddings=[embedding(f, wanted) for f in found])


def embedding(found: FoundEmbedding, wanted: frozenset[Role] | None) -> pb.Embedding:
    """Return an embedding with the tensors of the wanted roles, or without any for None."""
    value = found.embedding
    message = pb.Embedding(
        name=f"embeddings/{value.key}",
        encoder=model(value.encoder),
        image_digest=value.image_digest,
        image_size=wire_images.image_size_to_proto(value.image_hw),
        precision=_PRECISION_VALUES[value.precision],
        tier=_TIERS[found.tier],
    )
    for tensor in value.tensors:
        if wanted is not None and tensor.role in wanted:
            message.tensors.add(name=tensor.name, role=_ROLES[tensor.role], tensor=tensor_to_proto(tensor.array))
    return message


def embedding_parts(found: FoundEmbedding, wanted: frozenset[Role]) -> Iterator[pb.GetEmbeddingResponse]:
    """Yield the header, then the data of the tensors of the wanted roles in chunks."""
    header = embedding(found, wanted)
    chunks = [named.tensor.data for named in header.tensors]
    for named in header.tensors:
        named.tensor.data = b""
    yield pb.GetEmbeddingResponse(header=header)
    for data in chunks:
        for start in range(0, len(data), CHUNK_BYTES):
            yield pb.GetEmbeddingResponse(chunk=data[start : start + CHUNK_BYTES])


def encoder(status: EncoderStatus) -> pb.Encoder:
    """Return an encoder as the list shows it."""
    spec = status.version.spec
    return pb.Encoder(
        model=model(status.version.model),
        family=spec.family,
        architecture=spec.architecture,
        outputs=[
            pb.EncoderOutput(name=o.name, role=_ROLES[o.role], shape=o.shape, stride=o.stride) for o in spec.outputs
        ],
        input_size=spec.preprocessing.size,
        preprocessing_digest=spec.preprocessing.digest,
        loaded=status.execution_provider is not None,
        execution_provider=status.execution_provider or "",
    )


def model(ref: ModelRef) -> vision_pb2.ModelReference:
    """Return a reference to a version."""
    return vision_pb2.ModelReference(name=ref.name, digest=ref.digest)


def item_error(item_id: str, error: VPLabError) -> pb.ItemError:
    """Return the failure of one item of a stream."""
    code = int(code_of(error).value[0])  # type: ignore[index]
    return pb.ItemError(item_id=item_id, code=code, reason=error.reason, message=error.message)


def job_images(request: pb.PrecomputeEmbeddingsRequest) -> tuple[str | None, list[str]]:
    """Return the dataset's full name or the blobs. Raises InvalidInput."""
    match request.WhichOneof("source"):
        case "dataset":
            return str(parse_version_or_alias(request.dataset, field="dataset")), []
        case "blobs":
            digests = request.blobs.sha256
            if not 1 <= len(digests) <= MAX_JOB_IMAGES:
                raise InvalidInput(f"{len(digests)} images; 1 to {MAX_JOB_IMAGES:,} are allowed", field="blobs.sha256")
            return None, [parse_sha256(text, field=f"blobs.sha256[{i}]") for i, text in enumerate(digests)]
    raise InvalidInput("one of dataset and blobs is required", field="source")


def job_id(name: str) -> str:
    """Return the id of a job's name. Raises InvalidInput."""
    return parse_job_name(name, collection=JOBS, field="name")


def request_id(text: str) -> str | None:
    """Return the caller's UUID in its canonical form, None when empty. Raises InvalidInput."""
    parsed = parse_request_id(text)
    return None if parsed is None else str(parsed)


def job(value: Job) -> pb.PrecomputeJob:
    """Return a job."""
    message = pb.PrecomputeJob(
        name=f"{JOBS}/{value.job_id}",
        state=_JOB_STATES[value.state],
        num_images=value.num_images,
        num_done=value.num_done,
        num_failed=value.num_failed,
        encoders=[model(ref) for ref in value.encoders],
        message=value.message,
    )
    for failure in value.failures:
        code = _CODES.get(failure.kind, _CODES[errors.Unknown.__name__])
        message.errors.add(item_id=failure.image_digest, code=code, reason=failure.reason, message=failure.message)
    message.create_time.CopyFrom(_timestamp(value.create_time.timestamp()))
    if value.end_time is not None:
        message.end_time.CopyFrom(_timestamp(value.end_time.timestamp()))
    return message


def page_size(value: int) -> int:
    """Return how many to list: 0 means the default, too many means the most."""
    return min(value, MAX_PAGE_SIZE) or DEFAULT_PAGE_SIZE


def page_position(token: str) -> int | None:
    """Return where a page of jobs starts, None for the beginning. Raises InvalidInput."""
    if not token:
        return None
    if not (token.isascii() and token.isdigit() and len(token) <= 15):
        raise InvalidInput("is no page token of this list", field="page_token")
    return int(token)


def page_of_encoders(encoders: Sequence[EncoderStatus], size: int, token: str) -> tuple[Sequence[EncoderStatus], str]:
    """Return the encoders whose name comes after the token, and the next token; both ends are names."""
    if token:
        parse_version_or_alias(token, field="page_token")
    rest = [status for status in encoders if status.version.model.name > token]
    page = rest[:size]
    return page, page[-1].version.model.name if len(rest) > size else ""


def _timestamp(seconds: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromMicroseconds(round(seconds * 1e6))
    return stamp
