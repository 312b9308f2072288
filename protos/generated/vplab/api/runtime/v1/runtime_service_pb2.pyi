import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from vplab.api.vision.v1 import vision_pb2 as _vision_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("server",)
    SERVER_FIELD_NUMBER: _ClassVar[int]
    server: ServerInfo
    def __init__(self, server: _Optional[_Union[ServerInfo, _Mapping]] = ...) -> None: ...

class ServerInfo(_message.Message):
    __slots__ = ("service", "instance", "software", "start_time", "uptime", "served_services", "served_models", "queues", "resident_memory_bytes", "is_draining")
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    UPTIME_FIELD_NUMBER: _ClassVar[int]
    SERVED_SERVICES_FIELD_NUMBER: _ClassVar[int]
    SERVED_MODELS_FIELD_NUMBER: _ClassVar[int]
    QUEUES_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    IS_DRAINING_FIELD_NUMBER: _ClassVar[int]
    service: str
    instance: str
    software: str
    start_time: _timestamp_pb2.Timestamp
    uptime: _duration_pb2.Duration
    served_services: _containers.RepeatedScalarFieldContainer[str]
    served_models: _containers.RepeatedCompositeFieldContainer[ServedModel]
    queues: _containers.RepeatedCompositeFieldContainer[QueueInfo]
    resident_memory_bytes: int
    is_draining: bool
    def __init__(self, service: _Optional[str] = ..., instance: _Optional[str] = ..., software: _Optional[str] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., uptime: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., served_services: _Optional[_Iterable[str]] = ..., served_models: _Optional[_Iterable[_Union[ServedModel, _Mapping]]] = ..., queues: _Optional[_Iterable[_Union[QueueInfo, _Mapping]]] = ..., resident_memory_bytes: _Optional[int] = ..., is_draining: _Optional[bool] = ...) -> None: ...

class ServedModel(_message.Message):
    __slots__ = ("role", "model", "aliases", "device")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    role: str
    model: _vision_pb2.ModelReference
    aliases: _containers.RepeatedScalarFieldContainer[str]
    device: str
    def __init__(self, role: _Optional[str] = ..., model: _Optional[_Union[_vision_pb2.ModelReference, _Mapping]] = ..., aliases: _Optional[_Iterable[str]] = ..., device: _Optional[str] = ...) -> None: ...

class QueueInfo(_message.Message):
    __slots__ = ("name", "depth", "capacity", "running")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    name: str
    depth: int
    capacity: int
    running: int
    def __init__(self, name: _Optional[str] = ..., depth: _Optional[int] = ..., capacity: _Optional[int] = ..., running: _Optional[int] = ...) -> None: ...
