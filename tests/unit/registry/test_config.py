from datetime import timedelta
from pathlib import Path

import pytest

from vplab.registry.config import RegistryConfig
from vplab.runtime.settings import SettingsError, load_settings


def test_everything_is_below_vplab_home_unless_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VPLAB_HOME", str(tmp_path / "a b"))
    config = load_settings(RegistryConfig)
    assert config.database_url == f"sqlite:///{tmp_path}/a b/registry/registry.db"
    assert config.blob_folder == tmp_path / "a b" / "registry" / "blobs"
    assert config.upload_folder == tmp_path / "a b" / "registry" / "blobs" / "uploads"


def test_bucket_has_a_staging_folder_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VPLAB_HOME", str(tmp_path))
    monkeypatch.setenv("VPLAB_REGISTRY_BLOB_URL", "s3://models/line-7")
    config = load_settings(RegistryConfig)
    assert config.blob_folder is None
    assert config.upload_folder == tmp_path / "registry" / "staging"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", "mysql://host/db"),
        ("DATABASE_URL", "registry.db"),
        ("BLOB_URL", "gs://bucket"),
        ("BLOB_URL", "file://host/folder"),
        ("BLOB_URL", "s3:///prefix"),
        ("GC_GRACE_HOURS", "-1"),
        ("WATCH_HEARTBEAT_S", "31"),
        ("THREADS", "0"),
    ],
)
def test_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"VPLAB_REGISTRY_{name}", value)
    with pytest.raises(SettingsError, match=f"VPLAB_REGISTRY_{name}"):
        load_settings(RegistryConfig)


def test_retention_is_in_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VPLAB_REGISTRY_GC_GRACE_HOURS", "0.5")
    retention = load_settings(RegistryConfig).retention
    assert retention.unnamed_blobs == timedelta(minutes=30)
    assert retention.alias_history is None
