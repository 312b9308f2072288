"""``vplab serve``: every service from one command, kept alive, and gone with it."""

import json
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fakes.vplab_command import Vplab, ended, free_port_base, wait_for
from vplab.client import Client, ClientOptions
from vplab.client.options import AREAS

# A start takes about two seconds of processor time in all; the promise is five seconds of wall time on a free machine,
# and the machine that runs the tests may be as busy as four.
PROMISED_S = 5.0
BUSY = 4

MODULES_ON_SIGNAL = """
import os, signal, sys
def write(*_):
    with open(os.path.join(os.environ["MODULES_FOLDER"], str(os.getpid())), "w") as file:
        file.write("\\n".join(sys.modules) + "\\n.")
signal.signal(signal.SIGUSR1, write)
"""


@contextmanager
def serving(vplab: Vplab, tmp_path: Path, *options: object) -> Iterator[dict[str, Any]]:
    figures = tmp_path / "serve.json"
    figures.unlink(missing_ok=True)
    with ended(vplab.start("serve", "--port-base", free_port_base(), "--json", figures, *options)) as process:
        wait_for(lambda: process.poll() is not None or (figures.exists() and bool(figures.read_text())), timeout_s=90)
        assert process.poll() is None, process.communicate()
        yield {**json.loads(figures.read_text()), "process": process}
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_all_services_are_healthy_soon_after_a_warm_start(vplab: Vplab, tmp_path: Path) -> None:
    with serving(vplab, tmp_path) as first:
        assert set(first["services"]) == set(AREAS)
    with serving(vplab, tmp_path) as second:
        assert second["healthy_after_s"] < PROMISED_S * BUSY
        ran = vplab.run("status", "--json", tmp_path / "status.json")
        assert ran.returncode == 0, ran.stderr
        status = json.loads((tmp_path / "status.json").read_text())
        assert {replica["health"] for replica in status["replicas"]} == {"serving"}
        assert status["resident_memory_bytes"] > 50 << 20
        for replica in status["replicas"]:
            assert replica["address"] == second["services"][replica["service"]]["address"]
            assert replica["socket"] == second["services"][replica["service"]]["socket"]
        # Commands of this home, and services among themselves, call on sockets.
        ran = vplab.run("models", "list")
        assert ran.returncode == 0, ran.stderr
        calls = [json.loads(line) for line in (vplab.home / "logs" / "registry.log").read_text().splitlines()]
        assert any(str(call.get("peer")).startswith("unix:") for call in calls)
        for service in second["services"].values():
            with socket.create_connection(("127.0.0.1", service["metrics_port"]), 5) as connection:
                connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
                assert b"200 OK" in connection.recv(1000)
    assert not vplab.services()


def test_no_process_of_inference_imports_torch(tmp_path: Path) -> None:
    hook, modules = tmp_path / "hook", tmp_path / "modules"
    hook.mkdir()
    modules.mkdir()
    (hook / "sitecustomize.py").write_text(MODULES_ON_SIGNAL)
    vplab = Vplab(tmp_path / "home", {"PYTHONPATH": str(hook), "MODULES_FOLDER": str(modules)})
    inference = ("registry", "embedding", "segmentation")
    with serving(vplab, tmp_path) as served:
        ran = vplab.run(
            *(part for area in AREAS for part in (f"--{area}", served["services"][area]["address"])),
            *("demo", "--out", tmp_path / "demo", "--num-images", 2, "--size", 256, "--rounds", 0),
        )
        assert ran.returncode == 0, ran.stderr
        for area in inference:
            process = vplab.services()[area]
            process.send_signal(signal.SIGUSR1)
            listing = modules / str(process.pid)
            wait_for(lambda listing=listing: listing.exists() and listing.read_text().endswith("."))  # type: ignore[misc]
            loaded = {name.split(".")[0] for name in listing.read_text().split()}
            assert "grpc" in loaded
            assert not {"torch", "torchvision", "timm", "segment_anything"} & loaded, area


def test_a_service_that_dies_is_started_again_at_its_address(vplab: Vplab, tmp_path: Path) -> None:
    with serving(vplab, tmp_path, "registry") as served:
        address = served["services"]["registry"]["address"]
        with Client(registry=address, options=ClientOptions()) as client:
            client.registry.create_artifact("kept", "dataset")
            first = vplab.services()["registry"]
            first.kill()
            wait_for(lambda: (now := vplab.services().get("registry")) is not None and now.pid != first.pid)
            wait_for(lambda: is_serving(client))
            assert client.registry.get_artifact("artifacts/kept").kind == "dataset"


def test_services_do_not_outlive_serve_even_when_it_is_killed(vplab: Vplab, tmp_path: Path) -> None:
    with ended(vplab.start("serve", "registry", "training", "--port-base", free_port_base())) as process:
        wait_for(lambda: len(vplab.services()) == 2)
        process.kill()
        process.wait()
        wait_for(lambda: not vplab.services(), timeout_s=45)


def test_a_second_serve_on_the_same_home_is_refused(vplab: Vplab, tmp_path: Path) -> None:
    with serving(vplab, tmp_path) as served:
        ran = vplab.run("serve", "--port-base", free_port_base())
        assert ran.returncode == 3
        assert f"process {served['process'].pid} already serves" in ran.stderr


def test_a_port_that_is_taken_is_named(vplab: Vplab, tmp_path: Path) -> None:
    base = free_port_base()
    with socket.create_server(("127.0.0.1", base)):
        ran = vplab.run("serve", "registry", "--log-files", "--no-metrics", "--port-base", base)
    assert ran.returncode == 3
    assert f"127.0.0.1:{base}" in ran.stderr


@pytest.mark.parametrize(("arguments", "code"), [(["gateway"], 3), (["--port-base", "0"], 2)])
def test_a_wrong_command_line_starts_nothing(vplab: Vplab, arguments: list[str], code: int) -> None:
    ran = vplab.run("serve", *arguments)
    assert ran.returncode == code
    assert "Traceback" not in ran.stderr


def is_serving(client: Client) -> bool:
    try:
        return client.replica("registry").health(timeout_s=2).get("") == "serving"
    except Exception:
        return False
