"""An S3 server for tests: moto's, in its own process, on a free port, with one bucket."""

import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

BUCKET = "vplab-test"


@dataclass(frozen=True)
class S3Server:
    """A running server."""

    endpoint: str

    @property
    def environment(self) -> Mapping[str, str]:
        """The AWS_* variables a client needs."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
        }

    def url(self, prefix: str) -> str:
        return f"s3://{BUCKET}/{prefix}"


@contextmanager
def running_s3() -> Iterator[S3Server]:
    """Start a server for as long as the context lasts."""
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    # A file and not a pipe: nobody would read the pipe, and a full one stops the server.
    with tempfile.NamedTemporaryFile(prefix="vplab-s3-", suffix=".log") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            server = S3Server(_endpoint(process, Path(log.name)))
            _create_bucket(server)
            yield server
        finally:
            process.kill()
            process.wait(10)


def _endpoint(process: "subprocess.Popen[bytes]", log: Path) -> str:
    give_up = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < give_up:
        if found := re.search(r"Running on (http://127\.0\.0\.1:\d+)", log.read_text()):
            return found.group(1)
        time.sleep(0.05)
    raise RuntimeError(f"moto's server did not start:\n{log.read_text()}")


def _create_bucket(server: S3Server) -> None:
    request = urllib.request.Request(f"{server.endpoint}/{BUCKET}", method="PUT")
    for _ in range(100):
        try:
            urllib.request.urlopen(request, timeout=10).close()
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError("moto's server does not answer")
