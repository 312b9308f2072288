"""Artifacts: names that versions are published under, deleted softly and restored."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

from vplab.errors import FailedPrecondition
from vplab.registry.checks import (
    MAX_DESCRIPTION,
    MAX_DISPLAY_NAME,
    Violations,
    check_etag,
    check_labels,
    check_text,
)
from vplab.registry.core.requests import Requests
from vplab.registry.errors import ArtifactExists, ArtifactInUse, EtagMismatch, ResourceNotFound
from vplab.registry.paging import Page, PageRequest, make_page
from vplab.registry.ports import Catalog, Clock, Transaction
from vplab.registry.values import AliasChange, Artifact, ArtifactKind


class Artifacts:
    """Use cases on artifacts."""

    def __init__(self, catalog: Catalog, requests: Requests, now: Clock, *, restorable_for: timedelta) -> None:
        self._catalog = catalog
        self._requests = requests
        self._now = now
        self._restorable_for = restorable_for

    def create(
        self,
        artifact_id: str,
        kind: ArtifactKind,
        *,
        display_name: str = "",
        description: str = "",
        labels: Mapping[str, str] | None = None,
        request_id: str = "",
    ) -> Artifact:
        """Register a name. Raises ArtifactExists, RequestIdReused, InvalidInput."""
        found = Violations()
        check_text(found, display_name, MAX_DISPLAY_NAME, "artifact.display_name")
        check_text(found, description, MAX_DESCRIPTION, "artifact.description")
        check_labels(found, labels or {}, "artifact.labels")
        found.raise_if_any()
        wanted = Artifact(artifact_id, kind, display_name, description, dict(labels or {}), self._now())
        request = self._requests.of(
            request_id, "CreateArtifact", [artifact_id, kind, display_name, description, sorted(wanted.labels.items())]
        )

        def work(tx: Transaction) -> Artifact:
            made = request.made_before(tx)
            if made is not None and (earlier := tx.artifacts.get(made)) is not None:
                return earlier
            if (taken := tx.artifacts.get(artifact_id)) is not None:
                raise ArtifactExists(taken.name, is_deleted=taken.delete_time is not None)
            tx.artifacts.insert(wanted)
            request.record(tx, artifact_id)
            return wanted

        return self._catalog.write(work)

    def get(self, artifact_id: str) -> Artifact:
        """Return an artifact, deleted or not. Raises ResourceNotFound."""

        def work(tx: Transaction) -> Artifact:
            return existing(tx, artifact_id)

        return self._catalog.read(work)

    def page(
        self, request: PageRequest, kind: ArtifactKind | None, labels: Mapping[str, str], show_deleted: bool
    ) -> Page[Artifact]:
        """List artifacts by id. Raises InvalidInput."""
        found = Violations()
        check_labels(found, labels, "labels")
        found.raise_if_any()
        query = ["ListArtifacts", kind, sorted(labels.items()), show_deleted]
        position = request.position(query, (str,))
        after = str(position[0]) if position else ""
        items = self._catalog.read(lambda tx: tx.artifacts.page(kind, labels, show_deleted, after, request.limit + 1))
        shown = items[: request.limit]
        return make_page(shown, len(items) > len(shown), query, [shown[-1].artifact_id] if shown else None)

    def delete(self, artifact_id: str, etag: str) -> Artifact:
        """Hide an artifact and its aliases until it is restored or collected.

        Raises ResourceNotFound (also when deleted already), ArtifactInUse, EtagMismatch, InvalidInput.
        """
        if etag:
            check_etag(etag, "etag")

        def work(tx: Transaction) -> Artifact:
            now = self._now()
            artifact = living(tx, artifact_id, lock=True)
            if etag and etag != artifact.etag:
                raise EtagMismatch(artifact.name, artifact.etag)
            if (lease := tx.leases.live_on(artifact_id, now)) is not None:
                raise ArtifactInUse(artifact.name, lease.holder)
            gone = replace(
                artifact, delete_time=now, expire_time=now + self._restorable_for, change=artifact.change + 1
            )
            tx.artifacts.update(gone)
            for alias in tx.aliases.of_artifact(artifact_id):
                revision = tx.aliases.next_revision()
                change = AliasChange(revision, alias.key, None, "", alias.number, "artifact deleted", "", now)
                tx.aliases.append(change)
            return gone

        return self._catalog.write(work)

    def undelete(self, artifact_id: str) -> Artifact:
        """Restore an artifact with its versions and aliases. Raises ResourceNotFound, FailedPrecondition."""

        def work(tx: Transaction) -> Artifact:
            now = self._now()
            artifact = existing(tx, artifact_id, lock=True)
            if artifact.delete_time is None:
                raise FailedPrecondition(f"{artifact.name} is not deleted")
            back = replace(artifact, delete_time=None, expire_time=None, change=artifact.change + 1)
            tx.artifacts.update(back)
            for alias in tx.aliases.of_artifact(artifact_id):
                revision = tx.aliases.next_revision()
                tx.aliases.put(replace(alias, revision=revision, update_time=now))
                tx.aliases.append(
                    AliasChange(
                        revision, alias.key, alias.number, alias.version_digest, None, "artifact restored", "", now
                    )
                )
            return back

        return self._catalog.write(work)


def existing(tx: Transaction, artifact_id: str, *, lock: bool = False) -> Artifact:
    """Return an artifact, deleted or not. Raises ResourceNotFound."""
    artifact = tx.artifacts.get(artifact_id, lock=lock)
    if artifact is None:
        raise ResourceNotFound(f"artifacts/{artifact_id}")
    return artifact


def living(tx: Transaction, artifact_id: str, *, lock: bool = False) -> Artifact:
    """Return an artifact that is not deleted. Raises ResourceNotFound."""
    artifact = existing(tx, artifact_id, lock=lock)
    if artifact.delete_time is not None:
        raise ResourceNotFound(artifact.name, "is deleted; undelete it to use it")
    return artifact
