"""Between the contract's messages and the registry's values."""

import math
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from google.protobuf import struct_pb2

from vplab.api.registry.v1 import registry_service_pb2 as pb
from vplab.errors import InvalidInput
from vplab.registry.canonical_json import JsonValue
from vplab.registry.paging import PageRequest
from vplab.registry.values import (
    Alias,
    AliasChange,
    AliasKey,
    Artifact,
    ArtifactKind,
    BlobFile,
    Lease,
    Lineage,
    Manifest,
    Version,
    VersionKey,
)
from vplab.wire import names

KINDS: Final = {kind: pb.ArtifactKind.Value(f"ARTIFACT_KIND_{kind.name}") for kind in ArtifactKind}
KINDS_BY_NUMBER: Final = {int(number): kind for kind, number in KINDS.items()}
MAX_SECONDS: Final = 10**10


def artifact_id(name: str, field: str = "name") -> str:
    """Return the id in ``artifacts/{artifact}``. Raises InvalidInput."""
    return names.parse_artifact_name(name, field=field).artifact


def version_key(name: str, field: str) -> VersionKey:
    """Return what ``artifacts/{artifact}/versions/{number}`` names. Raises InvalidInput."""
    parsed = names.parse_version_name(name, field=field)
    return VersionKey(parsed.artifact, parsed.number)


def alias_key(name: str, field: str) -> AliasKey:
    """Return what ``artifacts/{artifact}/aliases/{alias}`` names. Raises InvalidInput."""
    parsed = names.parse_alias_name(name, field=field)
    return AliasKey(parsed.artifact, parsed.alias)


def version_or_alias(name: str, field: str = "name") -> VersionKey | AliasKey:
    """Return what names a version; an artifact's own name stands for its production alias. Raises InvalidInput."""
    parsed = names.parse_version_or_alias(name, field=field)
    if isinstance(parsed, names.VersionName):
        return VersionKey(parsed.artifact, parsed.number)
    return AliasKey(parsed.artifact, parsed.alias)


def request_id(text: str) -> str:
    """Return a request_id in its canonical spelling, or an empty one. Raises InvalidInput."""
    parsed = names.parse_request_id(text)
    return "" if parsed is None else str(parsed)


def kind(number: int, field: str) -> ArtifactKind:
    """Return a kind of artifact. Raises InvalidInput for none or an unknown one."""
    if number not in KINDS_BY_NUMBER:
        raise InvalidInput("is required" if number == 0 else f"{number} is no kind of artifact", field=field)
    return KINDS_BY_NUMBER[number]


def kind_filter(number: int, field: str) -> ArtifactKind | None:
    """Return a kind to filter by; None for every kind. Raises InvalidInput."""
    return None if number == 0 else kind(number, field)


def page_request(request: Any) -> PageRequest:
    return PageRequest(request.page_size, request.page_token)


def ttl(request: Any) -> timedelta:
    """Return a request's ttl. Raises InvalidInput."""
    if not request.HasField("ttl"):
        raise InvalidInput("is required", field="ttl")
    seconds, nanos = request.ttl.seconds, request.ttl.nanos
    if abs(seconds) > MAX_SECONDS or abs(nanos) >= 10**9 or seconds * nanos < 0:
        raise InvalidInput("is not a valid duration", field="ttl")
    return timedelta(seconds=seconds, microseconds=nanos // 1000)


def manifest(message: pb.Manifest) -> Manifest:
    """Return a manifest's values; what they may be is checked by the core. Raises InvalidInput."""
    return Manifest(
        files=tuple(BlobFile(f.path, f.sha256, f.size_bytes, f.media_type) for f in message.files),
        lineage=tuple(
            Lineage(e.relation, version_key(e.version, f"manifest.lineage[{index}].version"), e.digest)
            for index, e in enumerate(message.lineage)
        ),
        metrics=dict(message.metrics),
        licence=message.licence,
        spec=_object(message.spec, "manifest.spec"),
        description=message.description,
    )


def _object(message: struct_pb2.Struct, field: str) -> dict[str, JsonValue]:
    return {name: _json(value, f"{field}.{name[:80]}") for name, value in message.fields.items()}


def _json(message: struct_pb2.Value, field: str) -> JsonValue:
    which = message.WhichOneof("kind")
    if which == "struct_value":
        return _object(message.struct_value, field)
    if which == "list_value":
        return [_json(value, f"{field}[{index}]") for index, value in enumerate(message.list_value.values)]
    if which is None:
        raise InvalidInput("has no value", field=field)
    if which == "number_value" and not math.isfinite(message.number_value):
        raise InvalidInput("is not a finite number", field=field)
    return None if which == "null_value" else getattr(message, which)  # type: ignore[no-any-return]


def artifact_message(artifact: Artifact) -> pb.Artifact:
    message = pb.Artifact(
        name=artifact.name,
        kind=KINDS[artifact.kind],
        display_name=artifact.display_name,
        description=artifact.description,
        labels=artifact.labels,
        etag=artifact.etag,
    )
    _set_time(message.create_time, artifact.create_time)
    if artifact.delete_time is not None:
        _set_time(message.delete_time, artifact.delete_time)
    if artifact.expire_time is not None:
        _set_time(message.expire_time, artifact.expire_time)
    return message


def version_message(version: Version) -> pb.Version:
    message = pb.Version(
        name=str(version.key),
        digest=version.digest,
        manifest=manifest_message(version.manifest),
        kind=KINDS[version.kind],
    )
    _set_time(message.create_time, version.create_time)
    return message


def manifest_message(value: Manifest) -> pb.Manifest:
    message = pb.Manifest(
        files=[
            pb.BlobFile(path=f.path, sha256=f.sha256, size_bytes=f.size_bytes, media_type=f.media_type)
            for f in value.files
        ],
        lineage=[pb.Lineage(relation=e.relation, version=str(e.version), digest=e.digest) for e in value.lineage],
        metrics=value.metrics,
        licence=value.licence,
        description=value.description,
    )
    message.spec.update(_plain(value.spec))
    return message


def _plain(spec: Mapping[str, JsonValue]) -> dict[str, Any]:
    return dict(spec)


def alias_message(alias: Alias) -> pb.Alias:
    message = pb.Alias(
        name=str(alias.key),
        version=str(alias.version),
        version_digest=alias.version_digest,
        etag=alias.etag,
        revision=alias.revision,
    )
    _set_time(message.update_time, alias.update_time)
    return message


def change_message(change: AliasChange) -> pb.AliasChange:
    message = pb.AliasChange(
        revision=change.revision,
        alias=str(change.key),
        version=_version_name(change.key, change.number),
        version_digest=change.version_digest,
        previous_version=_version_name(change.key, change.previous_number),
        reason=change.reason,
        actor=change.actor,
    )
    _set_time(message.change_time, change.change_time)
    return message


def lease_message(lease: Lease) -> pb.Lease:
    message = pb.Lease(name=f"leases/{lease.lease_id}", version=str(lease.version), holder=lease.holder)
    _set_time(message.expire_time, lease.expire_time)
    return message


def _version_name(key: AliasKey, number: int | None) -> str:
    return "" if number is None else str(VersionKey(key.artifact_id, number))


def _set_time(message: Any, time: datetime) -> None:
    message.FromDatetime(time)
