import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from fakes.registry_stores import FakeClock, Stores, make_artifact, opened_registry, publish_bytes, upload_bytes
from vplab.errors import InvalidInput
from vplab.registry.core.registry import Registry
from vplab.registry.errors import BlobMissing, RequestIdReused, ResourceNotFound
from vplab.registry.paging import PageRequest
from vplab.registry.values import AliasKey, BlobFile, Lineage, Manifest, VersionKey

REQUEST = "123e4567-e89b-42d3-a456-426614174000"


@pytest.fixture
def stores(database_stores: Stores) -> Stores:
    return database_stores


def test_published_version_reads_back_as_it_was_written(registry: Registry) -> None:
    make_artifact(registry)
    encoder = publish_bytes(registry, make_artifact(registry, "encoder"), b"encoder")
    manifest = Manifest(
        files=(upload_bytes(registry, b"weights", "a/weights.bin"), upload_bytes(registry, b"{}", "model.json")),
        lineage=(Lineage("image_encoder", encoder.key, encoder.digest),),
        metrics={"validation_iou": 0.875, "loss": 1e-7},
        licence="Apache-2.0",
        spec={"size": 512, "mean": [0.5, None, True, "é"], "inner": {"b": 1, "a": 2}},
        description="first",
    )
    published = registry.versions.publish("scratch", manifest)
    assert published.key == VersionKey("scratch", 1)
    assert published.manifest == manifest
    assert registry.versions.get(published.key) == published


def test_numbers_rise_from_one(registry: Registry) -> None:
    make_artifact(registry)
    assert [publish_bytes(registry, "scratch", bytes([n])).key.number for n in range(3)] == [1, 2, 3]


def test_same_manifest_twice_is_the_same_version(registry: Registry) -> None:
    make_artifact(registry)
    first = publish_bytes(registry, "scratch", b"weights")
    assert publish_bytes(registry, "scratch", b"weights") == first
    assert publish_bytes(registry, "scratch", b"others").key.number == 2


def test_order_of_files_does_not_make_another_version(registry: Registry) -> None:
    make_artifact(registry)
    files = (upload_bytes(registry, b"1", "a"), upload_bytes(registry, b"2", "b"))
    first = registry.versions.publish("scratch", Manifest(files))
    assert registry.versions.publish("scratch", Manifest(files[::-1])) == first


def test_missing_blob_is_named(registry: Registry) -> None:
    make_artifact(registry)
    absent = BlobFile("model.bin", "ab" * 32, 3)
    with pytest.raises(BlobMissing) as refusal:
        registry.versions.publish("scratch", Manifest((absent,)))
    assert refusal.value.metadata == {"digest": absent.sha256}


def test_wrong_size_of_a_file_is_invalid(registry: Registry) -> None:
    make_artifact(registry)
    stored = upload_bytes(registry, b"weights")
    with pytest.raises(InvalidInput) as refusal:
        registry.versions.publish("scratch", Manifest((BlobFile("x", stored.sha256, 8),)))
    assert refusal.value.violations[0].field == "manifest.files[0].size_bytes"


def test_lineage_must_exist_with_the_stated_digest(registry: Registry) -> None:
    make_artifact(registry)
    encoder = publish_bytes(registry, make_artifact(registry, "encoder"), b"encoder")
    with pytest.raises(ResourceNotFound) as missing:
        publish_bytes(
            registry, "scratch", b"w", lineage=(Lineage("image_encoder", VersionKey("encoder", 9), encoder.digest),)
        )
    assert missing.value.metadata["name"] == "artifacts/encoder/versions/9"
    with pytest.raises(InvalidInput) as wrong:
        publish_bytes(registry, "scratch", b"w", lineage=(Lineage("image_encoder", encoder.key, "0" * 64),))
    assert wrong.value.violations[0].field == "manifest.lineage[0].digest"


def test_artifact_must_live_to_be_published_to(registry: Registry) -> None:
    with pytest.raises(ResourceNotFound):
        publish_bytes(registry, "scratch", b"weights")
    registry.artifacts.delete(make_artifact(registry), "")
    with pytest.raises(ResourceNotFound, match="deleted"):
        publish_bytes(registry, "scratch", b"weights")


def test_repeated_request_returns_the_first_answer(registry: Registry) -> None:
    make_artifact(registry)
    manifest = Manifest((upload_bytes(registry, b"weights"),))
    first = registry.versions.publish("scratch", manifest, request_id=REQUEST)
    assert registry.versions.publish("scratch", manifest, request_id=REQUEST) == first


def test_request_id_of_another_request_is_refused(registry: Registry, clock: FakeClock) -> None:
    make_artifact(registry)
    registry.versions.publish("scratch", Manifest((upload_bytes(registry, b"1"),)), request_id=REQUEST)
    other = Manifest((upload_bytes(registry, b"2"),))
    with pytest.raises(RequestIdReused):
        registry.versions.publish("scratch", other, request_id=REQUEST)
    clock.advance(hours=25)
    assert registry.versions.publish("scratch", other, request_id=REQUEST).key.number == 2


def test_version_is_found_by_number_and_through_aliases(registry: Registry) -> None:
    make_artifact(registry)
    version = publish_bytes(registry, "scratch", b"weights")
    registry.aliases.set(AliasKey("scratch", "production"), version.key, etag="")
    assert registry.versions.get(AliasKey("scratch", "production")) == version
    with pytest.raises(ResourceNotFound):
        registry.versions.get(AliasKey("scratch", "candidate"))
    with pytest.raises(ResourceNotFound):
        registry.versions.get(VersionKey("scratch", 2))


def test_deleted_artifact_answers_by_number_but_not_by_alias(registry: Registry) -> None:
    make_artifact(registry)
    version = publish_bytes(registry, "scratch", b"weights")
    registry.aliases.set(AliasKey("scratch", "production"), version.key, etag="")
    registry.artifacts.delete("scratch", "")
    assert registry.versions.get(version.key) == version
    with pytest.raises(ResourceNotFound, match="deleted"):
        registry.versions.get(AliasKey("scratch", "production"))


def test_versions_are_listed_newest_first_in_pages(registry: Registry) -> None:
    make_artifact(registry)
    for n in range(5):
        publish_bytes(registry, "scratch", bytes([n]))
    numbers, token = [], ""
    for _ in range(3):
        page = registry.versions.page("scratch", PageRequest(2, token))
        numbers.append([version.key.number for version in page.items])
        token = page.next_token
    assert numbers == [[5, 4], [3, 2], [1]]
    assert token == ""


def test_page_of_large_manifests_is_cut_short(registry: Registry) -> None:
    make_artifact(registry)
    for n in range(3):
        publish_bytes(registry, "scratch", bytes([n]), spec={"table": "x" * 300_000})
    page = registry.versions.page("scratch", PageRequest(10))
    assert [version.key.number for version in page.items] == [3]
    assert page.next_token
    rest = registry.versions.page("scratch", PageRequest(10, page.next_token))
    assert [version.key.number for version in rest.items] == [2]


def test_concurrent_publishers_get_distinct_numbers(stores: Stores, clock: FakeClock) -> None:
    with opened_registry(stores, clock) as one, opened_registry(stores, clock) as other:
        make_artifact(one)
        manifests = [Manifest((upload_bytes(one, bytes([n])),)) for n in range(16)]
        start = threading.Barrier(8)

        def publish(worker: int) -> list[int]:
            start.wait()
            replica = (one, other)[worker % 2]
            return [replica.versions.publish("scratch", m).key.number for m in manifests[worker * 2 : worker * 2 + 2]]

        with ThreadPoolExecutor(8) as pool:
            numbers = [number for some in pool.map(publish, range(8)) for number in some]
        assert sorted(numbers) == list(range(1, 17))


def test_concurrent_publishers_of_one_manifest_make_one_version(stores: Stores, clock: FakeClock) -> None:
    with opened_registry(stores, clock) as one, opened_registry(stores, clock) as other:
        make_artifact(one)
        manifest = Manifest((upload_bytes(one, b"weights"),))
        start = threading.Barrier(6)

        def publish(worker: int) -> VersionKey:
            start.wait()
            return (one, other)[worker % 2].versions.publish("scratch", manifest, request_id=REQUEST).key

        with ThreadPoolExecutor(6) as pool:
            assert set(pool.map(publish, range(6))) == {VersionKey("scratch", 1)}
