"""The canonical form of a manifest, which its digest is taken of, and back.

The form is RFC 8785 JSON of one object whose six members are always there:

- ``description`` and ``licence``: strings, empty when not given;
- ``files``: objects with ``media_type``, ``path``, ``sha256`` and ``size_bytes``, sorted by path (UTF-8 bytes);
- ``lineage``: objects with ``digest``, ``relation`` and ``version`` (its full name), sorted by relation, then by the
  UTF-8 bytes of the version's name;
- ``metrics``: an object of numbers; ``spec``: an object, empty when not given.

The digest is the sha256 of these bytes in lower-case hex.
"""

import hashlib
import json

from vplab.registry.canonical_json import canonical_json
from vplab.registry.values import BlobFile, Lineage, Manifest, VersionKey


def canonical_manifest(manifest: Manifest) -> bytes:
    """Return the one spelling of a checked manifest; two manifests that mean the same have the same."""
    files = sorted(manifest.files, key=lambda file: file.path.encode())
    lineage = sorted(manifest.lineage, key=lambda entry: (entry.relation, str(entry.version).encode()))
    return canonical_json(
        {
            "description": manifest.description,
            "files": [
                {"media_type": f.media_type, "path": f.path, "sha256": f.sha256, "size_bytes": f.size_bytes}
                for f in files
            ],
            "licence": manifest.licence,
            "lineage": [{"digest": e.digest, "relation": e.relation, "version": str(e.version)} for e in lineage],
            "metrics": {name: float(value) for name, value in manifest.metrics.items()},
            "spec": manifest.spec,
        }
    )


def manifest_digest(canonical: bytes) -> str:
    """Return the digest of a canonical manifest."""
    return hashlib.sha256(canonical).hexdigest()


def manifest_from_canonical(canonical: bytes) -> Manifest:
    """Read back what ``canonical_manifest`` wrote."""
    value = json.loads(canonical)
    return Manifest(
        files=tuple(BlobFile(f["path"], f["sha256"], f["size_bytes"], f["media_type"]) for f in value["files"]),
        lineage=tuple(Lineage(e["relation"], _version_key(e["version"]), e["digest"]) for e in value["lineage"]),
        metrics={name: float(number) for name, number in value["metrics"].items()},
        licence=value["licence"],
        spec=value["spec"],
        description=value["description"],
    )


def _version_key(name: str) -> VersionKey:
    _, artifact_id, _, number = name.split("/")
    return VersionKey(artifact_id, int(number))
