import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from vplab.api.vision.v1 import vision_pb2 as _vision_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Matcher(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MATCHER_UNSPECIFIED: _ClassVar[Matcher]
    MATCHER_SOFTMATCH: _ClassVar[Matcher]
    MATCHER_PROTOTYPE: _ClassVar[Matcher]
    MATCHER_GRAPH: _ClassVar[Matcher]

class DropPolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DROP_POLICY_UNSPECIFIED: _ClassVar[DropPolicy]
    DROP_POLICY_WAIT: _ClassVar[DropPolicy]
    DROP_POLICY_OLDEST: _ClassVar[DropPolicy]
    DROP_POLICY_NEWEST: _ClassVar[DropPolicy]
MATCHER_UNSPECIFIED: Matcher
MATCHER_SOFTMATCH: Matcher
MATCHER_PROTOTYPE: Matcher
MATCHER_GRAPH: Matcher
DROP_POLICY_UNSPECIFIED: DropPolicy
DROP_POLICY_WAIT: DropPolicy
DROP_POLICY_OLDEST: DropPolicy
DROP_POLICY_NEWEST: DropPolicy

class ModelSelection(_message.Message):
    __slots__ = ("segmenter", "adapter")
    SEGMENTER_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    segmenter: str
    adapter: str
    def __init__(self, segmenter: _Optional[str] = ..., adapter: _Optional[str] = ...) -> None: ...

class ObjectPrompt(_message.Message):
    __slots__ = ("points", "box", "low_res_logits", "mask")
    POINTS_FIELD_NUMBER: _ClassVar[int]
    BOX_FIELD_NUMBER: _ClassVar[int]
    LOW_RES_LOGITS_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    points: _containers.RepeatedCompositeFieldContainer[_vision_pb2.Point]
    box: _vision_pb2.Box
    low_res_logits: _vision_pb2.Tensor
    mask: _vision_pb2.Mask
    def __init__(self, points: _Optional[_Iterable[_Union[_vision_pb2.Point, _Mapping]]] = ..., box: _Optional[_Union[_vision_pb2.Box, _Mapping]] = ..., low_res_logits: _Optional[_Union[_vision_pb2.Tensor, _Mapping]] = ..., mask: _Optional[_Union[_vision_pb2.Mask, _Mapping]] = ...) -> None: ...

class PredictMasksRequest(_message.Message):
    __slots__ = ("image", "models", "prompts", "multimask", "include_low_res_logits")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    MULTIMASK_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_LOW_RES_LOGITS_FIELD_NUMBER: _ClassVar[int]
    image: _vision_pb2.Image
    models: ModelSelection
    prompts: _containers.RepeatedCompositeFieldContainer[ObjectPrompt]
    multimask: bool
    include_low_res_logits: bool
    def __init__(self, image: _Optional[_Union[_vision_pb2.Image, _Mapping]] = ..., models: _Optional[_Union[ModelSelection, _Mapping]] = ..., prompts: _Optional[_Iterable[_Union[ObjectPrompt, _Mapping]]] = ..., multimask: _Optional[bool] = ..., include_low_res_logits: _Optional[bool] = ...) -> None: ...

class PredictedMask(_message.Message):
    __slots__ = ("mask", "predicted_iou", "low_res_logits")
    MASK_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_IOU_FIELD_NUMBER: _ClassVar[int]
    LOW_RES_LOGITS_FIELD_NUMBER: _ClassVar[int]
    mask: _vision_pb2.Mask
    predicted_iou: float
    low_res_logits: _vision_pb2.Tensor
    def __init__(self, mask: _Optional[_Union[_vision_pb2.Mask, _Mapping]] = ..., predicted_iou: _Optional[float] = ..., low_res_logits: _Optional[_Union[_vision_pb2.Tensor, _Mapping]] = ...) -> None: ...

class ObjectMasks(_message.Message):
    __slots__ = ("masks",)
    MASKS_FIELD_NUMBER: _ClassVar[int]
    masks: _containers.RepeatedCompositeFieldContainer[PredictedMask]
    def __init__(self, masks: _Optional[_Iterable[_Union[PredictedMask, _Mapping]]] = ...) -> None: ...

class PredictMasksResponse(_message.Message):
    __slots__ = ("objects", "image_size", "provenance")
    OBJECTS_FIELD_NUMBER: _ClassVar[int]
    IMAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    objects: _containers.RepeatedCompositeFieldContainer[ObjectMasks]
    image_size: _vision_pb2.ImageSize
    provenance: _vision_pb2.Provenance
    def __init__(self, objects: _Optional[_Iterable[_Union[ObjectMasks, _Mapping]]] = ..., image_size: _Optional[_Union[_vision_pb2.ImageSize, _Mapping]] = ..., provenance: _Optional[_Union[_vision_pb2.Provenance, _Mapping]] = ...) -> None: ...

class SegmentClass(_message.Message):
    __slots__ = ("class_id", "display_name")
    CLASS_ID_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    class_id: int
    display_name: str
    def __init__(self, class_id: _Optional[int] = ..., display_name: _Optional[str] = ...) -> None: ...

class ReferenceMask(_message.Message):
    __slots__ = ("class_id", "mask")
    CLASS_ID_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    class_id: int
    mask: _vision_pb2.Mask
    def __init__(self, class_id: _Optional[int] = ..., mask: _Optional[_Union[_vision_pb2.Mask, _Mapping]] = ...) -> None: ...

class ReferenceImage(_message.Message):
    __slots__ = ("image", "masks")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    MASKS_FIELD_NUMBER: _ClassVar[int]
    image: _vision_pb2.Image
    masks: _containers.RepeatedCompositeFieldContainer[ReferenceMask]
    def __init__(self, image: _Optional[_Union[_vision_pb2.Image, _Mapping]] = ..., masks: _Optional[_Iterable[_Union[ReferenceMask, _Mapping]]] = ...) -> None: ...

class CreatePromptSetRequest(_message.Message):
    __slots__ = ("prompt_set_id", "display_name", "classes", "references", "segmenter", "feature_encoder", "options", "request_id")
    PROMPT_SET_ID_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    REFERENCES_FIELD_NUMBER: _ClassVar[int]
    SEGMENTER_FIELD_NUMBER: _ClassVar[int]
    FEATURE_ENCODER_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    prompt_set_id: str
    display_name: str
    classes: _containers.RepeatedCompositeFieldContainer[SegmentClass]
    references: _containers.RepeatedCompositeFieldContainer[ReferenceImage]
    segmenter: str
    feature_encoder: str
    options: SegmentOptions
    request_id: str
    def __init__(self, prompt_set_id: _Optional[str] = ..., display_name: _Optional[str] = ..., classes: _Optional[_Iterable[_Union[SegmentClass, _Mapping]]] = ..., references: _Optional[_Iterable[_Union[ReferenceImage, _Mapping]]] = ..., segmenter: _Optional[str] = ..., feature_encoder: _Optional[str] = ..., options: _Optional[_Union[SegmentOptions, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class CreatePromptSetResponse(_message.Message):
    __slots__ = ("prompt_set",)
    PROMPT_SET_FIELD_NUMBER: _ClassVar[int]
    prompt_set: PromptSet
    def __init__(self, prompt_set: _Optional[_Union[PromptSet, _Mapping]] = ...) -> None: ...

class ReferenceInfo(_message.Message):
    __slots__ = ("image_digest", "image_size", "masks")
    IMAGE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    IMAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    MASKS_FIELD_NUMBER: _ClassVar[int]
    image_digest: str
    image_size: _vision_pb2.ImageSize
    masks: _containers.RepeatedCompositeFieldContainer[ReferenceMask]
    def __init__(self, image_digest: _Optional[str] = ..., image_size: _Optional[_Union[_vision_pb2.ImageSize, _Mapping]] = ..., masks: _Optional[_Iterable[_Union[ReferenceMask, _Mapping]]] = ...) -> None: ...

class PromptSet(_message.Message):
    __slots__ = ("model", "display_name", "classes", "references", "segmenter", "feature_encoder", "options", "create_time")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    REFERENCES_FIELD_NUMBER: _ClassVar[int]
    SEGMENTER_FIELD_NUMBER: _ClassVar[int]
    FEATURE_ENCODER_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    model: _vision_pb2.ModelReference
    display_name: str
    classes: _containers.RepeatedCompositeFieldContainer[SegmentClass]
    references: _containers.RepeatedCompositeFieldContainer[ReferenceInfo]
    segmenter: _vision_pb2.ModelReference
    feature_encoder: _vision_pb2.ModelReference
    options: SegmentOptions
    create_time: _timestamp_pb2.Timestamp
    def __init__(self, model: _Optional[_Union[_vision_pb2.ModelReference, _Mapping]] = ..., display_name: _Optional[str] = ..., classes: _Optional[_Iterable[_Union[SegmentClass, _Mapping]]] = ..., references: _Optional[_Iterable[_Union[ReferenceInfo, _Mapping]]] = ..., segmenter: _Optional[_Union[_vision_pb2.ModelReference, _Mapping]] = ..., feature_encoder: _Optional[_Union[_vision_pb2.ModelReference, _Mapping]] = ..., options: _Optional[_Union[SegmentOptions, _Mapping]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class GetPromptSetRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetPromptSetResponse(_message.Message):
    __slots__ = ("prompt_set",)
    PROMPT_SET_FIELD_NUMBER: _ClassVar[int]
    prompt_set: PromptSet
    def __init__(self, prompt_set: _Optional[_Union[PromptSet, _Mapping]] = ...) -> None: ...

class ListPromptSetsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListPromptSetsResponse(_message.Message):
    __slots__ = ("prompt_sets", "next_page_token")
    PROMPT_SETS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    prompt_sets: _containers.RepeatedCompositeFieldContainer[PromptSet]
    next_page_token: str
    def __init__(self, prompt_sets: _Optional[_Iterable[_Union[PromptSet, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class SegmentOptions(_message.Message):
    __slots__ = ("matcher", "max_points", "num_background_points", "min_relative_score", "presence_threshold", "min_mask_score", "seed", "tile_side", "include_instances", "include_points")
    MATCHER_FIELD_NUMBER: _ClassVar[int]
    MAX_POINTS_FIELD_NUMBER: _ClassVar[int]
    NUM_BACKGROUND_POINTS_FIELD_NUMBER: _ClassVar[int]
    MIN_RELATIVE_SCORE_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    MIN_MASK_SCORE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    TILE_SIDE_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_INSTANCES_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_POINTS_FIELD_NUMBER: _ClassVar[int]
    matcher: Matcher
    max_points: int
    num_background_points: int
    min_relative_score: float
    presence_threshold: float
    min_mask_score: float
    seed: int
    tile_side: int
    include_instances: bool
    include_points: bool
    def __init__(self, matcher: _Optional[_Union[Matcher, str]] = ..., max_points: _Optional[int] = ..., num_background_points: _Optional[int] = ..., min_relative_score: _Optional[float] = ..., presence_threshold: _Optional[float] = ..., min_mask_score: _Optional[float] = ..., seed: _Optional[int] = ..., tile_side: _Optional[int] = ..., include_instances: _Optional[bool] = ..., include_points: _Optional[bool] = ...) -> None: ...

class SegmentImageRequest(_message.Message):
    __slots__ = ("image", "prompt_set", "adapter", "options")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_SET_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    image: _vision_pb2.Image
    prompt_set: str
    adapter: str
    options: SegmentOptions
    def __init__(self, image: _Optional[_Union[_vision_pb2.Image, _Mapping]] = ..., prompt_set: _Optional[str] = ..., adapter: _Optional[str] = ..., options: _Optional[_Union[SegmentOptions, _Mapping]] = ...) -> None: ...

class Instance(_message.Message):
    __slots__ = ("mask", "score", "predicted_iou", "box")
    MASK_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_IOU_FIELD_NUMBER: _ClassVar[int]
    BOX_FIELD_NUMBER: _ClassVar[int]
    mask: _vision_pb2.Mask
    score: float
    predicted_iou: float
    box: _vision_pb2.Box
    def __init__(self, mask: _Optional[_Union[_vision_pb2.Mask, _Mapping]] = ..., score: _Optional[float] = ..., predicted_iou: _Optional[float] = ..., box: _Optional[_Union[_vision_pb2.Box, _Mapping]] = ...) -> None: ...

class ClassResult(_message.Message):
    __slots__ = ("class_id", "display_name", "present", "presence_score", "presence_threshold", "mask", "score", "instances", "points")
    CLASS_ID_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    PRESENT_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_SCORE_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    class_id: int
    display_name: str
    present: bool
    presence_score: float
    presence_threshold: float
    mask: _vision_pb2.Mask
    score: float
    instances: _containers.RepeatedCompositeFieldContainer[Instance]
    points: _containers.RepeatedCompositeFieldContainer[_vision_pb2.Point]
    def __init__(self, class_id: _Optional[int] = ..., display_name: _Optional[str] = ..., present: _Optional[bool] = ..., presence_score: _Optional[float] = ..., presence_threshold: _Optional[float] = ..., mask: _Optional[_Union[_vision_pb2.Mask, _Mapping]] = ..., score: _Optional[float] = ..., instances: _Optional[_Iterable[_Union[Instance, _Mapping]]] = ..., points: _Optional[_Iterable[_Union[_vision_pb2.Point, _Mapping]]] = ...) -> None: ...

class SegmentImageResponse(_message.Message):
    __slots__ = ("classes", "image_size", "provenance", "timings")
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    IMAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    classes: _containers.RepeatedCompositeFieldContainer[ClassResult]
    image_size: _vision_pb2.ImageSize
    provenance: _vision_pb2.Provenance
    timings: Timings
    def __init__(self, classes: _Optional[_Iterable[_Union[ClassResult, _Mapping]]] = ..., image_size: _Optional[_Union[_vision_pb2.ImageSize, _Mapping]] = ..., provenance: _Optional[_Union[_vision_pb2.Provenance, _Mapping]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("embed", "match", "decode", "total")
    EMBED_FIELD_NUMBER: _ClassVar[int]
    MATCH_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    embed: _duration_pb2.Duration
    match: _duration_pb2.Duration
    decode: _duration_pb2.Duration
    total: _duration_pb2.Duration
    def __init__(self, embed: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., match: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., decode: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., total: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class SegmentImagesConfig(_message.Message):
    __slots__ = ("prompt_set", "adapter", "options", "max_in_flight", "drop_policy")
    PROMPT_SET_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    DROP_POLICY_FIELD_NUMBER: _ClassVar[int]
    prompt_set: str
    adapter: str
    options: SegmentOptions
    max_in_flight: int
    drop_policy: DropPolicy
    def __init__(self, prompt_set: _Optional[str] = ..., adapter: _Optional[str] = ..., options: _Optional[_Union[SegmentOptions, _Mapping]] = ..., max_in_flight: _Optional[int] = ..., drop_policy: _Optional[_Union[DropPolicy, str]] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("frame_id", "image")
    FRAME_ID_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    frame_id: str
    image: _vision_pb2.Image
    def __init__(self, frame_id: _Optional[str] = ..., image: _Optional[_Union[_vision_pb2.Image, _Mapping]] = ...) -> None: ...

class SegmentImagesRequest(_message.Message):
    __slots__ = ("config", "frame")
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    config: SegmentImagesConfig
    frame: Frame
    def __init__(self, config: _Optional[_Union[SegmentImagesConfig, _Mapping]] = ..., frame: _Optional[_Union[Frame, _Mapping]] = ...) -> None: ...

class SegmentImagesResponse(_message.Message):
    __slots__ = ("frame_id", "result", "error", "dropped")
    FRAME_ID_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    frame_id: str
    result: SegmentImageResponse
    error: FrameError
    dropped: FrameDropped
    def __init__(self, frame_id: _Optional[str] = ..., result: _Optional[_Union[SegmentImageResponse, _Mapping]] = ..., error: _Optional[_Union[FrameError, _Mapping]] = ..., dropped: _Optional[_Union[FrameDropped, _Mapping]] = ...) -> None: ...

class FrameError(_message.Message):
    __slots__ = ("code", "reason", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: int
    reason: str
    message: str
    def __init__(self, code: _Optional[int] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class FrameDropped(_message.Message):
    __slots__ = ("num_dropped",)
    NUM_DROPPED_FIELD_NUMBER: _ClassVar[int]
    num_dropped: int
    def __init__(self, num_dropped: _Optional[int] = ...) -> None: ...
