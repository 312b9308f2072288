"""Aliases: names that move between versions by compare-and-set, with a history everybody can follow."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from vplab.errors import InvalidInput
from vplab.registry.checks import MAX_REASON, Violations, check_etag, check_text
from vplab.registry.core.artifacts import existing, living
from vplab.registry.errors import EtagMismatch, ParityFailed, ParityMissing, ResourceNotFound, RevisionExpired
from vplab.registry.paging import Page, PageRequest, make_page
from vplab.registry.ports import Catalog, Clock, Transaction
from vplab.registry.values import (
    PARITY_PASSED,
    PRODUCTION,
    Alias,
    AliasChange,
    AliasKey,
    ArtifactKind,
    Version,
    VersionKey,
)

ANY_ETAG: Final = "*"
_KINDS_WITH_GRAPHS: Final = frozenset({ArtifactKind.ENCODER, ArtifactKind.SEGMENTER, ArtifactKind.ADAPTER})


@dataclass(frozen=True)
class AliasList:
    """A page of aliases and the revision it was read at."""

    page: Page[Alias]
    revision: int


@dataclass(frozen=True)
class AliasNews:
    """Changes after a revision, and up to where they are complete."""

    changes: tuple[AliasChange, ...]
    revision: int
    """Everything up to here is in ``changes`` or was before them."""
    latest: int
    """The newest revision there is; greater than ``revision`` when more is waiting."""


class Aliases:
    """Use cases on aliases."""

    def __init__(self, catalog: Catalog, now: Clock) -> None:
        self._catalog = catalog
        self._now = now

    def set(self, key: AliasKey, version: VersionKey, *, etag: str, reason: str = "", actor: str = "") -> Alias:
        """Point an alias at a version of its artifact.

        etag: the alias's current one; empty if it must not exist yet; "*" whatever it is.
        Raises ResourceNotFound, EtagMismatch, InvalidInput, ParityFailed, ParityMissing.
        """
        found = Violations()
        check_text(found, reason, MAX_REASON, "reason")
        found.add_unless(version.artifact_id == key.artifact_id, "version", f"is not a version of {key.artifact_id}")
        found.raise_if_any()
        if etag not in ("", ANY_ETAG):
            check_etag(etag, "etag")

        def work(tx: Transaction) -> Alias:
            living(tx, key.artifact_id, lock=True)
            target = tx.versions.get(version)
            if target is None:
                raise ResourceNotFound(str(version))
            _require_parity(tx, key, target)
            before = tx.aliases.get(key)
            current = before.etag if before is not None else ""
            if etag not in (ANY_ETAG, current):
                raise EtagMismatch(str(key), current)
            alias = Alias(key, version.number, target.digest, tx.aliases.next_revision(), self._now())
            tx.aliases.put(alias)
            previous = before.number if before is not None else None
            tx.aliases.append(
                AliasChange(
                    alias.revision, key, version.number, target.digest, previous, reason, actor, alias.update_time
                )
            )
            return alias

        return self._catalog.write(work)

    def page(self, artifact_id: str | None, request: PageRequest) -> AliasList:
        """List aliases of living artifacts by name. Raises ResourceNotFound, InvalidInput."""
        query = ["ListAliases", artifact_id]
        position = request.position(query, (str, str))
        after = AliasKey(str(position[0]), str(position[1])) if position else None

        def work(tx: Transaction) -> tuple[Sequence[Alias], int]:
            # The revision comes first: a change committed in between is then seen twice, never missed.
            revision = tx.aliases.latest_revision()
            if artifact_id is not None:
                existing(tx, artifact_id)
            return tx.aliases.page(artifact_id, after, request.limit + 1), revision

        items, revision = self._catalog.read(work)
        shown = items[: request.limit]
        last = [shown[-1].key.artifact_id, shown[-1].key.alias] if shown else None
        return AliasList(make_page(shown, len(items) > len(shown), query, last), revision)

    def history(self, key: AliasKey, request: PageRequest) -> Page[AliasChange]:
        """List what happened to one alias, newest first. Raises ResourceNotFound if nothing ever did, InvalidInput."""
        query = ["ListAliasChanges", str(key)]
        position = request.position(query, (int,))
        before = int(position[0]) if position else None
        items = self._catalog.read(lambda tx: tx.aliases.changes_of(key, before, request.limit + 1))
        if not items and before is None:
            raise ResourceNotFound(str(key))
        shown = items[: request.limit]
        return make_page(shown, len(items) > len(shown), query, [shown[-1].revision] if shown else None)

    def latest_revision(self) -> int:
        """Return the registry's newest revision; 0 before the first change."""
        return self._catalog.read(lambda tx: tx.aliases.latest_revision())

    def news(self, artifact_id: str | None, after: int, limit: int) -> AliasNews:
        """Return the next changes after a revision, oldest first.

        Raises RevisionExpired if changes in between are not kept, or if the registry never was at ``after`` (it was
        restored from a backup since).
        """

        def work(tx: Transaction) -> AliasNews:
            latest = tx.aliases.latest_revision()
            oldest = tx.aliases.oldest_revision()
            if not oldest <= after <= latest:
                raise RevisionExpired(after, oldest, latest)
            changes = tuple(tx.aliases.changes_between(after, latest, artifact_id, limit))
            complete = len(changes) < limit
            return AliasNews(changes, latest if complete else changes[-1].revision, latest)

        return self._catalog.read(work)

    def require_artifact(self, artifact_id: str) -> None:
        """Raise ResourceNotFound if there is no such artifact."""
        self._catalog.read(lambda tx: existing(tx, artifact_id))


def _require_parity(tx: Transaction, key: AliasKey, target: Version) -> None:
    """Keep graphs that were not compared with what they were made from out of production.

    A report that failed bars every alias, a missing one only production, which is what a name without a version means:
    whoever publishes a model of his own may try it under another alias, and says ``parity_passed`` once he compared it.
    A version that production has named before may come back, whatever rule held then: a rollback must work.
    """
    passed = target.manifest.metrics.get(PARITY_PASSED)
    if passed is not None and not passed:
        raise ParityFailed(str(target.key))
    is_needed = key.alias == PRODUCTION and target.kind in _KINDS_WITH_GRAPHS
    if passed is None and is_needed and not tx.aliases.has_named(key, target.key.number):
        raise ParityMissing(str(target.key), target.kind, PARITY_PASSED)


def require_revision(revision: int, field: str) -> int:
    """Return a revision that a database can hold. Raises InvalidInput."""
    if revision >= 2**63:
        raise InvalidInput("is no revision of this registry", field=field)
    return revision
