from fakes.registry_fixtures import (
    clock,
    database_stores,
    postgres_server,
    registry,
    registry_templates,
    s3_server,
    sqlite_stores,
    stores,
)

__all__ = [
    "clock",
    "database_stores",
    "postgres_server",
    "registry",
    "registry_templates",
    "s3_server",
    "sqlite_stores",
    "stores",
]
