"""The registry's messages to values and back."""

from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct

from vplab.api.registry.v1 import registry_service_pb2 as pb
from vplab.client.registry.values import (
    Alias,
    AliasChange,
    Artifact,
    BlobFile,
    Garbage,
    Lease,
    Lineage,
    Manifest,
    Version,
)
from vplab.client.times import time_of
from vplab.errors import InvalidInput
from vplab.wire.enums import EnumWords
from vplab.wire.names import parse_version_name

KINDS = EnumWords(pb.ArtifactKind)


def artifact(message: pb.Artifact) -> Artifact:
    """Return the value of an artifact message."""
    return Artifact(
        name=message.name,
        kind=KINDS.word(message.kind),
        display_name=message.display_name,
        description=message.description,
        labels=dict(message.labels),
        create_time=time_of(message, "create_time"),
        delete_time=time_of(message, "delete_time"),
        expire_time=time_of(message, "expire_time"),
        etag=message.etag,
    )


def manifest(message: pb.Manifest) -> Manifest:
    """Return the value of a manifest message. Raises InvalidInput for a path that leaves its folder."""
    return Manifest(
        files=tuple(blob_file(file, f"manifest.files[{index}]") for index, file in enumerate(message.files)),
        lineage=tuple(Lineage(item.relation, item.version, item.digest) for item in message.lineage),
        metrics=dict(message.metrics),
        licence=message.licence,
        spec=json_format.MessageToDict(message.spec),
        description=message.description,
    )


def blob_file(message: pb.BlobFile, field: str) -> BlobFile:
    """Return the value of a file message.

    Raises InvalidInput for a path that is absolute, empty, or has empty, ``.`` or ``..`` parts: readers write to it.
    """
    parts = message.path.split("/")
    if (
        not message.path
        or "\\" in message.path
        or "\0" in message.path
        or any(part in ("", ".", "..") for part in parts)
    ):
        raise InvalidInput(f"{message.path!r} is no plain relative path", field=f"{field}.path")
    return BlobFile(message.path, message.sha256, message.size_bytes, message.media_type)


def manifest_to_proto(value: Manifest) -> pb.Manifest:
    """Return the message of a manifest. Raises InvalidInput for a spec that is not JSON."""
    spec = Struct()
    try:
        spec.update(dict(value.spec))
    except (ValueError, TypeError) as error:
        raise InvalidInput(f"is not a JSON object: {error}", field="manifest.spec") from error
    return pb.Manifest(
        files=[
            pb.BlobFile(path=f.path, sha256=f.sha256, size_bytes=f.size_bytes, media_type=f.media_type)
            for f in value.files
        ],
        lineage=[pb.Lineage(relation=m.relation, version=m.version, digest=m.digest) for m in value.lineage],
        metrics=dict(value.metrics),
        licence=value.licence,
        spec=spec,
        description=value.description,
    )


def version(message: pb.Version) -> Version:
    """Return the value of a version message. Raises InvalidInput when its name is malformed."""
    parse_version_name(message.name, field="version.name")
    return Version(
        name=message.name,
        digest=message.digest,
        manifest=manifest(message.manifest),
        kind=KINDS.word(message.kind),
        create_time=time_of(message, "create_time"),
    )


def alias(message: pb.Alias) -> Alias:
    """Return the value of an alias message."""
    return Alias(
        name=message.name,
        version=message.version,
        version_digest=message.version_digest,
        etag=message.etag,
        revision=message.revision,
        update_time=time_of(message, "update_time"),
    )


def alias_change(message: pb.AliasChange) -> AliasChange:
    """Return the value of a history entry."""
    return AliasChange(
        revision=message.revision,
        alias=message.alias,
        version=message.version,
        version_digest=message.version_digest,
        previous_version=message.previous_version,
        reason=message.reason,
        actor=message.actor,
        change_time=time_of(message, "change_time"),
    )


def lease(message: pb.Lease) -> Lease:
    """Return the value of a lease message."""
    return Lease(message.name, message.version, message.holder, time_of(message, "expire_time"))


def garbage(message: pb.CollectGarbageResponse) -> Garbage:
    """Return what a collection removed."""
    return Garbage(tuple(message.artifacts), tuple(message.blob_digests), message.freed_bytes)
