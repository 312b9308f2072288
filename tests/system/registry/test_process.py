"""``python -m vplab.registry`` as an operator runs it."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from vplab.api.registry.v1 import registry_service_pb2 as pb
from vplab.api.registry.v1 import registry_service_pb2_grpc as pb_grpc

HEAVY = ("torch", "onnx", "onnxruntime", "cv2", "PIL", "alembic")


@contextmanager
def started(home: Path, **variables: str) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("VPLAB_")}
    environment = {**inherited, "VPLAB_HOME": str(home), "VPLAB_REGISTRY_LISTEN": address, **variables}
    process = subprocess.Popen([sys.executable, "-m", "vplab.registry"], env=environment)
    try:
        yield address, process
    finally:
        process.kill()
        process.wait(30)


def versions_served(address: str) -> list[str]:
    with grpc.insecure_channel(address) as channel:
        stub = pb_grpc.RegistryServiceStub(channel)
        request = pb.ListArtifactsRequest(labels={"origin": "builtin"})
        artifacts = stub.ListArtifacts(request, wait_for_ready=True, timeout=60).artifacts
        return [stub.GetVersion(pb.GetVersionRequest(name=found.name)).version.digest for found in artifacts]


def when_ready(address: str) -> list[str]:
    while True:
        try:
            return versions_served(address)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise


def test_fresh_registry_serves_the_models_that_ship_and_stops_in_order(tmp_path: Path) -> None:
    with started(tmp_path) as (address, process):
        digests = when_ready(address)
        assert digests
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert (tmp_path / "registry" / "registry.db").exists()
    with started(tmp_path) as (address, process):
        assert when_ready(address) == digests


def test_registry_killed_while_it_publishes_what_ships_starts_again(tmp_path: Path) -> None:
    blobs = tmp_path / "registry" / "blobs"
    with started(tmp_path) as (_, process):
        while not list(blobs.rglob("*.part")) and process.poll() is None:
            pass
        process.kill()
    with started(tmp_path) as (address, process):
        assert when_ready(address)


def test_wrong_setting_ends_the_start_with_its_name(tmp_path: Path) -> None:
    environment = {**os.environ, "VPLAB_REGISTRY_BLOB_URL": "ftp://x"}
    ended = subprocess.run([sys.executable, "-m", "vplab.registry"], env=environment, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "VPLAB_REGISTRY_BLOB_URL" in ended.stderr


def test_registry_loads_nothing_heavy() -> None:
    code = "import sys, vplab.registry.__main__, vplab.registry.backends.obstore_blobs; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {name.split(".")[0] for name in modules} & set(HEAVY)
