"""Resource names: the strings by which everything in the contract is called, parsed and formatted in one place."""

import re
import uuid
from dataclasses import dataclass

from vplab.errors import InvalidInput

DEFAULT_ALIAS = "production"
"""What a name without a version or alias stands for."""

_ID = r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?"
_JOB = r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}"
_NUMBER = r"[1-9][0-9]{0,17}"
_ARTIFACT_ID = re.compile(_ID)
_ARTIFACT = re.compile(rf"artifacts/(?P<artifact>{_ID})")
_VERSION = re.compile(rf"artifacts/(?P<artifact>{_ID})/versions/(?P<number>{_NUMBER})")
_ALIAS = re.compile(rf"artifacts/(?P<artifact>{_ID})/aliases/(?P<alias>{_ID})")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_EMBEDDING = re.compile(r"embeddings/(?P<id>[0-9a-f]{64})")
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


@dataclass(frozen=True, order=True)
class ArtifactName:
    """``artifacts/{artifact}``."""

    artifact: str

    def __str__(self) -> str:
        return f"artifacts/{self.artifact}"


@dataclass(frozen=True, order=True)
class VersionName:
    """``artifacts/{artifact}/versions/{number}``."""

    artifact: str
    number: int

    def __str__(self) -> str:
        return f"artifacts/{self.artifact}/versions/{self.number}"

    @property
    def parent(self) -> ArtifactName:
        return ArtifactName(self.artifact)


@dataclass(frozen=True, order=True)
class AliasName:
    """``artifacts/{artifact}/aliases/{alias}``."""

    artifact: str
    alias: str

    def __str__(self) -> str:
        return f"artifacts/{self.artifact}/aliases/{self.alias}"

    @property
    def parent(self) -> ArtifactName:
        return ArtifactName(self.artifact)


def parse_artifact_name(name: str, *, field: str) -> ArtifactName:
    """Parse ``artifacts/{artifact}``. Raises InvalidInput."""
    return ArtifactName(_match(_ARTIFACT, name, "artifacts/{artifact}", field)["artifact"])


def parse_version_name(name: str, *, field: str) -> VersionName:
    """Parse ``artifacts/{artifact}/versions/{number}``. Raises InvalidInput."""
    found = _match(_VERSION, name, "artifacts/{artifact}/versions/{number}", field)
    return VersionName(found["artifact"], int(found["number"]))


def parse_alias_name(name: str, *, field: str) -> AliasName:
    """Parse ``artifacts/{artifact}/aliases/{alias}``. Raises InvalidInput."""
    found = _match(_ALIAS, name, "artifacts/{artifact}/aliases/{alias}", field)
    return AliasName(found["artifact"], found["alias"])


def parse_version_or_alias(name: str, *, field: str) -> VersionName | AliasName:
    """Parse whatever names a version; an artifact's own name means its ``production`` alias. Raises InvalidInput."""
    if found := _VERSION.fullmatch(name):
        return VersionName(found["artifact"], int(found["number"]))
    if found := _ALIAS.fullmatch(name):
        return AliasName(found["artifact"], found["alias"])
    if found := _ARTIFACT.fullmatch(name):
        return AliasName(found["artifact"], DEFAULT_ALIAS)
    raise _mismatch("artifacts/{artifact}[/versions/{number}|/aliases/{alias}]", name, field)


def parse_artifact_id(text: str, *, field: str) -> str:
    """Return an artifact's or alias's id: a lower-case letter, then letters, digits and inner hyphens, 63 at most."""
    _match(_ARTIFACT_ID, text, "[a-z][a-z0-9-]{0,62}, not ending in a hyphen", field)
    return text


def parse_embedding_name(name: str, *, field: str) -> str:
    """Return the key of ``embeddings/{key}``. Raises InvalidInput."""
    return _match(_EMBEDDING, name, "embeddings/{64 lower-case hex digits}", field)["id"]


def parse_job_name(name: str, *, collection: str, field: str) -> str:
    """Return the id of ``{collection}/{job}``, such as ``tuningJobs/7``. Raises InvalidInput."""
    return _match(re.compile(rf"{collection}/(?P<id>{_JOB})"), name, f"{collection}/{{id}}", field)["id"]


def parse_lease_name(name: str, *, field: str) -> str:
    """Return the id of ``leases/{lease}``. Raises InvalidInput."""
    return parse_job_name(name, collection="leases", field=field)


def parse_sha256(text: str, *, field: str) -> str:
    """Return a digest as it stands: 64 lower-case hex digits. Raises InvalidInput."""
    _match(_SHA256, text, "64 lower-case hex digits", field)
    return text


def parse_request_id(text: str, *, field: str = "request_id", required: bool = False) -> uuid.UUID | None:
    """Parse a caller's UUID; None when it is empty and not ``required``. Raises InvalidInput."""
    if not text and not required:
        return None
    _match(_UUID, text, "a UUID such as 123e4567-e89b-42d3-a456-426614174000", field)
    return uuid.UUID(text)


def _match(pattern: re.Pattern[str], text: str, form: str, field: str) -> re.Match[str]:
    found = pattern.fullmatch(text)
    if found is None:
        raise _mismatch(form, text, field)
    return found


def _mismatch(form: str, text: str, field: str) -> InvalidInput:
    if not text:
        return InvalidInput(f"is required: {form}", field=field)
    shown = text if len(text) <= 80 else text[:77] + "..."
    return InvalidInput(f"{shown!r} is not of the form {form}", field=field)
