"""The servers that are compared: how each is started, called, and read."""

import asyncio
import base64
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from http_calls import HttpCalls
from infer_messages import infer_answer, infer_request
from report import OURS, OURS_WITHOUT_DISK
from work import Click, Mask

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
_CALL_TIMEOUT_S = 30.0
_SHARED = Path("/dev/shm")
# Whatever this shell has set must not decide what is measured.
_CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("VPLAB_", "OMP_"))}


@dataclass(frozen=True)
class Form:
    """How a server uses the machine's cores."""

    workers: int = 0
    """Processes that compute; 0 where the server decides by itself."""
    intra_op: int = 0
    """Threads of each run of a graph."""
    batch: int = 1
    """Most calls in one run of a graph."""

    def __str__(self) -> str:
        return f"{self.workers} workers x {self.intra_op} threads, batches to {self.batch}" if self.workers else "as is"


_CORES = os.cpu_count() or 1
PEER_FORMS = tuple(Form(*cores, batch) for cores in dict.fromkeys([(_CORES, 1), (1, _CORES)]) for batch in (1, 4))
"""A worker on each core, and one whose runs use all of them; each without and with batching."""


class Server(ABC):
    """A server of the nano models that answers clicks and embeds images."""

    name: str
    forms: tuple[Form, ...] = PEER_FORMS
    """What is tried; at each concurrency the one with the highest throughput is measured."""
    works: tuple[str, ...] = ("click", "embed")
    """What is measured of it."""
    end_timeout_s = 5.0
    """How long it may take to end by itself; it has nothing to lose."""

    def __init__(self, port: int, form: Form, python: Path) -> None:
        """python: interpreter of the virtual environment."""
        self.port = port
        self.form = form
        self.python = python

    @abstractmethod
    def command(self, folder: Path, store: Path) -> list[str]:
        """Return the command that serves until SIGTERM.

        folder: for whatever it writes. store: folder in memory, for embeddings that its processes share.
        """

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

    def environment(self, store: Path) -> dict[str, str]:
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
        store = Path(tempfile.mkdtemp(prefix="vplab-peers-", dir=_SHARED if _SHARED.is_dir() else None))
        environment = {**_CLEAN, "PYTHONPATH": f"{ROOT / 'services'}:{HERE}", **self.environment(store)}
        with (folder / "log.txt").open("ab") as log:
            process = psutil.Popen(
                self.command(folder, store), stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment,
                cwd=folder, start_new_session=True,
            )  # fmt: skip
            try:
                self._wait_until_ready(process, folder, pictures[0])
                for picture in pictures[1:]:
                    self.ask(self.embeddings(), self.embed_body(picture.data))
                yield process
            finally:
                _end(process, self.end_timeout_s)
                shutil.rmtree(store, ignore_errors=True)

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

    name = OURS
    forms = (Form(),)
    end_timeout_s = 40.0

    def command(self, folder: Path, store: Path) -> list[str]:
        return [
            sys.executable, "-m", "vplab.cli.main", "--home", str(folder / "home"), "serve",
            "registry", "embedding", "segmentation", "--port-base", str(self.port), "--log-files",
        ]  # fmt: skip

    def environment(self, store: Path) -> dict[str, str]:
        return {"VPLAB_LOG_LEVEL": "warning"}  # without a line for each call, as the peers

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


class VPLabWithoutDisk(VPLab):
    """Our services where embeddings live in memory alone, as those of the bare loop and the peers do.

    Tells what their copies on disk cost, which outlive a restart.
    """

    name = OURS_WITHOUT_DISK
    works = ("embed",)

    def environment(self, store: Path) -> dict[str, str]:
        return {**super().environment(store), "VPLAB_EMBEDDING_STORE_BYTES": "0"}


class LitServe(Server):
    """LitServe: bytes over HTTP, handed to worker processes through its message queue."""

    name = "litserve"

    def command(self, folder: Path, store: Path) -> list[str]:
        numbers = (self.port, self.form.workers, self.form.intra_op, self.form.batch)
        return [str(self.python), str(HERE / "litserve_server.py"), *map(str, numbers), str(store)]

    def clicks(self) -> Target:
        return HttpCalls(self.port, "/click", "application/octet-stream")

    def embeddings(self) -> Target:
        return HttpCalls(self.port, "/embed", "application/octet-stream")

    def click_body(self, digest: str, x: float, y: float) -> bytes:
        return Click(digest, x, y).to_bytes()

    def embed_body(self, data: bytes) -> bytes:
        return data

    def mask_of(self, answer: bytes) -> Mask:
        return Mask.from_bytes(answer)


class MLServer(Server):
    """MLServer: the Open Inference Protocol over gRPC, items as elements of a BYTES tensor."""

    name = "mlserver"

    def command(self, folder: Path, store: Path) -> list[str]:
        numbers = (self.port, self.form.workers, self.form.batch)
        return [str(self.python), str(HERE / "mlserver_server.py"), *map(str, numbers), str(folder)]

    def environment(self, store: Path) -> dict[str, str]:
        return {"PEER_INTRA_OP": str(self.form.intra_op), "PEER_STORE": str(store)}

    def clicks(self) -> Target:
        return self._target()

    def embeddings(self) -> Target:
        return self._target()

    def click_body(self, digest: str, x: float, y: float) -> bytes:
        return infer_request("click", Click(digest, x, y).to_bytes())

    def embed_body(self, data: bytes) -> bytes:
        return infer_request("embed", data)

    def mask_of(self, answer: bytes) -> Mask:
        return Mask.from_bytes(infer_answer(answer))

    def _target(self) -> Target:
        return GrpcCalls(f"127.0.0.1:{self.port}", "/inference.GRPCInferenceService/ModelInfer")


class BentoML(Server):
    """BentoML: HTTP, its workers and its adaptive batching."""

    name = "bentoml"

    def command(self, folder: Path, store: Path) -> list[str]:
        program = [str(self.python.with_name("bentoml")), "serve", "bentoml_server:Nano"]
        return [*program, "--working-dir", str(HERE), "--host", "127.0.0.1", "--port", str(self.port)]

    def environment(self, store: Path) -> dict[str, str]:
        return {
            "PEER_WORKERS": str(self.form.workers), "PEER_INTRA_OP": str(self.form.intra_op),
            "PEER_BATCH": str(self.form.batch), "PEER_STORE": str(store), "BENTOML_DO_NOT_TRACK": "True",
            "BENTOML_HOME": str(store / "home"),
        }  # fmt: skip

    def clicks(self) -> Target:
        return HttpCalls(self.port, "/click", "application/json")

    def embeddings(self) -> Target:
        return HttpCalls(self.port, "/embed", f"multipart/form-data; boundary={_BOUNDARY}")

    def click_body(self, digest: str, x: float, y: float) -> bytes:
        text = f"{digest} {x} {y}"
        return json.dumps({"clicks": [text]} if self.form.batch > 1 else {"click": text}).encode()

    def embed_body(self, data: bytes) -> bytes:
        head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="image.jpg"\r\n'
        return f"{head}Content-Type: image/jpeg\r\n\r\n".encode() + data + f"\r\n--{_BOUNDARY}--\r\n".encode()

    def mask_of(self, answer: bytes) -> Mask:
        return Mask.from_bytes(base64.b64decode(json.loads(answer)[0]) if self.form.batch > 1 else answer)


_BOUNDARY = "vplab-peers"
SERVERS: dict[str, type[Server]] = {
    server.name: server for server in (VPLab, VPLabWithoutDisk, LitServe, MLServer, BentoML)
}


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


@contextmanager
def suspended(processes: Sequence[psutil.Process]) -> Iterator[None]:
    """Stop servers with all that they started, so that none takes a core while another is measured."""
    family = [one for process in processes for one in (process, *process.children(recursive=True))]
    for one in family:
        with suppress(psutil.NoSuchProcess):
            one.suspend()
    try:
        yield
    finally:
        for one in family:
            with suppress(psutil.NoSuchProcess):
                one.resume()


async def _ask(target: Target, body: bytes) -> bytes:
    connection = await target.open()
    try:
        return await connection.send(body, _CALL_TIMEOUT_S)
    finally:
        await connection.close()


def _end(process: psutil.Process, timeout_s: float) -> None:
    """Let a server end by itself, then kill what is left of it."""
    if process.poll() is None:
        family = [process, *process.children(recursive=True)]
        process.send_signal(signal.SIGTERM)
        psutil.wait_procs(family, timeout_s)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # the session that it was started in
    process.wait()


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
