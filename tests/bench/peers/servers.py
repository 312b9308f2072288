"""The servers that are compared: how each is started, called, and read."""

import asyncio
import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
from work import Mask

from vplab.api.embedding.v1 import embedding_service_pb2 as embedding_pb
from vplab.api.segmentation.v1 import segmentation_service_pb2 as segmentation_pb
from vplab.api.vision.v1 import vision_pb2
from vplab.bench.grpc_calls import GrpcCalls
from vplab.bench.pictures import Picture
from vplab.bench.ports import CallFailed, Target
from vplab.bench.requests import Requests, unique_jpeg

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
_START_TIMEOUT_S = 120.0
_END_TIMEOUT_S = 40.0
_CALL_TIMEOUT_S = 30.0
# Whatever this shell has set must not decide what is measured.
_CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("VPLAB_", "OMP_"))}


class Server(ABC):
    """A server of the nano models that answers clicks and embeds images."""

    name: str
    is_peer = True
    """Whether it runs in a virtual environment of its own."""

    def __init__(self, port: int) -> None:
        self.port = port

    @abstractmethod
    def command(self, folder: Path) -> list[str]:
        """Return the command that serves until SIGTERM. folder: for whatever it writes."""

    @abstractmethod
    def clicks(self) -> Target:
        """Where clicks go."""

    @abstractmethod
    def embeddings(self) -> Target:
        """Where images go."""

    @abstractmethod
    def click_body(self, digest: str, x: float, y: float) -> bytes:
        """Return the request of a click."""

    @abstractmethod
    def embed_body(self, data: bytes) -> bytes:
        """Return the request that embeds a file."""

    @abstractmethod
    def mask_of(self, answer: bytes) -> Mask:
        """Return the mask of a click's answer."""

    def environment(self, folder: Path) -> dict[str, str]:
        """Return further variables of the server's process."""
        return {}

    def click_requests(self, pictures: Sequence[Picture]) -> Requests:
        """Return clicks on images that are embedded: image after image, as from many people at once."""
        rounds = zip(*(picture.points_xy for picture in pictures), strict=True)
        digests = [digest_of(picture) for picture in pictures]
        return Requests(
            [self.click_body(digest, x, y) for points in rounds for digest, (x, y) in zip(digests, points, strict=True)]
        )

    def embed_requests(self, pictures: Sequence[Picture]) -> Requests:
        """Return images that nobody has seen."""
        return Requests([self.embed_body(unique_jpeg(picture.data)) for picture in pictures])

    def ask(self, target: Target, body: bytes) -> bytes:
        """Make one call. Raises CallFailed."""
        return asyncio.run(_ask(target, body))

    @contextmanager
    def running(self, folder: Path, pictures: Sequence[Picture]) -> Iterator[psutil.Process]:
        """Serve, with all pictures embedded; gives the process, whose children belong to it."""
        folder.mkdir(parents=True, exist_ok=True)
        environment = {**_CLEAN, "PYTHONPATH": str(ROOT / "services"), **self.environment(folder)}
        with (folder / "log.txt").open("ab") as log:
            process = psutil.Popen(
                self.command(folder), stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment, cwd=folder,
                start_new_session=True,
            )  # fmt: skip
            try:
                self._wait_until_ready(process, folder, pictures[0])
                for picture in pictures[1:]:
                    self.ask(self.embeddings(), self.embed_body(picture.data))
                yield process
            finally:
                _end(process)

    def _wait_until_ready(self, process: psutil.Process, folder: Path, picture: Picture) -> None:
        give_up = time.monotonic() + _START_TIMEOUT_S
        while True:
            if process.poll() is not None:
                raise SystemExit(f"{self.name} ended with {process.returncode}; see {folder / 'log.txt'}")
            try:
                self.ask(self.embeddings(), self.embed_body(picture.data))
                return
            except CallFailed as error:
                if time.monotonic() > give_up:
                    raise SystemExit(f"{self.name} does not answer: {error.code}; see {folder / 'log.txt'}") from error
                time.sleep(0.3)


class VPLab(Server):
    """Our own services, as ``vplab serve`` starts them."""

    name = "vplab"
    is_peer = False

    def command(self, folder: Path) -> list[str]:
        return [
            sys.executable, "-m", "vplab.cli.main", "--home", str(folder / "home"), "serve",
            "registry", "embedding", "segmentation", "--port-base", str(self.port), "--log-files",
        ]  # fmt: skip

    def clicks(self) -> Target:
        return GrpcCalls(f"127.0.0.1:{self.port + 2}", "/vplab.api.segmentation.v1.SegmentationService/PredictMasks")

    def embeddings(self) -> Target:
        return GrpcCalls(f"127.0.0.1:{self.port + 1}", "/vplab.api.embedding.v1.EmbeddingService/EmbedImage")

    def click_body(self, digest: str, x: float, y: float) -> bytes:
        point = vision_pb2.Point(x=x, y=y, label="POINT_LABEL_FOREGROUND")
        return segmentation_pb.PredictMasksRequest(
            image=vision_pb2.Image(digest=digest), prompts=[segmentation_pb.ObjectPrompt(points=[point])]
        ).SerializeToString()

    def embed_body(self, data: bytes) -> bytes:
        return embedding_pb.EmbedImageRequest(
            image=vision_pb2.Image(encoded=data), encoders=["artifacts/nano-encoder"]
        ).SerializeToString()

    def mask_of(self, answer: bytes) -> Mask:
        message = segmentation_pb.PredictMasksResponse.FromString(answer)
        (mask,) = message.objects[0].masks
        size_hw = (message.image_size.height, message.image_size.width)
        return Mask(size_hw, np.array(mask.mask.runs, np.uint32), mask.predicted_iou)


SERVERS: dict[str, type[Server]] = {server.name: server for server in (VPLab,)}


def digest_of(picture: Picture) -> str:
    """Return the digest that every server keeps a picture's embedding by."""
    return hashlib.sha256(picture.data).hexdigest()


def free_port() -> int:
    """Return a port with 20 free ones from it on."""
    for base in range(21_000, 32_000, 20):
        if not any(_is_taken(base + offset) for offset in range(20)):
            return base
    raise SystemExit("no free ports")


def cpu_seconds(process: psutil.Process) -> float:
    """Return the processor time of a server's processes so far."""
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        try:
            times = one.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total


async def _ask(target: Target, body: bytes) -> bytes:
    connection = await target.open()
    try:
        return await connection.send(body, _CALL_TIMEOUT_S)
    finally:
        await connection.close()


def _end(process: psutil.Process) -> None:
    """Let a server end by itself, then kill what is left of it."""
    family = [process, *process.children(recursive=True)]
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    _, left = psutil.wait_procs(family, _END_TIMEOUT_S)
    for one in left:
        one.kill()
    psutil.wait_procs(left, _END_TIMEOUT_S)


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
