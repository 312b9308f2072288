import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from vplab.api.vision.v1 import vision_pb2 as _vision_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Precision(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRECISION_UNSPECIFIED: _ClassVar[Precision]
    PRECISION_FLOAT32: _ClassVar[Precision]
    PRECISION_FLOAT16: _ClassVar[Precision]

class CacheTier(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CACHE_TIER_UNSPECIFIED: _ClassVar[CacheTier]
    CACHE_TIER_COMPUTED: _ClassVar[CacheTier]
    CACHE_TIER_HOST: _ClassVar[CacheTier]
    CACHE_TIER_DURABLE: _ClassVar[CacheTier]
    CACHE_TIER_DEVICE: _ClassVar[CacheTier]

class OutputRole(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTPUT_ROLE_UNSPECIFIED: _ClassVar[OutputRole]
    OUTPUT_ROLE_IMAGE_EMBEDDING: _ClassVar[OutputRole]
    OUTPUT_ROLE_PATCH_FEATURES: _ClassVar[OutputRole]
    OUTPUT_ROLE_EARLY_FEATURES: _ClassVar[OutputRole]
    OUTPUT_ROLE_COLOURS: _ClassVar[OutputRole]

class JobState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_STATE_UNSPECIFIED: _ClassVar[JobState]
    JOB_STATE_QUEUED: _ClassVar[JobState]
    JOB_STATE_RUNNING: _ClassVar[JobState]
    JOB_STATE_SUCCEEDED: _ClassVar[JobState]
    JOB_STATE_FAILED: _ClassVar[JobState]
    JOB_STATE_CANCELLED: _ClassVar[JobState]
PRECISION_UNSPECIFIED: Precision
PRECISION_FLOAT32: Precision
PRECISION_FLOAT16: Precision
CACHE_TIER_UNSPECIFIED: CacheTier
CACHE_TIER_COMPUTED: CacheTier
CACHE_TIER_HOST: CacheTier
CACHE_TIER_DURABLE: CacheTier
CACHE_TIER_DEVICE: CacheTier
OUTPUT_ROLE_UNSPECIFIED: OutputRole
OUTPUT_ROLE_IMAGE_EMBEDDING: OutputRole
OUTPUT_ROLE_PATCH_FEATURES: OutputRole
OUTPUT_ROLE_EARLY_FEATURES: OutputRole
OUTPUT_ROLE_COLOURS: OutputRole
JOB_STATE_UNSPECIFIED: JobState
JOB_STATE_QUEUED: JobState
JOB_STATE_RUNNING: JobState
JOB_STATE_SUCCEEDED: JobState
JOB_STATE_FAILED: JobState
JOB_STATE_CANCELLED: JobState

class EncoderOutput(_message.Message):
    __slots__ = ("name", "role", "shape", "stride")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    STRIDE_FIELD_NUMBER: _ClassVar[int]
    name: str
    role: OutputRole
    shape: _containers.RepeatedScalarFieldContainer[int]
    stride: int
    def __init__(self, name: _Optional[str] = ..., role: _Optional[_Union[OutputRole, str]] = ..., shape: _Optional[_Iterable[int]] = ..., stride: _Optional[int] = ...) -> None: ...

class Encoder(_message.Message):
    __slots__ = ("model", "family", "architecture", "outputs", "input_size", "preprocessing_digest", "loaded", "execution_provider")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    INPUT_SIZE_FIELD_NUMBER: _ClassVar[int]
    PREPROCESSING_DIGEST_FIELD_NUMBER: _ClassVar[int]
    LOADED_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_PROVIDER_FIELD_NUMBER: _ClassVar[int]
    model: _vision_pb2.ModelReference
    family: str
    architecture: str
    outputs: _containers.RepeatedCompositeFieldContainer[EncoderOutput]
    input_size: int
    preprocessing_digest: str
    loaded: bool
    execution_provider: str
    def __init__(self, model: _Optional[_Union[_vision_pb2.ModelReference, _Mapping]] = ..., family: _Optional[str] = ..., architecture: _Optional[str] = ..., outputs: _Optional[_Iterable[_Union[EncoderOutput, _Mapping]]] = ..., input_size: _Optional[int] = ..., preprocessing_digest: _Optional[str] = ..., loaded: _Optional[bool] = ..., execution_provider: _Optional[str] = ...) -> None: ...

class ListEncodersRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListEncodersResponse(_message.Message):
    __slots__ = ("encoders", "next_page_token")
    ENCODERS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    encoders: _containers.RepeatedCompositeFieldContainer[Encoder]
    next_page_token: str
    def __init__(self, encoders: _Optional[_Iterable[_Union[Encoder, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class NamedTensor(_message.Message):
    __slots__ = ("name", "role", "tensor")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    name: str
    role: OutputRole
    tensor: _vision_pb2.Tensor
    def __init__(self, name: _Optional[str] = ..., role: _Optional[_Union[OutputRole, str]] = ..., tensor: _Optional[_Union[_vision_pb2.Tensor, _Mapping]] = ...) -> None: ...

class Embedding(_message.Message):
    __slots__ = ("name", "encoder", "image_digest", "image_size", "precision", "tensors", "tier")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ENCODER_FIELD_NUMBER: _ClassVar[int]
    IMAGE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    IMAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    name: str
    encoder: _vision_pb2.ModelReference
    image_digest: str
    image_size: _vision_pb2.ImageSize
    precision: Precision
    tensors: _containers.RepeatedCompositeFieldContainer[NamedTensor]
    tier: CacheTier
    def __init__(self, name: _Optional[str] = ..., encoder: _Optional[_Union[_vision_pb2.ModelReference, _Mapping]] = ..., image_digest: _Optional[str] = ..., image_size: _Optional[_Union[_vision_pb2.ImageSize, _Mapping]] = ..., precision: _Optional[_Union[Precision, str]] = ..., tensors: _Optional[_Iterable[_Union[NamedTensor, _Mapping]]] = ..., tier: _Optional[_Union[CacheTier, str]] = ...) -> None: ...

class EmbedImageRequest(_message.Message):
    __slots__ = ("image", "encoders", "precision", "include_tensors", "output_roles")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    ENCODERS_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_TENSORS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_ROLES_FIELD_NUMBER: _ClassVar[int]
    image: _vision_pb2.Image
    encoders: _containers.RepeatedScalarFieldContainer[str]
    precision: Precision
    include_tensors: bool
    output_roles: _containers.RepeatedScalarFieldContainer[OutputRole]
    def __init__(self, image: _Optional[_Union[_vision_pb2.Image, _Mapping]] = ..., encoders: _Optional[_Iterable[str]] = ..., precision: _Optional[_Union[Precision, str]] = ..., include_tensors: _Optional[bool] = ..., output_roles: _Optional[_Iterable[_Union[OutputRole, str]]] = ...) -> None: ...

class EmbedImageResponse(_message.Message):
    __slots__ = ("embeddings",)
    EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    embeddings: _containers.RepeatedCompositeFieldContainer[Embedding]
    def __init__(self, embeddings: _Optional[_Iterable[_Union[Embedding, _Mapping]]] = ...) -> None: ...

class EmbedImagesRequest(_message.Message):
    __slots__ = ("item_id", "request")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    request: EmbedImageRequest
    def __init__(self, item_id: _Optional[str] = ..., request: _Optional[_Union[EmbedImageRequest, _Mapping]] = ...) -> None: ...

class EmbedImagesResponse(_message.Message):
    __slots__ = ("item_id", "response", "error")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    response: EmbedImageResponse
    error: ItemError
    def __init__(self, item_id: _Optional[str] = ..., response: _Optional[_Union[EmbedImageResponse, _Mapping]] = ..., error: _Optional[_Union[ItemError, _Mapping]] = ...) -> None: ...

class ItemError(_message.Message):
    __slots__ = ("item_id", "code", "reason", "message")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    code: int
    reason: str
    message: str
    def __init__(self, item_id: _Optional[str] = ..., code: _Optional[int] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class GetEmbeddingRequest(_message.Message):
    __slots__ = ("name", "output_roles")
    NAME_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_ROLES_FIELD_NUMBER: _ClassVar[int]
    name: str
    output_roles: _containers.RepeatedScalarFieldContainer[OutputRole]
    def __init__(self, name: _Optional[str] = ..., output_roles: _Optional[_Iterable[_Union[OutputRole, str]]] = ...) -> None: ...

class GetEmbeddingResponse(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: Embedding
    chunk: bytes
    def __init__(self, header: _Optional[_Union[Embedding, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class BlobImages(_message.Message):
    __slots__ = ("sha256",)
    SHA256_FIELD_NUMBER: _ClassVar[int]
    sha256: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, sha256: _Optional[_Iterable[str]] = ...) -> None: ...

class PrecomputeEmbeddingsRequest(_message.Message):
    __slots__ = ("dataset", "blobs", "encoders", "precision", "request_id")
    DATASET_FIELD_NUMBER: _ClassVar[int]
    BLOBS_FIELD_NUMBER: _ClassVar[int]
    ENCODERS_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    dataset: str
    blobs: BlobImages
    encoders: _containers.RepeatedScalarFieldContainer[str]
    precision: Precision
    request_id: str
    def __init__(self, dataset: _Optional[str] = ..., blobs: _Optional[_Union[BlobImages, _Mapping]] = ..., encoders: _Optional[_Iterable[str]] = ..., precision: _Optional[_Union[Precision, str]] = ..., request_id: _Optional[str] = ...) -> None: ...

class PrecomputeEmbeddingsResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: PrecomputeJob
    def __init__(self, job: _Optional[_Union[PrecomputeJob, _Mapping]] = ...) -> None: ...

class PrecomputeJob(_message.Message):
    __slots__ = ("name", "state", "num_images", "num_done", "num_failed", "errors", "encoders", "message", "create_time", "end_time")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    NUM_IMAGES_FIELD_NUMBER: _ClassVar[int]
    NUM_DONE_FIELD_NUMBER: _ClassVar[int]
    NUM_FAILED_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    ENCODERS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: JobState
    num_images: int
    num_done: int
    num_failed: int
    errors: _containers.RepeatedCompositeFieldContainer[ItemError]
    encoders: _containers.RepeatedCompositeFieldContainer[_vision_pb2.ModelReference]
    message: str
    create_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., state: _Optional[_Union[JobState, str]] = ..., num_images: _Optional[int] = ..., num_done: _Optional[int] = ..., num_failed: _Optional[int] = ..., errors: _Optional[_Iterable[_Union[ItemError, _Mapping]]] = ..., encoders: _Optional[_Iterable[_Union[_vision_pb2.ModelReference, _Mapping]]] = ..., message: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class GetPrecomputeJobRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetPrecomputeJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: PrecomputeJob
    def __init__(self, job: _Optional[_Union[PrecomputeJob, _Mapping]] = ...) -> None: ...

class ListPrecomputeJobsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListPrecomputeJobsResponse(_message.Message):
    __slots__ = ("jobs", "next_page_token")
    JOBS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[PrecomputeJob]
    next_page_token: str
    def __init__(self, jobs: _Optional[_Iterable[_Union[PrecomputeJob, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class CancelPrecomputeJobRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class CancelPrecomputeJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: PrecomputeJob
    def __init__(self, job: _Optional[_Union[PrecomputeJob, _Mapping]] = ...) -> None: ...
