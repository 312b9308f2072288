"""Where a registry under test keeps its data, fresh for each test: a folder, or PostgreSQL and S3."""

import hashlib
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import create_engine

from fakes.postgres_server import PostgresServer
from fakes.s3_server import S3Server
from vplab.registry.backends.file_uploads import FileUploads
from vplab.registry.backends.sql_catalog import SqlCatalog
from vplab.registry.backends.sql_migrations import migrate
from vplab.registry.backends.sql_schema import counters, metadata
from vplab.registry.composition import open_blob_store
from vplab.registry.config import RegistryConfig
from vplab.registry.core.registry import Registry, Retention
from vplab.registry.values import PARITY_PASSED, ArtifactKind, BlobFile, Manifest, Version
from vplab.runtime.database import open_engine


@dataclass(frozen=True)
class Stores:
    """A database whose schema is current, and a place for blobs."""

    database_url: str
    blob_url: str
    staging_folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def config(self, **settings: object) -> RegistryConfig:
        values = {
            "listen": "127.0.0.1:0",
            "database_url": self.database_url,
            "blob_url": self.blob_url,
            "staging_folder": self.staging_folder,
            "builtin_models": False,
            "gc_interval_hours": 0,
            "threads": 8,
            **settings,
        }
        return RegistryConfig(**values)  # type: ignore[arg-type]

    @property
    def variables(self) -> dict[str, str]:
        """The environment that tells a registry process of these stores."""
        return {
            **self.environment,
            "VPLAB_REGISTRY_DATABASE_URL": self.database_url,
            "VPLAB_REGISTRY_BLOB_URL": self.blob_url,
            "VPLAB_REGISTRY_STAGING_FOLDER": str(self.staging_folder),
            "VPLAB_REGISTRY_BUILTIN_MODELS": "false",
            "VPLAB_REGISTRY_LISTEN": "127.0.0.1:0",
        }


class Templates:
    """Databases with the schema in them, made once; each test gets an empty one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._postgres: str | None = None

    def sqlite(self, folder: Path) -> Stores:
        template = self._folder / "template.db"
        if not template.exists():
            _migrate(f"sqlite:///{template}")
        shutil.copy(template, folder / "registry.db")
        return Stores(f"sqlite:///{folder / 'registry.db'}", (folder / "blobs").as_uri(), folder / "staging")

    def postgres(self, folder: Path, postgres: PostgresServer, s3: S3Server | None = None) -> Stores:
        if self._postgres is None:
            self._postgres = postgres.url(postgres.create_database())
            _migrate(self._postgres)
        url, staging = self._postgres, folder / "staging"
        _empty(url)
        if s3 is None:
            return Stores(url, (folder / "blobs").as_uri(), staging)
        return Stores(url, s3.url(uuid.uuid4().hex), staging, s3.environment)


def _migrate(url: str) -> None:
    engine = open_engine(url)
    migrate(engine)
    if engine.dialect.name == "sqlite":
        with engine.connect() as connection:
            connection.exec_driver_sql("ROLLBACK").close()
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").close()
            connection.exec_driver_sql("BEGIN").close()
    engine.dispose()


def _empty(url: str) -> None:
    # A database for each test would cost a second, and TRUNCATE new files for each table that somebody must remove.
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        for table in reversed(metadata.sorted_tables):
            if table is not counters:
                connection.execute(table.delete())
        connection.exec_driver_sql("UPDATE counters SET value = 0")
    engine.dispose()


class FakeClock:
    """A clock that goes only when told to."""

    def __init__(self) -> None:
        self.time = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.time

    def advance(self, **amount: float) -> None:
        self.time += timedelta(**amount)


@contextmanager
def opened_registry(stores: Stores, clock: FakeClock, retention: Retention | None = None) -> Iterator[Registry]:
    """Open the use cases on stores, as one replica does."""
    config = stores.config()
    catalog = SqlCatalog(open_engine(config.database_url))
    try:
        yield Registry(catalog, open_blob_store(config), FileUploads(config.upload_folder), retention, clock)
    finally:
        catalog.close()


def upload_bytes(registry: Registry, content: bytes, path: str = "model.bin") -> BlobFile:
    """Store bytes and return them as a version's file."""
    sha256 = hashlib.sha256(content).hexdigest()
    upload = registry.blobs.begin_upload(sha256, len(content), 0)
    if upload is not None:
        for start in range(0, len(content), 2**20):
            upload.write(content[start : start + 2**20])
        upload.finish()
    return BlobFile(path, sha256, len(content))


def publish_bytes(registry: Registry, artifact_id: str, content: bytes, **manifest: object) -> Version:
    """Store bytes and publish them as a version of an artifact that exists, by default with a passed parity report."""
    manifest = {"metrics": {PARITY_PASSED: 1.0}, **manifest}
    return registry.versions.publish(artifact_id, Manifest((upload_bytes(registry, content),), **manifest))  # type: ignore[arg-type]


def make_artifact(registry: Registry, artifact_id: str = "scratch", kind: ArtifactKind = ArtifactKind.ADAPTER) -> str:
    registry.artifacts.create(artifact_id, kind)
    return artifact_id
