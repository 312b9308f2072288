import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta

import pytest

from fakes.registry_stores import (
    FakeClock,
    Stores,
    make_artifact,
    opened_registry,
    publish_bytes,
    upload_bytes,
)
from vplab.errors import Unavailable
from vplab.registry.core.registry import Registry, Retention
from vplab.registry.errors import BlobMissing, ResourceNotFound
from vplab.registry.values import AliasKey, Lineage, Manifest


@pytest.fixture
def leased_for() -> timedelta:
    return timedelta(days=7)


def read(registry: Registry, sha256: str) -> bytes:
    return b"".join(registry.blobs.download(sha256, 0)[1])


def test_unnamed_blob_goes_after_the_grace_period(registry: Registry, clock: FakeClock) -> None:
    blob = upload_bytes(registry, b"forgotten")
    clock.advance(hours=23)
    assert registry.garbage.collect().blob_digests == ()
    clock.advance(hours=2)
    preview = registry.garbage.collect(validate_only=True)
    assert (preview.blob_digests, preview.freed_bytes) == ((blob.sha256,), 9)
    assert read(registry, blob.sha256) == b"forgotten"
    assert registry.garbage.collect() == preview
    with pytest.raises(ResourceNotFound):
        registry.blobs.download(blob.sha256, 0)
    assert not registry.blobs.query_upload(blob.sha256).is_complete


def test_asking_for_a_blob_begins_its_grace_period_anew(registry: Registry, clock: FakeClock) -> None:
    blob = upload_bytes(registry, b"wanted")
    clock.advance(hours=23)
    assert registry.blobs.query_upload(blob.sha256).is_complete
    clock.advance(hours=23)
    assert registry.blobs.begin_upload(blob.sha256, 6, 0) is None
    clock.advance(hours=23)
    assert registry.garbage.collect().blob_digests == ()


def test_named_blobs_stay_for_ever(registry: Registry, clock: FakeClock) -> None:
    version = publish_bytes(registry, make_artifact(registry), b"weights")
    clock.advance(days=10_000)
    assert registry.garbage.collect().blob_digests == ()
    assert read(registry, version.manifest.files[0].sha256) == b"weights"


def test_deleted_artifact_goes_at_its_expiry_and_its_blobs_one_grace_period_later(
    registry: Registry, clock: FakeClock
) -> None:
    version = publish_bytes(registry, make_artifact(registry), b"weights")
    registry.aliases.set(AliasKey("scratch", "production"), version.key, etag="")
    registry.artifacts.delete("scratch", "")
    clock.advance(days=29)
    assert registry.garbage.collect().artifact_ids == ()
    clock.advance(days=2)
    assert registry.garbage.collect(validate_only=True).artifact_ids == ("scratch",)
    report = registry.garbage.collect()
    assert (report.artifact_ids, report.blob_digests) == (("scratch",), ())
    with pytest.raises(ResourceNotFound):
        registry.artifacts.undelete("scratch")
    with pytest.raises(ResourceNotFound):
        registry.versions.get(version.key)
    clock.advance(hours=25)
    assert registry.garbage.collect().blob_digests == (version.manifest.files[0].sha256,)


def test_blob_shared_with_a_living_version_stays(registry: Registry, clock: FakeClock) -> None:
    publish_bytes(registry, make_artifact(registry, "gone"), b"shared")
    publish_bytes(registry, make_artifact(registry, "kept"), b"shared")
    registry.artifacts.delete("gone", "")
    clock.advance(days=40)
    assert registry.garbage.collect().artifact_ids == ("gone",)
    clock.advance(days=40)
    assert registry.garbage.collect().blob_digests == ()


def test_lease_holds_collection_off_until_it_ends(registry: Registry, clock: FakeClock, leased_for: timedelta) -> None:
    version = publish_bytes(registry, make_artifact(registry), b"weights")
    registry.artifacts.delete("scratch", "")
    clock.advance(days=29)
    lease = registry.leases.create(version.key, "replay", leased_for)
    clock.advance(days=3)
    assert registry.garbage.collect().artifact_ids == ()
    registry.leases.renew(lease.lease_id, leased_for)
    clock.advance(days=6)
    assert registry.garbage.collect().artifact_ids == ()
    registry.leases.delete(lease.lease_id)
    assert registry.garbage.collect().artifact_ids == ("scratch",)


def test_expired_lease_is_not_renewed(registry: Registry, clock: FakeClock) -> None:
    version = publish_bytes(registry, make_artifact(registry), b"weights")
    lease = registry.leases.create(version.key, "replay", timedelta(minutes=1))
    clock.advance(minutes=2)
    with pytest.raises(ResourceNotFound):
        registry.leases.renew(lease.lease_id, timedelta(minutes=1))
    registry.leases.delete(lease.lease_id)
    registry.leases.delete(lease.lease_id)


def test_encoder_that_a_living_segmenter_needs_is_not_collected(registry: Registry, clock: FakeClock) -> None:
    encoder = publish_bytes(registry, make_artifact(registry, "encoder"), b"encoder")
    lineage = (Lineage("image_encoder", encoder.key, encoder.digest),)
    publish_bytes(registry, make_artifact(registry, "segmenter"), b"segmenter", lineage=lineage)
    registry.artifacts.delete("encoder", "")
    clock.advance(days=40)
    assert registry.garbage.collect().artifact_ids == ()
    registry.artifacts.delete("segmenter", "")
    clock.advance(days=40)
    assert registry.garbage.collect().artifact_ids == ("encoder", "segmenter")


def test_dataset_that_was_only_trained_on_is_collected(registry: Registry, clock: FakeClock) -> None:
    dataset = publish_bytes(registry, make_artifact(registry, "dataset"), b"images")
    lineage = (Lineage("dataset", dataset.key, dataset.digest),)
    publish_bytes(registry, make_artifact(registry, "adapter"), b"adapter", lineage=lineage)
    registry.artifacts.delete("dataset", "")
    clock.advance(days=40)
    assert registry.garbage.collect().artifact_ids == ("dataset",)


def test_kept_upload_goes_after_the_grace_period(stores: Stores, clock: FakeClock) -> None:
    with opened_registry(stores, clock, Retention(unnamed_blobs=timedelta(0))) as registry:
        upload = registry.blobs.begin_upload("ab" * 32, 100, 0)
        assert upload is not None
        upload.write(b"some")
        assert registry.garbage.collect().freed_bytes == 0  # it is being written
        upload.keep()
        assert registry.blobs.query_upload("ab" * 32).committed_bytes == 4
        clock.time += timedelta(days=36_500)  # past the file's time, which is the machine's
        assert registry.garbage.collect().freed_bytes == 4
        assert registry.blobs.query_upload("ab" * 32).committed_bytes == 0


def test_collected_blob_can_be_uploaded_again(registry: Registry, clock: FakeClock) -> None:
    blob = upload_bytes(registry, b"twice")
    clock.advance(days=2)
    registry.garbage.collect()
    assert upload_bytes(registry, b"twice") == blob
    assert read(registry, blob.sha256) == b"twice"


@pytest.fixture
def collector(stores: Stores, clock: FakeClock) -> Iterator[Registry]:
    with opened_registry(stores, clock, Retention(unnamed_blobs=timedelta(0))) as opened:
        yield opened


def test_no_version_ever_names_a_collected_blob(collector: Registry, stores: Stores, clock: FakeClock) -> None:
    """Publishers race a collector without any grace period; whoever is published must be readable."""
    with opened_registry(stores, clock) as publisher:
        make_artifact(publisher)
        stop = threading.Event()

        def collect() -> int:
            removed = 0
            while not stop.is_set():
                removed += len(collector.garbage.collect().blob_digests)
            return removed

        def publish(worker: int) -> list[str]:
            published = []
            for n in range(8):
                with suppress(BlobMissing, Unavailable):
                    file = upload_bytes(publisher, bytes([worker % 2, n]))
                    publisher.versions.publish("scratch", Manifest((file,), description=str(worker)))
                    published.append(file.sha256)
            return published

        with ThreadPoolExecutor(4) as pool:
            collecting = pool.submit(collect)
            try:
                published = [sha256 for some in pool.map(publish, range(3)) for sha256 in some]
            finally:
                stop.set()
            collecting.result(60)
        for sha256 in set(published):
            assert read(publisher, sha256)
