"""What the registry speaks of, as plain values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

ArtifactKind = Literal["encoder", "segmenter", "adapter", "prompt_set", "dataset", "bundle"]


@dataclass(frozen=True)
class Artifact:
    """A name that versions are published under."""

    name: str
    """``artifacts/{artifact}``."""
    kind: str
    """An ``ArtifactKind``; never changes."""
    display_name: str
    description: str
    labels: Mapping[str, str]
    create_time: datetime | None
    delete_time: datetime | None
    """When it was soft-deleted; None while it lives."""
    expire_time: datetime | None
    """When a soft-deleted artifact may be collected; None while it lives."""
    etag: str


@dataclass(frozen=True)
class BlobFile:
    """One file of a version."""

    path: str
    """Relative, with forward slashes; unique in the version."""
    sha256: str
    size_bytes: int
    media_type: str = ""


@dataclass(frozen=True)
class Lineage:
    """One version that another was made from or needs."""

    relation: str
    """What for: ``image_encoder``, ``segmenter``, ``feature_encoder``, ``dataset``, ``prompt_set`` or ``adapter``."""
    version: str
    """``artifacts/{artifact}/versions/{number}``."""
    digest: str
    """That version's digest."""


@dataclass(frozen=True)
class Manifest:
    """The content of a version."""

    files: tuple[BlobFile, ...]
    lineage: tuple[Lineage, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    licence: str = ""
    """SPDX identifier or the name of the terms."""
    spec: Mapping[str, Any] = field(default_factory=dict)
    """JSON object, such as the content of ``model.json``; numbers come back as float."""
    description: str = ""

    def file(self, path: str) -> BlobFile | None:
        """Return the file of that path, or None."""
        return next((file for file in self.files if file.path == path), None)

    def made_from(self, relation: str) -> Lineage | None:
        """Return the first lineage of that relation, or None."""
        return next((lineage for lineage in self.lineage if lineage.relation == relation), None)


@dataclass(frozen=True)
class Version:
    """One immutable published manifest."""

    name: str
    """``artifacts/{artifact}/versions/{number}``."""
    digest: str
    """sha256 of the canonical manifest."""
    manifest: Manifest
    kind: str
    create_time: datetime | None


@dataclass(frozen=True)
class Alias:
    """A name that points at a version and can be moved."""

    name: str
    """``artifacts/{artifact}/aliases/{alias}``."""
    version: str
    version_digest: str
    etag: str
    """Give it back to ``set_alias`` to move the alias only if nobody else did meanwhile."""
    revision: int
    update_time: datetime | None


@dataclass(frozen=True)
class AliasList:
    """Aliases, and the revision at which they were read."""

    aliases: tuple[Alias, ...]
    revision: int
    """Watch from here to miss nothing."""


@dataclass(frozen=True)
class AliasChange:
    """One entry of an alias's history."""

    revision: int
    alias: str
    version: str
    """Empty when the alias was removed with its artifact."""
    version_digest: str
    previous_version: str
    """Empty when the alias was new."""
    reason: str
    actor: str
    change_time: datetime | None


@dataclass(frozen=True)
class Lease:
    """Protects a version from garbage collection until it expires."""

    name: str
    version: str
    holder: str
    expire_time: datetime | None


@dataclass(frozen=True)
class UploadState:
    """How far an upload is."""

    complete: bool
    committed_bytes: int
    """Where to resume."""


@dataclass(frozen=True)
class Garbage:
    """What a collection removed, or would remove."""

    artifacts: tuple[str, ...]
    blob_digests: tuple[str, ...]
    freed_bytes: int
