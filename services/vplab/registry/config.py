"""What the registry can be told from outside: the only list of its variables."""

import os
from datetime import timedelta
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote, urlsplit

from pydantic import Field, field_validator

from vplab.registry.core.registry import Retention
from vplab.runtime.settings import ServerSettings, home

Hours = Annotated[float, Field(ge=0, le=24 * 366 * 100, allow_inf_nan=False)]


class RegistryConfig(ServerSettings, env_prefix="VPLAB_REGISTRY_"):
    """Variables are these names in capitals after ``VPLAB_REGISTRY_``."""

    listen: str = "127.0.0.1:7301"
    database_url: str = Field(default_factory=lambda: f"sqlite:///{home() / 'registry' / 'registry.db'}")
    """``sqlite:////absolute/path`` or ``postgresql://user:password@host/name``. SQLite serves one machine; several
    replicas share a PostgreSQL."""
    blob_url: str = Field(default_factory=lambda: (home() / "registry" / "blobs").as_uri())
    """``file:///folder`` or ``s3://bucket/prefix``; S3's endpoint, region and credentials come from the usual ``AWS_*``
    variables. An ``AWS_ENDPOINT_URL`` that begins with ``http://`` is taken as permission not to encrypt."""
    staging_folder: Path | None = None
    """Where uploads to S3 wait until they are verified; a local folder with room for the largest. Uploads to a folder
    wait inside it. Unset takes ``staging`` beside the default database."""
    builtin_models: bool = True
    """Whether the models that ship with VP Lab are published at the start."""
    threads: Annotated[int, Field(ge=1, le=256)] = 16
    """Calls that may use the database, and as many that may use the blobs, at the same time."""
    watch_poll_s: Annotated[float, Field(gt=0, le=30)] = 0.5
    """How often this process asks the database whether another replica moved an alias, while anybody watches."""
    watch_heartbeat_s: Annotated[float, Field(gt=0, le=30)] = 15.0
    """How often a watcher hears that nothing has changed; the contract promises 30 s at most."""

    gc_interval_hours: Hours = 6.0
    """Time between two garbage collections of this process; 0 leaves them to CollectGarbage."""
    gc_grace_hours: Hours = 24.0
    """How long a blob that no version names is kept: the time an uploader has until it publishes."""
    deleted_artifacts_hours: Hours = 30 * 24.0
    """How long a deleted artifact can be restored."""
    request_ids_hours: Hours = 24.0
    """How long a request_id is remembered."""
    alias_history_hours: Hours | None = None
    """How long the history of aliases is kept; unset keeps it for ever."""

    @field_validator("database_url")
    @classmethod
    def _check_database(cls, value: str) -> str:
        if not value.startswith(("sqlite:///", "postgresql://", "postgresql+psycopg://")):
            raise ValueError("must be sqlite:///path or postgresql://user@host/name")
        return value

    @field_validator("blob_url")
    @classmethod
    def _check_blobs(cls, value: str) -> str:
        url = urlsplit(value)
        is_file = url.scheme == "file" and not url.netloc and url.path.startswith("/")
        is_bucket = url.scheme == "s3" and bool(url.netloc)
        if not is_file and not is_bucket:
            raise ValueError("must be file:///folder or s3://bucket/prefix")
        return value

    @property
    def blob_folder(self) -> Path | None:
        """The folder of blobs; None when they are in S3."""
        url = urlsplit(self.blob_url)
        return Path(unquote(url.path)) if url.scheme == "file" else None

    @property
    def upload_folder(self) -> Path:
        """Where unfinished uploads are."""
        if self.blob_folder is not None:
            return self.blob_folder / "uploads"
        return self.staging_folder or home() / "registry" / "staging"

    @property
    def allows_http(self) -> bool:
        """Whether the object store may be spoken to without TLS."""
        names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
        return any(os.environ.get(name, "").startswith("http://") for name in names)

    @property
    def retention(self) -> Retention:
        """For how long things are kept."""
        history = self.alias_history_hours
        return Retention(
            deleted_artifacts=timedelta(hours=self.deleted_artifacts_hours),
            unnamed_blobs=timedelta(hours=self.gc_grace_hours),
            request_ids=timedelta(hours=self.request_ids_hours),
            alias_history=None if history is None else timedelta(hours=history),
        )
