import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from fakes.registry_stores import FakeClock, Stores, make_artifact, opened_registry, publish_bytes
from vplab.errors import InvalidInput
from vplab.registry.core.registry import Registry, Retention
from vplab.registry.errors import EtagMismatch, ParityFailed, ParityMissing, ResourceNotFound, RevisionExpired
from vplab.registry.paging import PageRequest
from vplab.registry.values import PARITY_PASSED, AliasChange, AliasKey, ArtifactKind, VersionKey

PRODUCTION = AliasKey("scratch", "production")
PASSED = {PARITY_PASSED: 1.0}


@pytest.fixture
def stores(database_stores: Stores) -> Stores:
    return database_stores


@pytest.fixture
def versions(registry: Registry) -> list[VersionKey]:
    make_artifact(registry)
    return [publish_bytes(registry, "scratch", bytes([n])).key for n in range(3)]


def changes(registry: Registry, after: int = 0) -> tuple[AliasChange, ...]:
    return registry.aliases.news(None, after, 100).changes


def test_alias_moves_when_the_etag_is_current(registry: Registry, versions: list[VersionKey]) -> None:
    first = registry.aliases.set(PRODUCTION, versions[0], etag="")
    second = registry.aliases.set(PRODUCTION, versions[1], etag=first.etag)
    assert (first.revision, second.revision) == (1, 2)
    assert second.version == versions[1]
    assert second.etag != first.etag
    assert second.etag.startswith('"')
    assert second.etag.endswith('"')


def test_stale_etag_is_refused_with_the_current_one(registry: Registry, versions: list[VersionKey]) -> None:
    first = registry.aliases.set(PRODUCTION, versions[0], etag="")
    second = registry.aliases.set(PRODUCTION, versions[1], etag=first.etag)
    for stale in (first.etag, "", '"77"'):
        with pytest.raises(EtagMismatch) as refusal:
            registry.aliases.set(PRODUCTION, versions[2], etag=stale)
        assert refusal.value.metadata == {"name": str(PRODUCTION), "etag": second.etag}
    assert registry.aliases.page("scratch", PageRequest()).page.items == (second,)


def test_star_moves_an_alias_whatever_it_is(registry: Registry, versions: list[VersionKey]) -> None:
    registry.aliases.set(PRODUCTION, versions[0], etag="*")
    assert registry.aliases.set(PRODUCTION, versions[1], etag="*").version == versions[1]


def test_an_alias_never_points_at_a_version_that_failed_its_parity_report(registry: Registry) -> None:
    make_artifact(registry)
    failed, passed = (
        publish_bytes(registry, "scratch", b"graph", metrics={"parity_passed": n}).key for n in (0.0, 1.0)
    )
    with pytest.raises(ParityFailed, match="did not pass its parity report"):
        registry.aliases.set(PRODUCTION, failed, etag="*")
    assert changes(registry) == ()
    assert registry.aliases.set(PRODUCTION, passed, etag="*").version == passed


@pytest.mark.parametrize("kind", [ArtifactKind.ENCODER, ArtifactKind.SEGMENTER, ArtifactKind.ADAPTER])
def test_production_needs_a_parity_report_of_what_has_a_graph(registry: Registry, kind: ArtifactKind) -> None:
    make_artifact(registry, kind=kind)
    unknown = publish_bytes(registry, "scratch", b"graph", metrics={}).key
    with pytest.raises(ParityMissing, match=r"lacks the metric parity_passed, which production needs") as refusal:
        registry.aliases.set(PRODUCTION, unknown, etag="*")
    assert refusal.value.metadata == {"name": str(unknown), "missing": "metrics[parity_passed]"}
    assert registry.aliases.set(AliasKey("scratch", "candidate"), unknown, etag="").version == unknown


def test_what_has_no_graph_needs_no_parity_report(registry: Registry) -> None:
    make_artifact(registry, kind=ArtifactKind.PROMPT_SET)
    version = publish_bytes(registry, "scratch", b"references", metrics={}).key
    assert registry.aliases.set(PRODUCTION, version, etag="").version == version


def test_production_goes_back_to_a_version_from_before_reports_were_needed(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_artifact(registry)
    old, new = (publish_bytes(registry, "scratch", c, metrics=m).key for c, m in ((b"1", {}), (b"2", PASSED)))
    with monkeypatch.context() as earlier:
        earlier.setattr("vplab.registry.core.aliases._KINDS_WITH_GRAPHS", frozenset())
        registry.aliases.set(PRODUCTION, old, etag="")
    registry.aliases.set(PRODUCTION, new, etag="*")
    assert registry.aliases.set(PRODUCTION, old, etag="*").version == old


@pytest.mark.parametrize("etag", ["7", '"', '"a', "W/" + '"7"', '"a"b"'])
def test_malformed_etag_is_invalid(registry: Registry, versions: list[VersionKey], etag: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        registry.aliases.set(PRODUCTION, versions[0], etag=etag)
    assert refusal.value.violations[0].field == "etag"


def test_alias_points_only_at_versions_of_its_artifact(registry: Registry, versions: list[VersionKey]) -> None:
    other = publish_bytes(registry, make_artifact(registry, "other"), b"other")
    with pytest.raises(InvalidInput) as refusal:
        registry.aliases.set(PRODUCTION, other.key, etag="")
    assert refusal.value.violations[0].field == "version"
    with pytest.raises(ResourceNotFound):
        registry.aliases.set(PRODUCTION, VersionKey("scratch", 99), etag="")


def test_history_is_kept_newest_first(registry: Registry, versions: list[VersionKey]) -> None:
    registry.aliases.set(PRODUCTION, versions[0], etag="", reason="first", actor="line-7")
    registry.aliases.set(PRODUCTION, versions[2], etag="*", reason="better")
    registry.aliases.set(PRODUCTION, versions[0], etag="*", reason="back")
    first_page = registry.aliases.history(PRODUCTION, PageRequest(2))
    rest = registry.aliases.history(PRODUCTION, PageRequest(2, first_page.next_token))
    history = first_page.items + rest.items
    assert [(c.revision, c.number, c.previous_number, c.reason) for c in history] == [
        (3, 1, 3, "back"),
        (2, 3, 1, "better"),
        (1, 1, None, "first"),
    ]
    assert history[-1].actor == "line-7"
    assert rest.next_token == ""


def test_history_of_an_alias_that_never_was_is_not_found(registry: Registry) -> None:
    with pytest.raises(ResourceNotFound):
        registry.aliases.history(PRODUCTION, PageRequest())


def test_deleting_and_restoring_an_artifact_is_news(registry: Registry, versions: list[VersionKey]) -> None:
    registry.aliases.set(PRODUCTION, versions[1], etag="")
    registry.artifacts.delete("scratch", "")
    assert registry.aliases.page(None, PageRequest()).page.items == ()
    registry.artifacts.undelete("scratch")
    assert [(c.revision, c.number, c.previous_number) for c in changes(registry)] == [
        (1, 2, None),
        (2, None, 2),
        (3, 2, None),
    ]
    (alias,) = registry.aliases.page(None, PageRequest()).page.items
    assert (alias.version, alias.revision) == (versions[1], 3)


def test_news_go_on_from_any_revision_and_can_be_of_one_artifact(
    registry: Registry, versions: list[VersionKey]
) -> None:
    other = publish_bytes(registry, make_artifact(registry, "other"), b"other")
    for number in range(6):
        key = PRODUCTION if number % 2 else AliasKey("other", "production")
        registry.aliases.set(key, versions[0] if number % 2 else other.key, etag="*")
    news = registry.aliases.news(None, 2, 3)
    assert [change.revision for change in news.changes] == [3, 4, 5]
    assert (news.revision, news.latest) == (5, 6)
    of_one = registry.aliases.news("other", 0, 100)
    assert [change.revision for change in of_one.changes] == [1, 3, 5]
    assert of_one.revision == 6


def test_watching_from_a_revision_that_never_was_is_refused(registry: Registry, versions: list[VersionKey]) -> None:
    registry.aliases.set(PRODUCTION, versions[0], etag="")
    with pytest.raises(RevisionExpired):
        registry.aliases.news(None, 2, 100)


def test_forgotten_history_is_refused_and_says_from_where_to_watch(stores: Stores, clock: FakeClock) -> None:
    with opened_registry(stores, clock, Retention(alias_history=timedelta(days=1))) as registry:
        version = publish_bytes(registry, make_artifact(registry), b"weights")
        for _ in range(3):
            registry.aliases.set(PRODUCTION, version.key, etag="*")
        clock.advance(days=2)
        registry.aliases.set(PRODUCTION, version.key, etag="*")
        registry.garbage.collect()
        with pytest.raises(RevisionExpired) as refusal:
            registry.aliases.news(None, 2, 100)
        assert refusal.value.metadata == {"oldest_revision": "3"}
        assert [change.revision for change in changes(registry, after=3)] == [4]


def test_aliases_are_listed_by_name_in_pages(registry: Registry, versions: list[VersionKey]) -> None:
    make_artifact(registry, "a-first")
    other = publish_bytes(registry, "a-first", b"other")
    for alias in ("stable", "candidate"):
        registry.aliases.set(AliasKey("scratch", alias), versions[0], etag="")
        registry.aliases.set(AliasKey("a-first", alias), other.key, etag="")
    names, token = [], ""
    for _ in range(2):
        found = registry.aliases.page(None, PageRequest(3, token))
        names += [str(alias.key) for alias in found.page.items]
        token = found.page.next_token
    assert names == [f"artifacts/{a}/aliases/{b}" for a in ("a-first", "scratch") for b in ("candidate", "stable")]
    assert token == ""
    assert found.revision == 4


def test_concurrent_movers_lose_or_win_and_revisions_have_no_gaps(stores: Stores, clock: FakeClock) -> None:
    with opened_registry(stores, clock) as one, opened_registry(stores, clock) as other:
        version = publish_bytes(one, make_artifact(one), b"weights")
        keys = [AliasKey("scratch", f"line-{n}") for n in range(3)]
        start = threading.Barrier(7)
        done = threading.Event()

        def move(worker: int) -> int:
            replica = (one, other)[worker % 2]
            start.wait()
            won = 0
            for n in range(6):
                key = keys[(worker + n) % 3]
                current = {alias.key: alias.etag for alias in replica.aliases.page("scratch", PageRequest()).page.items}
                try:
                    replica.aliases.set(key, version.key, etag=current.get(key, ""))
                    won += 1
                except EtagMismatch:
                    pass
            return won

        seen: list[int] = []

        def watch() -> None:
            start.wait()
            while not done.is_set() or seen[-1:] != [one.aliases.latest_revision()]:
                news = other.aliases.news(None, seen[-1] if seen else 0, 5)
                seen.extend(change.revision for change in news.changes)

        with ThreadPoolExecutor(7) as pool:
            watching = pool.submit(watch)
            won = sum(pool.map(move, range(6)))
            done.set()
            watching.result(60)
        assert seen == list(range(1, won + 1))
        assert won > 0


def test_compare_and_set_lets_exactly_one_of_many_win(stores: Stores, clock: FakeClock) -> None:
    with opened_registry(stores, clock) as one, opened_registry(stores, clock) as other:
        version = publish_bytes(one, make_artifact(one), b"weights")
        start = threading.Barrier(6)

        def create(worker: int) -> bool:
            start.wait()
            try:
                (one, other)[worker % 2].aliases.set(PRODUCTION, version.key, etag="")
            except EtagMismatch:
                return False
            return True

        with ThreadPoolExecutor(6) as pool:
            assert sum(pool.map(create, range(6))) == 1
