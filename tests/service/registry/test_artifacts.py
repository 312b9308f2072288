from datetime import timedelta

import pytest

from fakes.registry_stores import FakeClock, Stores, make_artifact, publish_bytes
from vplab.errors import FailedPrecondition, InvalidInput
from vplab.registry.core.registry import Registry
from vplab.registry.errors import (
    ArtifactExists,
    ArtifactInUse,
    EtagMismatch,
    RequestIdReused,
    ResourceNotFound,
)
from vplab.registry.paging import PageRequest
from vplab.registry.values import ArtifactKind

REQUEST = "123e4567-e89b-42d3-a456-426614174000"


@pytest.fixture
def stores(database_stores: Stores) -> Stores:
    return database_stores


def test_created_artifact_reads_back_as_it_was_made(registry: Registry, clock: FakeClock) -> None:
    made = registry.artifacts.create(
        "scratch", ArtifactKind.ADAPTER, display_name="Scratch", description="on steel", labels={"line": "7", "a": ""}
    )
    assert registry.artifacts.get("scratch") == made
    assert made.create_time == clock.time


def test_taken_name_is_refused_also_when_deleted(registry: Registry) -> None:
    make_artifact(registry)
    with pytest.raises(ArtifactExists):
        make_artifact(registry)
    registry.artifacts.delete("scratch", "")
    with pytest.raises(ArtifactExists, match="undelete"):
        make_artifact(registry)


def test_repeated_create_returns_the_artifact(registry: Registry) -> None:
    first = registry.artifacts.create("scratch", ArtifactKind.ADAPTER, labels={"b": "2", "a": "1"}, request_id=REQUEST)
    again = registry.artifacts.create("scratch", ArtifactKind.ADAPTER, labels={"a": "1", "b": "2"}, request_id=REQUEST)
    assert again == first
    with pytest.raises(RequestIdReused):
        registry.artifacts.create("scratch", ArtifactKind.ADAPTER, request_id=REQUEST)


def test_every_wrong_label_is_named(registry: Registry) -> None:
    with pytest.raises(InvalidInput) as refusal:
        registry.artifacts.create(
            "a", ArtifactKind.ADAPTER, labels={"Big": "1", "ok": "x" * 201}, display_name="x" * 201
        )
    fields = [violation.field for violation in refusal.value.violations]
    assert fields == ["artifact.display_name", "artifact.labels['Big']", "artifact.labels['ok']"]


def test_list_is_by_name_and_can_be_filtered(registry: Registry) -> None:
    registry.artifacts.create("b-two", ArtifactKind.ADAPTER, labels={"line": "7", "part": "door"})
    registry.artifacts.create("a", ArtifactKind.ENCODER, labels={"line": "7"})
    registry.artifacts.create("b", ArtifactKind.ADAPTER, labels={"line": "8"})
    registry.artifacts.create("gone", ArtifactKind.ADAPTER, labels={"line": "7"})
    registry.artifacts.delete("gone", "")

    def ids(kind: ArtifactKind | None = None, show_deleted: bool = False, **labels: str) -> list[str]:
        page = registry.artifacts.page(PageRequest(), kind, labels, show_deleted)
        return [artifact.artifact_id for artifact in page.items]

    assert ids() == ["a", "b", "b-two"]
    assert ids(ArtifactKind.ADAPTER) == ["b", "b-two"]
    assert ids(line="7") == ["a", "b-two"]
    assert ids(line="7", part="door") == ["b-two"]
    assert ids(show_deleted=True, line="7") == ["a", "b-two", "gone"]


def test_pages_go_on_where_the_last_ended(registry: Registry) -> None:
    for name in "abcde":
        make_artifact(registry, name)
    seen, token, pages = [], "", 0
    while pages == 0 or token:
        page = registry.artifacts.page(PageRequest(2, token), None, {}, False)
        seen += [artifact.artifact_id for artifact in page.items]
        token, pages = page.next_token, pages + 1
    assert seen == list("abcde")
    assert pages == 3


def test_token_of_another_list_is_refused(registry: Registry) -> None:
    for name in "abc":
        make_artifact(registry, name)
    token = registry.artifacts.page(PageRequest(1), None, {}, False).next_token
    with pytest.raises(InvalidInput) as refusal:
        registry.artifacts.page(PageRequest(1, token), ArtifactKind.ADAPTER, {}, False)
    assert refusal.value.violations[0].field == "page_token"


def test_deleted_artifact_is_restored_with_what_it_held(registry: Registry, clock: FakeClock) -> None:
    version = publish_bytes(registry, make_artifact(registry), b"weights")
    gone = registry.artifacts.delete("scratch", "")
    assert gone.delete_time == clock.time
    assert gone.expire_time is not None
    assert (gone.expire_time - clock.time).days == 30
    assert registry.artifacts.get("scratch") == gone
    with pytest.raises(ResourceNotFound):
        registry.artifacts.delete("scratch", "")
    back = registry.artifacts.undelete("scratch")
    assert back.delete_time is None
    assert back.etag != gone.etag
    assert registry.versions.get(version.key) == version
    with pytest.raises(FailedPrecondition):
        registry.artifacts.undelete("scratch")


def test_delete_compares_the_etag(registry: Registry) -> None:
    make_artifact(registry)
    with pytest.raises(EtagMismatch):
        registry.artifacts.delete("scratch", '"9"')
    with pytest.raises(InvalidInput):
        registry.artifacts.delete("scratch", "9")
    registry.artifacts.delete("scratch", registry.artifacts.get("scratch").etag)


def test_leased_artifact_is_not_deleted(registry: Registry, clock: FakeClock) -> None:
    version = publish_bytes(registry, make_artifact(registry), b"weights")
    registry.leases.create(version.key, "line 7", timedelta(minutes=5))
    with pytest.raises(ArtifactInUse) as refusal:
        registry.artifacts.delete("scratch", "")
    assert refusal.value.metadata["holder"] == "line 7"
    clock.advance(minutes=6)
    registry.artifacts.delete("scratch", "")
