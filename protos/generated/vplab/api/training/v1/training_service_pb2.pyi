import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from vplab.api.segmentation.v1 import segmentation_service_pb2 as _segmentation_service_pb2
from vplab.api.vision.v1 import vision_pb2 as _vision_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TuningMethod(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TUNING_METHOD_UNSPECIFIED: _ClassVar[TuningMethod]
    TUNING_METHOD_E_PEFT: _ClassVar[TuningMethod]
    TUNING_METHOD_LORA: _ClassVar[TuningMethod]
    TUNING_METHOD_IA3: _ClassVar[TuningMethod]
    TUNING_METHOD_PROMPT_TOKENS: _ClassVar[TuningMethod]
    TUNING_METHOD_IMAGE_CONTEXT: _ClassVar[TuningMethod]
    TUNING_METHOD_HQ_TOKEN: _ClassVar[TuningMethod]
    TUNING_METHOD_BOFT: _ClassVar[TuningMethod]
    TUNING_METHOD_CONV_LORA: _ClassVar[TuningMethod]
    TUNING_METHOD_QLORA: _ClassVar[TuningMethod]
    TUNING_METHOD_ADAPTER_LAYERS: _ClassVar[TuningMethod]
    TUNING_METHOD_FULL_DECODER: _ClassVar[TuningMethod]
    TUNING_METHOD_E_PEFT_PAPER: _ClassVar[TuningMethod]

class JobState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_STATE_UNSPECIFIED: _ClassVar[JobState]
    JOB_STATE_QUEUED: _ClassVar[JobState]
    JOB_STATE_RUNNING: _ClassVar[JobState]
    JOB_STATE_SUCCEEDED: _ClassVar[JobState]
    JOB_STATE_FAILED: _ClassVar[JobState]
    JOB_STATE_CANCELLED: _ClassVar[JobState]

class TuningStage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TUNING_STAGE_UNSPECIFIED: _ClassVar[TuningStage]
    TUNING_STAGE_QUEUE: _ClassVar[TuningStage]
    TUNING_STAGE_FETCH: _ClassVar[TuningStage]
    TUNING_STAGE_EMBED: _ClassVar[TuningStage]
    TUNING_STAGE_TRAIN: _ClassVar[TuningStage]
    TUNING_STAGE_EXPORT: _ClassVar[TuningStage]
    TUNING_STAGE_PUBLISH: _ClassVar[TuningStage]
    TUNING_STAGE_PROMOTE: _ClassVar[TuningStage]
TUNING_METHOD_UNSPECIFIED: TuningMethod
TUNING_METHOD_E_PEFT: TuningMethod
TUNING_METHOD_LORA: TuningMethod
TUNING_METHOD_IA3: TuningMethod
TUNING_METHOD_PROMPT_TOKENS: TuningMethod
TUNING_METHOD_IMAGE_CONTEXT: TuningMethod
TUNING_METHOD_HQ_TOKEN: TuningMethod
TUNING_METHOD_BOFT: TuningMethod
TUNING_METHOD_CONV_LORA: TuningMethod
TUNING_METHOD_QLORA: TuningMethod
TUNING_METHOD_ADAPTER_LAYERS: TuningMethod
TUNING_METHOD_FULL_DECODER: TuningMethod
TUNING_METHOD_E_PEFT_PAPER: TuningMethod
JOB_STATE_UNSPECIFIED: JobState
JOB_STATE_QUEUED: JobState
JOB_STATE_RUNNING: JobState
JOB_STATE_SUCCEEDED: JobState
JOB_STATE_FAILED: JobState
JOB_STATE_CANCELLED: JobState
TUNING_STAGE_UNSPECIFIED: TuningStage
TUNING_STAGE_QUEUE: TuningStage
TUNING_STAGE_FETCH: TuningStage
TUNING_STAGE_EMBED: TuningStage
TUNING_STAGE_TRAIN: TuningStage
TUNING_STAGE_EXPORT: TuningStage
TUNING_STAGE_PUBLISH: TuningStage
TUNING_STAGE_PROMOTE: TuningStage

class ClassMask(_message.Message):
    __slots__ = ("class_id", "mask")
    CLASS_ID_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    class_id: int
    mask: _vision_pb2.Mask
    def __init__(self, class_id: _Optional[int] = ..., mask: _Optional[_Union[_vision_pb2.Mask, _Mapping]] = ...) -> None: ...

class ValidatedImage(_message.Message):
    __slots__ = ("file_name", "image", "masks")
    FILE_NAME_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    MASKS_FIELD_NUMBER: _ClassVar[int]
    file_name: str
    image: _vision_pb2.Image
    masks: _containers.RepeatedCompositeFieldContainer[ClassMask]
    def __init__(self, file_name: _Optional[str] = ..., image: _Optional[_Union[_vision_pb2.Image, _Mapping]] = ..., masks: _Optional[_Iterable[_Union[ClassMask, _Mapping]]] = ...) -> None: ...

class InlineDataset(_message.Message):
    __slots__ = ("classes", "images")
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    classes: _containers.RepeatedCompositeFieldContainer[_segmentation_service_pb2.SegmentClass]
    images: _containers.RepeatedCompositeFieldContainer[ValidatedImage]
    def __init__(self, classes: _Optional[_Iterable[_Union[_segmentation_service_pb2.SegmentClass, _Mapping]]] = ..., images: _Optional[_Iterable[_Union[ValidatedImage, _Mapping]]] = ...) -> None: ...

class TuningOptions(_message.Message):
    __slots__ = ("num_steps", "learning_rate", "lora_rank", "num_prompt_tokens", "seed", "early_features")
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    LORA_RANK_FIELD_NUMBER: _ClassVar[int]
    NUM_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    EARLY_FEATURES_FIELD_NUMBER: _ClassVar[int]
    num_steps: int
    learning_rate: float
    lora_rank: int
    num_prompt_tokens: int
    seed: int
    early_features: bool
    def __init__(self, num_steps: _Optional[int] = ..., learning_rate: _Optional[float] = ..., lora_rank: _Optional[int] = ..., num_prompt_tokens: _Optional[int] = ..., seed: _Optional[int] = ..., early_features: _Optional[bool] = ...) -> None: ...

class CreateTuningJobRequest(_message.Message):
    __slots__ = ("dataset", "inline", "adapter_id", "segmenter", "prompt_set", "method", "options", "promote_alias", "promote_only_if_better", "request_id", "segmenter_digest", "prompt_set_digest", "dataset_digest")
    DATASET_FIELD_NUMBER: _ClassVar[int]
    INLINE_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_ID_FIELD_NUMBER: _ClassVar[int]
    SEGMENTER_FIELD_NUMBER: _ClassVar[int]
    PROMPT_SET_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    PROMOTE_ALIAS_FIELD_NUMBER: _ClassVar[int]
    PROMOTE_ONLY_IF_BETTER_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SEGMENTER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PROMPT_SET_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DATASET_DIGEST_FIELD_NUMBER: _ClassVar[int]
    dataset: str
    inline: InlineDataset
    adapter_id: str
    segmenter: str
    prompt_set: str
    method: TuningMethod
    options: TuningOptions
    promote_alias: str
    promote_only_if_better: bool
    request_id: str
    segmenter_digest: str
    prompt_set_digest: str
    dataset_digest: str
    def __init__(self, dataset: _Optional[str] = ..., inline: _Optional[_Union[InlineDataset, _Mapping]] = ..., adapter_id: _Optional[str] = ..., segmenter: _Optional[str] = ..., prompt_set: _Optional[str] = ..., method: _Optional[_Union[TuningMethod, str]] = ..., options: _Optional[_Union[TuningOptions, _Mapping]] = ..., promote_alias: _Optional[str] = ..., promote_only_if_better: _Optional[bool] = ..., request_id: _Optional[str] = ..., segmenter_digest: _Optional[str] = ..., prompt_set_digest: _Optional[str] = ..., dataset_digest: _Optional[str] = ...) -> None: ...

class CreateTuningJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: TuningJob
    def __init__(self, job: _Optional[_Union[TuningJob, _Mapping]] = ...) -> None: ...

class TuningJob(_message.Message):
    __slots__ = ("name", "state", "method", "options", "dataset", "segmenter", "adapter", "metrics", "message", "create_time", "end_time", "stage", "promotion", "adapter_id", "prompt_set", "promote_alias")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    SEGMENTER_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    PROMOTION_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_SET_FIELD_NUMBER: _ClassVar[int]
    PROMOTE_ALIAS_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: JobState
    method: TuningMethod
    options: TuningOptions
    dataset: _vision_pb2.ModelReference
    segmenter: _vision_pb2.ModelReference
    adapter: _vision_pb2.ModelReference
    metrics: _containers.ScalarMap[str, float]
    message: str
    create_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    stage: TuningStage
    promotion: str
    adapter_id: str
    prompt_set: _vision_pb2.ModelReference
    promote_alias: str
    def __init__(self, name: _Optional[str] = ..., state: _Optional[_Union[JobState, str]] = ..., method: _Optional[_Union[TuningMethod, str]] = ..., options: _Optional[_Union[TuningOptions, _Mapping]] = ..., dataset: _Optional[_Union[_vision_pb2.ModelReference, _Mapping]] = ..., segmenter: _Optional[_Union[_vision_pb2.ModelReference, _Mapping]] = ..., adapter: _Optional[_Union[_vision_pb2.ModelReference, _Mapping]] = ..., metrics: _Optional[_Mapping[str, float]] = ..., message: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., stage: _Optional[_Union[TuningStage, str]] = ..., promotion: _Optional[str] = ..., adapter_id: _Optional[str] = ..., prompt_set: _Optional[_Union[_vision_pb2.ModelReference, _Mapping]] = ..., promote_alias: _Optional[str] = ...) -> None: ...

class GetTuningJobRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetTuningJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: TuningJob
    def __init__(self, job: _Optional[_Union[TuningJob, _Mapping]] = ...) -> None: ...

class ListTuningJobsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListTuningJobsResponse(_message.Message):
    __slots__ = ("jobs", "next_page_token")
    JOBS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[TuningJob]
    next_page_token: str
    def __init__(self, jobs: _Optional[_Iterable[_Union[TuningJob, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class CancelTuningJobRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class CancelTuningJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: TuningJob
    def __init__(self, job: _Optional[_Union[TuningJob, _Mapping]] = ...) -> None: ...

class WatchTuningJobRequest(_message.Message):
    __slots__ = ("name", "from_sequence")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FROM_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    from_sequence: int
    def __init__(self, name: _Optional[str] = ..., from_sequence: _Optional[int] = ...) -> None: ...

class WatchTuningJobResponse(_message.Message):
    __slots__ = ("sequence", "state", "progress", "preview", "job")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    state: JobState
    progress: TuningProgress
    preview: TuningPreview
    job: TuningJob
    def __init__(self, sequence: _Optional[int] = ..., state: _Optional[_Union[JobState, str]] = ..., progress: _Optional[_Union[TuningProgress, _Mapping]] = ..., preview: _Optional[_Union[TuningPreview, _Mapping]] = ..., job: _Optional[_Union[TuningJob, _Mapping]] = ...) -> None: ...

class TuningProgress(_message.Message):
    __slots__ = ("step", "num_steps", "loss", "validation_iou")
    STEP_FIELD_NUMBER: _ClassVar[int]
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    VALIDATION_IOU_FIELD_NUMBER: _ClassVar[int]
    step: int
    num_steps: int
    loss: float
    validation_iou: float
    def __init__(self, step: _Optional[int] = ..., num_steps: _Optional[int] = ..., loss: _Optional[float] = ..., validation_iou: _Optional[float] = ...) -> None: ...

class TuningPreview(_message.Message):
    __slots__ = ("file_name", "class_id", "mask")
    FILE_NAME_FIELD_NUMBER: _ClassVar[int]
    CLASS_ID_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    file_name: str
    class_id: int
    mask: _vision_pb2.Mask
    def __init__(self, file_name: _Optional[str] = ..., class_id: _Optional[int] = ..., mask: _Optional[_Union[_vision_pb2.Mask, _Mapping]] = ...) -> None: ...

class CreateExportJobRequest(_message.Message):
    __slots__ = ("bundle_id", "prompt_set", "adapter", "request_id")
    BUNDLE_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_SET_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    bundle_id: str
    prompt_set: str
    adapter: str
    request_id: str
    def __init__(self, bundle_id: _Optional[str] = ..., prompt_set: _Optional[str] = ..., adapter: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class CreateExportJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: ExportJob
    def __init__(self, job: _Optional[_Union[ExportJob, _Mapping]] = ...) -> None: ...

class ExportJob(_message.Message):
    __slots__ = ("name", "state", "bundle", "message", "create_time", "end_time")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: JobState
    bundle: _vision_pb2.ModelReference
    message: str
    create_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., state: _Optional[_Union[JobState, str]] = ..., bundle: _Optional[_Union[_vision_pb2.ModelReference, _Mapping]] = ..., message: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class GetExportJobRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetExportJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: ExportJob
    def __init__(self, job: _Optional[_Union[ExportJob, _Mapping]] = ...) -> None: ...
