"""Rules for what callers send; every broken one is reported with the path of its field in the request."""

import math
import re
import unicodedata
from collections.abc import Mapping
from typing import Final

from vplab.errors import FieldViolation, InvalidInput
from vplab.registry.canonical_json import MAX_SAFE_INTEGER, canonical_json
from vplab.registry.values import BlobFile, Lineage, Manifest

MAX_DISPLAY_NAME: Final = 200
MAX_DESCRIPTION: Final = 10_000
MAX_LABELS: Final = 32
MAX_LABEL_VALUE: Final = 200
MAX_PATH: Final = 512
MAX_FILES: Final = 20_000
MAX_LINEAGE: Final = 1_000
MAX_METRICS: Final = 1_000
MAX_SPEC_BYTES: Final = 1024 * 1024
MAX_REASON: Final = 500
MAX_HOLDER: Final = 200

_LABEL_KEY: Final = re.compile(r"[a-z][a-z0-9_.-]{0,62}")
_RELATION: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")
_METRIC: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.@/-]{0,126}")
_MEDIA_TYPE: Final = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,100}/[A-Za-z0-9!#$&^_.+-]{1,100}(; ?[!-~]{1,100}){0,4}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_ETAG: Final = re.compile(r'"[!#-~]{0,100}"')


class Violations:
    """Collects what is wrong with one request, so that its author learns everything at once."""

    def __init__(self) -> None:
        self._found: list[FieldViolation] = []

    def add(self, field: str, description: str) -> None:
        self._found.append(FieldViolation(field, description))

    def add_unless(self, holds: bool, field: str, description: str) -> None:
        if not holds:
            self.add(field, description)

    def raise_if_any(self) -> None:
        """Raise InvalidInput naming the first hundred."""
        if self._found:
            message = "; ".join(f"{v.field}: {v.description}" for v in self._found[:3])
            more = f"; and {len(self._found) - 3} more" if len(self._found) > 3 else ""
            raise InvalidInput(message + more, violations=self._found[:100])


def check_text(found: Violations, text: str, limit: int, field: str) -> None:
    """Free text: bounded, and without NUL, which PostgreSQL cannot hold."""
    found.add_unless(len(text) <= limit, field, f"has {len(text)} characters, at most {limit} are allowed")
    found.add_unless("\0" not in text, field, "contains a NUL character")


def check_labels(found: Violations, labels: Mapping[str, str], field: str) -> None:
    found.add_unless(len(labels) <= MAX_LABELS, field, f"has {len(labels)} labels, at most {MAX_LABELS} are allowed")
    for key, value in labels.items():
        is_key = _LABEL_KEY.fullmatch(key) is not None
        found.add_unless(is_key, f"{field}[{key[:80]!r}]", "the key must have the form [a-z][a-z0-9_.-]{0,62}")
        check_text(found, value, MAX_LABEL_VALUE, f"{field}[{key[:80]!r}]")


def check_etag(etag: str, field: str) -> None:
    """An etag as RFC 7232 writes a strong one. Raises InvalidInput."""
    if not _ETAG.fullmatch(etag):
        raise InvalidInput(f'{etag[:80]!r} is not a quoted etag such as "7", quotes included', field=field)


def check_manifest(manifest: Manifest, field: str = "manifest") -> None:
    """Check everything about a manifest that needs no look at what is stored. Raises InvalidInput."""
    found = Violations()
    count = len(manifest.files)
    found.add_unless(1 <= count <= MAX_FILES, f"{field}.files", f"has {count} files, 1 to {MAX_FILES} are allowed")
    paths: set[str] = set()
    for index, file in enumerate(manifest.files[:MAX_FILES]):
        _check_file(found, file, f"{field}.files[{index}]")
        found.add_unless(file.path not in paths, f"{field}.files[{index}].path", f"{file.path[:80]!r} is there twice")
        paths.add(file.path)
    for path in sorted(paths):
        parents = (path[: at.start()] for at in re.finditer("/", path))
        clash = next((parent for parent in parents if parent in paths), None)
        found.add_unless(clash is None, f"{field}.files", f"{path[:80]!r} lies below {clash!r}, which is a file")
    _check_lineage(found, manifest.lineage, f"{field}.lineage")
    _check_metrics(found, manifest.metrics, f"{field}.metrics")
    check_text(found, manifest.licence, MAX_DISPLAY_NAME, f"{field}.licence")
    check_text(found, manifest.description, MAX_DESCRIPTION, f"{field}.description")
    _check_spec(found, manifest, f"{field}.spec")
    found.raise_if_any()


def _check_file(found: Violations, file: BlobFile, field: str) -> None:
    problem = path_problem(file.path)
    found.add_unless(problem is None, f"{field}.path", str(problem))
    found.add_unless(bool(_SHA256.fullmatch(file.sha256)), f"{field}.sha256", "must be 64 lower-case hex digits")
    small_enough = file.size_bytes <= MAX_SAFE_INTEGER
    found.add_unless(small_enough, f"{field}.size_bytes", f"exceeds {MAX_SAFE_INTEGER}")
    plain = not file.media_type or _MEDIA_TYPE.fullmatch(file.media_type)
    found.add_unless(bool(plain), f"{field}.media_type", 'is not a media type such as "application/json"')


def path_problem(path: str) -> str | None:
    """Say why a path cannot be a file of a version; None when it can."""
    if not path:
        return "is required"
    if len(path) > MAX_PATH:
        return f"has {len(path)} characters, at most {MAX_PATH} are allowed"
    if any(unicodedata.category(character) in {"Cc", "Cs"} for character in path) or "\\" in path:
        return f"{path[:80]!r} contains a control character or a backslash"
    if path.startswith("/") or re.match(r"[A-Za-z]:", path):
        return f"{path[:80]!r} is not relative"
    parts = path.split("/")
    if any(part in {"", ".", ".."} for part in parts):
        return f"{path[:80]!r} has an empty, '.' or '..' part"
    if any(len(part.encode()) > 255 for part in parts):
        return f"{path[:80]!r} has a part of more than 255 bytes"
    return None


def _check_lineage(found: Violations, lineage: tuple[Lineage, ...], field: str) -> None:
    found.add_unless(len(lineage) <= MAX_LINEAGE, field, f"has {len(lineage)} entries, at most {MAX_LINEAGE} allowed")
    seen: set[tuple[str, object]] = set()
    for index, entry in enumerate(lineage[:MAX_LINEAGE]):
        at = f"{field}[{index}]"
        found.add_unless(bool(_RELATION.fullmatch(entry.relation)), f"{at}.relation", "must be [a-z][a-z0-9_]{0,62}")
        found.add_unless(bool(_SHA256.fullmatch(entry.digest)), f"{at}.digest", "must be 64 lower-case hex digits")
        pair = (entry.relation, entry.version)
        found.add_unless(pair not in seen, at, f"{entry.relation} {entry.version} is there twice")
        seen.add(pair)


def _check_metrics(found: Violations, metrics: Mapping[str, float], field: str) -> None:
    found.add_unless(len(metrics) <= MAX_METRICS, field, f"has {len(metrics)} entries, at most {MAX_METRICS} allowed")
    for name, value in list(metrics.items())[:MAX_METRICS]:
        at = f"{field}[{name[:80]!r}]"
        found.add_unless(bool(_METRIC.fullmatch(name)), at, "the name must be [A-Za-z][A-Za-z0-9_.@/-]{0,126}")
        found.add_unless(math.isfinite(value), at, "is not a finite number")


def _check_spec(found: Violations, manifest: Manifest, field: str) -> None:
    try:
        size = len(canonical_json(manifest.spec))
    except ValueError as error:
        found.add(field, str(error))
        return
    found.add_unless(size <= MAX_SPEC_BYTES, field, f"has {size} bytes as JSON, at most {MAX_SPEC_BYTES} are allowed")
