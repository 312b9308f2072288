"""Downloads from a server that breaks off, lies, forgets ranges and redirects, over real sockets."""

import errno
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from vplab.errors import (
    DataLoss,
    FailedPrecondition,
    InvalidInput,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from vplab.training.models.download import RetryPolicy, download

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
QUICK = RetryPolicy(max_attempts_without_progress=3, first_wait_s=0.001, max_wait_s=0.002)


class FileHost(ThreadingHTTPServer):
    """Serves CONTENT at /file; what goes wrong is set by the test."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.break_after: list[int] = []
        """Bytes to send before closing the connection, one for each of the first requests."""
        self.statuses: list[int] = []
        """Statuses to answer the first requests with."""
        self.has_ranges = True
        self.etag: str | None = '"v1"'
        self.content = CONTENT
        self.linked_sha256: str | None = None
        self.requests: list[tuple[str, str | None]] = []
        """Path and Range of each request."""

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients of these tests hang up in the middle."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/file"


class _Handler(BaseHTTPRequestHandler):
    server: FileHost
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        host = self.server
        wanted = self.headers.get("Range")
        host.requests.append((self.path, wanted))
        if self.path == "/linked":
            self._headers(
                302, {"Location": host.url, "X-Linked-ETag": f'"{host.linked_sha256}"', "Content-Length": "0"}
            )
            return
        if host.statuses:
            self._headers(host.statuses.pop(0), {"Content-Length": "0"})
            return
        total, start = len(host.content), 0
        is_current = self.headers.get("If-Range") in (None, host.etag)
        if wanted and host.has_ranges and is_current:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start >= total:
            self._headers(416, {"Content-Range": f"bytes */{total}", "Content-Length": "0"})
            return
        headers = {"Content-Length": str(total - start)} | ({"ETag": host.etag} if host.etag else {})
        if start:
            headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
        self._headers(206 if start else 200, headers)
        body = host.content[start:]
        if host.break_after:
            body = body[: host.break_after.pop(0)]
            self.close_connection = True
        self.wfile.write(body)

    def _headers(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def host() -> Iterator[FileHost]:
    with FileHost() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights" / "file.pth"


def parts_of(path: Path) -> list[str]:
    return sorted(p.name for p in path.parent.iterdir() if p != path)


def test_a_file_arrives_whole_with_its_digest_and_progress(host: FileHost, path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    done = download(
        host.url, path, sha256=SHA256, size_bytes=len(CONTENT), progress=lambda *p: seen.append(p), retry=QUICK
    )
    assert path.read_bytes() == CONTENT
    assert (done.sha256, done.size_bytes, done.verified_against) == (SHA256, len(CONTENT), "the known digest")
    assert seen[0] == (0, len(CONTENT))
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert parts_of(path) == []


def test_a_broken_connection_is_resumed_where_it_stopped(host: FileHost, path: Path) -> None:
    host.break_after = [100_000, 50_000]
    download(host.url, path, sha256=SHA256, retry=QUICK)
    assert path.read_bytes() == CONTENT
    assert [r for _, r in host.requests] == [None, "bytes=100000-", "bytes=150000-"]


def test_a_later_call_resumes_what_an_earlier_one_left(host: FileHost, path: Path) -> None:
    host.break_after = [80_000]
    host.statuses = []
    once = RetryPolicy(max_attempts_without_progress=1)
    with pytest.raises(Unavailable):
        download(host.url, path, retry=once)
    assert parts_of(path) == ["file.pth.part", "file.pth.part.json"]
    assert not path.exists()
    download(host.url, path, retry=QUICK)
    assert path.read_bytes() == CONTENT
    assert host.requests[-1][1] == "bytes=80000-"


def test_attempts_that_bring_bytes_never_use_up_the_patience(host: FileHost, path: Path) -> None:
    host.break_after = [10_000] * 12
    download(host.url, path, sha256=SHA256, retry=QUICK)
    assert path.read_bytes() == CONTENT
    assert len(host.requests) == 13


def test_a_host_without_ranges_is_asked_for_everything_again(host: FileHost, path: Path) -> None:
    host.has_ranges = False
    host.break_after = [100_000]
    download(host.url, path, sha256=SHA256, retry=QUICK)
    assert path.read_bytes() == CONTENT
    assert host.requests[1][1] == "bytes=100000-"


def test_a_file_that_changed_between_attempts_is_fetched_anew(host: FileHost, path: Path) -> None:
    host.break_after = [100_000]
    with pytest.raises(Unavailable):
        download(host.url, path, retry=RetryPolicy(max_attempts_without_progress=1))
    host.content, host.etag = CONTENT[::-1], '"v2"'
    done = download(host.url, path, retry=QUICK)
    assert path.read_bytes() == CONTENT[::-1]
    assert done.verified_against is None


def test_without_validator_or_known_digest_nothing_is_resumed(host: FileHost, path: Path) -> None:
    host.etag = None
    host.break_after = [100_000]
    download(host.url, path, retry=QUICK)
    assert path.read_bytes() == CONTENT
    assert [r for _, r in host.requests] == [None, None]


def test_a_part_that_is_already_whole_is_only_checked(host: FileHost, path: Path) -> None:
    host.break_after = [100_000]
    with pytest.raises(Unavailable):
        download(host.url, path, retry=RetryPolicy(max_attempts_without_progress=1))
    path.with_name("file.pth.part").write_bytes(CONTENT)
    download(host.url, path, sha256=SHA256, retry=QUICK)
    assert path.read_bytes() == CONTENT
    assert host.requests[-1][1] == f"bytes={len(CONTENT)}-"


def test_a_part_of_another_address_is_not_resumed(host: FileHost, path: Path) -> None:
    host.break_after = [100_000]
    with pytest.raises(Unavailable):
        download(host.url, path, retry=RetryPolicy(max_attempts_without_progress=1))
    download(host.url + "?other", path, sha256=SHA256, retry=QUICK)
    assert host.requests[-1] == ("/file?other", None)
    assert path.read_bytes() == CONTENT


def test_a_wrong_digest_is_data_loss_and_leaves_nothing(host: FileHost, path: Path) -> None:
    with pytest.raises(DataLoss, match="sha256") as caught:
        download(host.url, path, sha256="0" * 64, retry=QUICK)
    assert caught.value.metadata == {"expected": "0" * 64, "actual": SHA256}
    assert list(path.parent.iterdir()) == []


def test_a_damaged_part_is_data_loss_and_the_next_call_starts_over(host: FileHost, path: Path) -> None:
    host.break_after = [100_000]
    with pytest.raises(Unavailable):
        download(host.url, path, sha256=SHA256, retry=RetryPolicy(max_attempts_without_progress=1))
    path.with_name("file.pth.part").write_bytes(b"x" * 100_000)
    with pytest.raises(DataLoss):
        download(host.url, path, sha256=SHA256, retry=QUICK)
    download(host.url, path, sha256=SHA256, retry=QUICK)
    assert path.read_bytes() == CONTENT


def test_a_size_other_than_the_known_one_is_data_loss_before_any_byte(host: FileHost, path: Path) -> None:
    with pytest.raises(DataLoss, match="300000 bytes, not 300001"):
        download(host.url, path, size_bytes=len(CONTENT) + 1, retry=QUICK)
    assert list(path.parent.iterdir()) == []


def test_the_digest_the_hub_sends_with_a_redirect_is_compared(host: FileHost, path: Path) -> None:
    host.linked_sha256 = SHA256
    linked = host.url.replace("/file", "/linked")
    assert download(linked, path, retry=QUICK).verified_against == "the digest its host sent"
    host.linked_sha256 = "1" * 64
    with pytest.raises(DataLoss):
        download(linked, path.with_name("other"), retry=QUICK)


def test_a_file_with_the_known_digest_is_not_fetched_again(host: FileHost, path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    download(host.url, path, sha256=SHA256, retry=QUICK)
    assert host.requests == []


def test_a_file_with_another_digest_is_replaced(host: FileHost, path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"older")
    download(host.url, path, sha256=SHA256, retry=QUICK)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("status", "kind"), [(404, NotFound), (401, PermissionDenied), (403, PermissionDenied), (410, FailedPrecondition)]
)
def test_a_refusal_is_told_at_once(host: FileHost, path: Path, status: int, kind: type[Exception]) -> None:
    host.statuses = [status]
    with pytest.raises(kind, match=str(status)):
        download(host.url, path, retry=QUICK)
    assert len(host.requests) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_trouble_is_tried_again(host: FileHost, path: Path, status: int) -> None:
    host.statuses = [status, status]
    download(host.url, path, sha256=SHA256, retry=QUICK)
    assert path.read_bytes() == CONTENT


def test_a_host_that_stays_in_trouble_is_unavailable(host: FileHost, path: Path) -> None:
    host.statuses = [503] * 9
    with pytest.raises(Unavailable, match="503"):
        download(host.url, path, retry=QUICK)
    assert len(host.requests) == QUICK.max_attempts_without_progress


def test_a_host_that_is_not_there_is_unavailable(path: Path) -> None:
    with pytest.raises(Unavailable, match="cannot be reached"):
        download("http://127.0.0.1:9/file", path, retry=QUICK)


def test_an_interrupted_download_keeps_what_it_has(host: FileHost, path: Path) -> None:
    def interrupt(received: int, total: int | None) -> None:
        if received > 50_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(host.url, path, sha256=SHA256, progress=interrupt, retry=QUICK)
    kept = path.with_name("file.pth.part").stat().st_size
    assert kept > 50_000
    download(host.url, path, sha256=SHA256, retry=QUICK)
    assert host.requests[-1][1] == f"bytes={kept}-"


@pytest.mark.parametrize("address", ["nowhere", "ftp://host/file"])
def test_an_address_that_is_none_is_invalid_input(path: Path, address: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        download(address, path, retry=QUICK)
    assert caught.value.violations[0].field == "url"


def test_a_full_disk_is_resource_exhausted_and_keeps_the_rest_for_later(host: FileHost, path: Path) -> None:
    def no_room(received: int, total: int | None) -> None:
        if received > 50_000:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ResourceExhausted) as caught:
        download(host.url, path, sha256=SHA256, progress=no_room, retry=QUICK)
    assert caught.value.reason == "STORAGE_FULL"
    assert path.with_name("file.pth.part").exists()
