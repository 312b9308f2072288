"""What the registry speaks in: artifacts, versions, aliases, blobs and leases as frozen values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final

from vplab.registry.canonical_json import JsonValue

PRODUCTION: Final = "production"
"""The alias that a name without a version stands for."""

PARITY_PASSED: Final = "parity_passed"
"""Metric of versions whose graphs were compared with what they were made from: 1 where all agree, else 0."""

PROVENANCE_RELATIONS: Final = frozenset({"dataset", "compared_with"})
"""Lineage that only says where a version came from: whoever deletes a data set means it. Without any other lineage a
version may not work, so that is kept as long as the version."""


class ArtifactKind(StrEnum):
    """What an artifact's versions hold."""

    ENCODER = "encoder"
    SEGMENTER = "segmenter"
    ADAPTER = "adapter"
    PROMPT_SET = "prompt_set"
    DATASET = "dataset"
    BUNDLE = "bundle"


@dataclass(frozen=True, order=True)
class VersionKey:
    """Which version of which artifact."""

    artifact_id: str
    number: int

    def __str__(self) -> str:
        return f"artifacts/{self.artifact_id}/versions/{self.number}"


@dataclass(frozen=True, order=True)
class AliasKey:
    """Which alias of which artifact."""

    artifact_id: str
    alias: str

    def __str__(self) -> str:
        return f"artifacts/{self.artifact_id}/aliases/{self.alias}"


@dataclass(frozen=True)
class Artifact:
    """A name that versions are published under."""

    artifact_id: str
    kind: ArtifactKind
    display_name: str
    description: str
    labels: Mapping[str, str]
    create_time: datetime
    delete_time: datetime | None = None
    expire_time: datetime | None = None
    """When a soft-deleted artifact may be collected."""
    change: int = 1
    """Counts the changes; its etag."""

    @property
    def name(self) -> str:
        return f"artifacts/{self.artifact_id}"

    @property
    def etag(self) -> str:
        return f'"{self.change}"'


@dataclass(frozen=True)
class BlobFile:
    """One file of a version: where it lies and which blob it is."""

    path: str
    sha256: str
    size_bytes: int
    media_type: str = ""


@dataclass(frozen=True, order=True)
class Lineage:
    """One thing a version was made from or needs."""

    relation: str
    version: VersionKey
    digest: str


@dataclass(frozen=True)
class Manifest:
    """The content of a version."""

    files: tuple[BlobFile, ...]
    lineage: tuple[Lineage, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    licence: str = ""
    spec: Mapping[str, JsonValue] = field(default_factory=dict)
    description: str = ""


@dataclass(frozen=True)
class Version:
    """One immutable published manifest."""

    key: VersionKey
    digest: str
    """sha256 of the canonical manifest, hex."""
    manifest: Manifest
    kind: ArtifactKind
    create_time: datetime


@dataclass(frozen=True)
class Alias:
    """A name that points at a version and can be moved."""

    key: AliasKey
    number: int
    version_digest: str
    revision: int
    update_time: datetime

    @property
    def version(self) -> VersionKey:
        return VersionKey(self.key.artifact_id, self.number)

    @property
    def etag(self) -> str:
        return f'"{self.revision}"'


@dataclass(frozen=True)
class AliasChange:
    """One entry of the registry's history of aliases."""

    revision: int
    key: AliasKey
    number: int | None
    """What it points at since; None when the alias went with its artifact."""
    version_digest: str
    previous_number: int | None
    reason: str
    actor: str
    change_time: datetime


@dataclass(frozen=True)
class Lease:
    """A promise not to collect a version before a time."""

    lease_id: str
    version: VersionKey
    holder: str
    expire_time: datetime


class BlobState(StrEnum):
    """Where a blob stands between upload and collection."""

    STORING = "storing"
    """Its bytes are verified and on their way to the store; nothing may name it yet."""
    STORED = "stored"
    """Readable; the only state in which a version may name it."""
    DAMAGED = "damaged"
    """The stored bytes were found not to match; an upload replaces them."""
    DELETING = "deleting"
    """Collection removes it; an upload that comes in between takes it back."""


@dataclass(frozen=True)
class BlobRecord:
    """What the catalogue knows about a blob."""

    sha256: str
    size_bytes: int
    state: BlobState
    touch_time: datetime
    """When it was last uploaded, asked for by an uploader, or let go by a version."""


@dataclass(frozen=True)
class UploadStatus:
    """How far an upload came."""

    is_complete: bool
    committed_bytes: int


@dataclass(frozen=True)
class RequestRecord:
    """What a request_id was used for."""

    request_id: str
    fingerprint: str
    resource: str
    """Name of what the request made."""
    expire_time: datetime


@dataclass(frozen=True)
class GarbageReport:
    """What a collection removed, or would."""

    artifact_ids: tuple[str, ...]
    blob_digests: tuple[str, ...]
    freed_bytes: int
