"""Fetching a large file over HTTP so that a broken connection costs only what was not yet received.

Bytes go to ``<file>.part``; the next attempt, of this call or of a later process, asks for the rest with ``Range`` and
``If-Range``. The file takes its name only when its size and sha256 are right. Uses httpx for the transfer (proxies and
certificates from the usual environment variables) and tenacity for the attempts. Imports no torch.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import tenacity

from vplab.errors import (
    DataLoss,
    FailedPrecondition,
    InvalidInput,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)

Progress = Callable[[int, int | None], None]
"""Called with the bytes there are and the bytes there will be, None while unknown."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_RETRIED_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Downloaded:
    """A file that is complete."""

    path: Path
    size_bytes: int
    sha256: str
    verified_against: str | None
    """Where the digest that was compared came from; None if neither the caller nor the host gave one."""


@dataclass(frozen=True)
class RetryPolicy:
    """When to try again after a broken connection or a status that may pass."""

    max_attempts_without_progress: int = 5
    first_wait_s: float = 1.0
    max_wait_s: float = 30.0


def download(
    url: str,
    path: Path,
    *,
    sha256: str | None = None,
    size_bytes: int | None = None,
    progress: Progress = lambda received, total: None,
    retry: RetryPolicy | None = None,
    client: httpx.Client | None = None,
) -> Downloaded:
    """Fetch ``url`` into ``path``, going on where an earlier attempt stopped.

    sha256, size_bytes: what the file must have. Without sha256 the digest the Hugging Face hub sends with a file is
    compared. A file that is there already is kept if it has the given sha256, and fetched anew otherwise.
    Raises NotFound (404), PermissionDenied (401, 403), FailedPrecondition (other refusals), Unavailable (some tries in
    a row brought nothing), DataLoss (wrong size or digest; the bytes are discarded), ResourceExhausted (disk full),
    InvalidInput (no HTTP address).
    """
    if sha256 is not None and path.is_file() and (found := _hash_file(path).hexdigest()) == sha256:
        progress(path.stat().st_size, path.stat().st_size)
        return Downloaded(path, path.stat().st_size, found, "the known digest")
    path.parent.mkdir(parents=True, exist_ok=True)
    policy = retry or RetryPolicy()
    with contextlib.ExitStack() as stack:
        if client is None:
            timeout = httpx.Timeout(60.0, connect=15.0)
            client = stack.enter_context(httpx.Client(follow_redirects=True, timeout=timeout))
        transfer = _Transfer(client, url, path, sha256, size_bytes, progress)
        for attempt in tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Unavailable),
            stop=_StopWithoutProgress(policy.max_attempts_without_progress, transfer),
            wait=tenacity.wait_exponential(multiplier=policy.first_wait_s, max=policy.max_wait_s),
            reraise=True,
        ):
            with attempt, _plain_errors(url):
                transfer.attempt()
    return transfer.finish()


class _Transfer:
    """The state of one file between attempts."""

    def __init__(
        self,
        client: httpx.Client,
        url: str,
        path: Path,
        sha256: str | None,
        size_bytes: int | None,
        progress: Progress,
    ) -> None:
        self.client = client
        self.url = url
        self.path = path
        self.part = path.with_name(path.name + ".part")
        self.note = path.with_name(path.name + ".part.json")
        self.sha256 = sha256
        self.size_bytes = size_bytes
        self.progress = progress
        self.received = 0
        self.host_sha256: str | None = None

    def attempt(self) -> None:
        """Ask for what is missing and append it. Returns when the host has sent everything."""
        offset, headers = self._resumption()
        with self.client.stream("GET", self.url, headers={"Accept-Encoding": "identity"} | headers) as response:
            if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                if response.headers.get("Content-Range") == f"bytes */{offset}":
                    self.received = self.size_bytes = offset
                    self.host_sha256 = _linked_sha256(response)
                    return
                self._discard()
                raise Unavailable(f"{self.url} no longer has the bytes from {offset} on; starting over")
            _raise_for_status(response)
            is_rest = response.status_code == httpx.codes.PARTIAL_CONTENT
            if is_rest and _range_start(response) != offset:
                self._discard()
                raise Unavailable(f"{self.url} sent other bytes than those from {offset} on; starting over")
            self._expect(response, offset if is_rest else 0)
            if not is_rest:
                self._discard()
                self._keep_note(response)
            with self.part.open("ab" if is_rest else "wb") as file:
                self.received = offset if is_rest else 0
                self.progress(self.received, self.size_bytes)
                for chunk in response.iter_raw():
                    file.write(chunk)
                    self.received += len(chunk)
                    self.progress(self.received, self.size_bytes)
        if self.size_bytes is not None and self.received < self.size_bytes:
            raise Unavailable(f"{self.url} ended after {self.received} of {self.size_bytes} bytes")

    def finish(self) -> Downloaded:
        """Check what was received and give it its name."""
        digest = _hash_file(self.part).hexdigest()
        expected = self.sha256 or self.host_sha256
        if expected is not None and digest != expected:
            self._discard()
            raise DataLoss(
                f"{self.url} has sha256 {digest}, not {expected}; the bytes were discarded",
                metadata={"expected": expected, "actual": digest},
            )
        with self.part.open("rb") as file:
            os.fsync(file.fileno())
        self.part.replace(self.path)
        self.note.unlink(missing_ok=True)
        origin = "the known digest" if self.sha256 else "the digest its host sent" if expected else None
        return Downloaded(self.path, self.path.stat().st_size, digest, origin)

    def _expect(self, response: httpx.Response, offset: int) -> None:
        length = response.headers.get("Content-Length")
        announced = offset + int(length) if length is not None and length.isdigit() else None
        if announced is not None and self.size_bytes is not None and announced != self.size_bytes:
            self._discard()
            raise DataLoss(f"{self.url} is {announced} bytes, not {self.size_bytes}")
        self.size_bytes = self.size_bytes if announced is None else announced
        self.host_sha256 = _linked_sha256(response) or self.host_sha256

    def _resumption(self) -> tuple[int, dict[str, str]]:
        """Return how many bytes can be kept and the headers that ask for the others."""
        try:
            note = json.loads(self.note.read_text(encoding="utf-8"))
            offset = self.part.stat().st_size
        except (OSError, ValueError):
            return 0, {}
        if not offset or not isinstance(note, dict) or note.get("url") != self.url:
            return 0, {}
        etag = note.get("etag")
        # Without a validator the rest may be of another file, which only a known digest can tell at the end.
        if not etag and not self.sha256:
            return 0, {}
        return offset, {"Range": f"bytes={offset}-"} | ({"If-Range": str(etag)} if etag else {})

    def _keep_note(self, response: httpx.Response) -> None:
        etag = response.headers.get("ETag", "")
        # A weak validator does not promise equal bytes, so If-Range may not carry it (RFC 9110, 13.1.5).
        strong = etag if etag and not etag.startswith("W/") else None
        self.note.write_text(json.dumps({"url": self.url, "etag": strong}), encoding="utf-8")

    def _discard(self) -> None:
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


class _StopWithoutProgress(tenacity.stop.stop_base):
    """Give up after some attempts in a row that brought no byte."""

    def __init__(self, max_attempts: int, transfer: _Transfer) -> None:
        self.max_attempts = max_attempts
        self.transfer = transfer
        self.last_received = 0
        self.num_idle = 0

    def __call__(self, retry_state: tenacity.RetryCallState) -> bool:
        self.num_idle = 1 if self.transfer.received > self.last_received else self.num_idle + 1
        self.last_received = self.transfer.received
        return self.num_idle >= self.max_attempts


@contextlib.contextmanager
def _plain_errors(url: str) -> Iterator[None]:
    try:
        yield
    except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
        raise InvalidInput(f"{url!r} is not an HTTP address: {error}", field="url") from error
    except httpx.TransportError as error:
        raise Unavailable(f"{url} cannot be reached or broke off: {error or type(error).__name__}") from error
    except httpx.HTTPError as error:
        raise FailedPrecondition(f"{url} cannot be fetched: {error}") from error
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise ResourceExhausted(f"no room left for {url}", reason="STORAGE_FULL") from error
        raise


def _raise_for_status(response: httpx.Response) -> None:
    status, url = response.status_code, response.request.url
    if response.is_success:
        return
    if status == httpx.codes.NOT_FOUND:
        raise NotFound(f"{url} does not exist (HTTP 404)", metadata={"name": str(url)})
    if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        raise PermissionDenied(f"{url} may not be fetched without leave of its publisher (HTTP {status})")
    if status in _RETRIED_STATUS:
        raise Unavailable(f"{url} answers HTTP {status}")
    raise FailedPrecondition(f"{url} answers HTTP {status}")


def _linked_sha256(response: httpx.Response) -> str | None:
    # The hub names the digest on the answer that redirects to its storage, so the whole chain is asked.
    for answer in (*response.history, response):
        value = answer.headers.get("X-Linked-ETag", "").strip('"')
        if _SHA256.fullmatch(value):
            return str(value)
    return None


def _range_start(response: httpx.Response) -> int | None:
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _hash_file(path: Path) -> "hashlib._Hash":
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256")
