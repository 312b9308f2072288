"""Versions: immutable manifests, published in one step once their blobs are stored."""

from typing import Final

from vplab.errors import InvalidInput
from vplab.registry.checks import Violations, check_manifest
from vplab.registry.core.artifacts import existing, living
from vplab.registry.core.requests import Requests
from vplab.registry.errors import BlobMissing, ResourceNotFound
from vplab.registry.manifest import canonical_manifest, manifest_digest, manifest_from_canonical
from vplab.registry.paging import Page, PageRequest, make_page
from vplab.registry.ports import Catalog, Clock, Transaction
from vplab.registry.values import AliasKey, BlobState, Manifest, Version, VersionKey

PAGE_BYTES: Final = 512 * 1024
"""Manifests of one page as JSON. As a protobuf Struct, JSON can grow more than fivefold; the page must fit in 4 MiB."""


class Versions:
    """Use cases on versions."""

    def __init__(self, catalog: Catalog, requests: Requests, now: Clock) -> None:
        self._catalog = catalog
        self._requests = requests
        self._now = now

    def publish(self, artifact_id: str, manifest: Manifest, *, request_id: str = "") -> Version:
        """Publish a manifest, or return the version that has it already.

        Raises InvalidInput, ResourceNotFound, BlobMissing, RequestIdReused.
        """
        check_manifest(manifest)
        canonical = canonical_manifest(manifest)
        digest = manifest_digest(canonical)
        request = self._requests.of(request_id, "PublishVersion", [artifact_id, digest])

        def work(tx: Transaction) -> Version:
            artifact = living(tx, artifact_id, lock=True)
            request.made_before(tx)
            version = tx.versions.by_digest(artifact_id, digest)
            if version is None:
                _require_blobs(tx, manifest)
                _require_lineage(tx, manifest)
                key = VersionKey(artifact_id, tx.versions.next_number(artifact_id))
                content = manifest_from_canonical(canonical)
                version = Version(key, digest, content, artifact.kind, self._now())
                tx.versions.insert(version, canonical)
            request.record(tx, str(version.key))
            return version

        return self._catalog.write(work)

    def get(self, name: VersionKey | AliasKey) -> Version:
        """Return a version by number or through an alias.

        A version of a deleted artifact is found by number until it is collected, so that what was made with it can be
        explained; its aliases are not. Raises ResourceNotFound.
        """

        def work(tx: Transaction) -> Version:
            key = name
            if isinstance(key, AliasKey):
                living(tx, key.artifact_id)
                alias = tx.aliases.get(key)
                if alias is None:
                    raise ResourceNotFound(str(key))
                key = alias.version
            version = tx.versions.get(key)
            if version is None:
                raise ResourceNotFound(str(key))
            return version

        return self._catalog.read(work)

    def page(self, artifact_id: str, request: PageRequest) -> Page[Version]:
        """List an artifact's versions, newest first. Raises ResourceNotFound, InvalidInput."""
        query = ["ListVersions", artifact_id]
        position = request.position(query, (int,))
        before = int(position[0]) if position else None

        def work(tx: Transaction) -> tuple[list[Version], bool]:
            existing(tx, artifact_id)
            items = list(tx.versions.page(artifact_id, before, request.limit, PAGE_BYTES))
            has_more = (
                bool(items)
                and items[-1].key.number > 1
                and bool(tx.versions.page(artifact_id, items[-1].key.number, 1, 0))
            )
            return items, has_more

        items, has_more = self._catalog.read(work)
        return make_page(items, has_more, query, [items[-1].key.number] if items else None)


def _require_blobs(tx: Transaction, manifest: Manifest) -> None:
    """Hold the blobs a manifest names, so that collection cannot take them before the version names them."""
    known = tx.blobs.get({file.sha256 for file in manifest.files}, lock=True)
    found = Violations()
    for index, file in enumerate(manifest.files):
        record = known.get(file.sha256)
        if record is None or record.state is not BlobState.STORED:
            raise BlobMissing(file.sha256, file.path)
        found.add_unless(
            record.size_bytes == file.size_bytes,
            f"manifest.files[{index}].size_bytes",
            f"is {file.size_bytes}, the blob has {record.size_bytes} bytes",
        )
    found.raise_if_any()


def _require_lineage(tx: Transaction, manifest: Manifest) -> None:
    digests = tx.versions.digests({entry.version for entry in manifest.lineage})
    for index, entry in enumerate(manifest.lineage):
        actual = digests.get(entry.version)
        if actual is None:
            raise ResourceNotFound(str(entry.version), f"does not exist (manifest.lineage[{index}].version)")
        if actual != entry.digest:
            raise InvalidInput(
                f"{entry.version} has digest {actual}, not {entry.digest}", field=f"manifest.lineage[{index}].digest"
            )
