"""The orderly stop, in the process and with a real SIGTERM."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from fakes.four_kinds import KINDS, FourKinds, begin, failure, finish
from vplab import errors
from vplab.api.registry.v1 import registry_service_pb2 as pb
from vplab.api.registry.v1 import registry_service_pb2_grpc as pb_grpc
from vplab.runtime.server import Registration, StartError, running_server, serve
from vplab.runtime.settings import ServerSettings

NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Held:
    """A behaviour that stays in flight until it is let go."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.go = asyncio.Event()

    async def __call__(self) -> None:
        self.began.set()
        await self.go.wait()


@pytest.mark.parametrize("kind", KINDS)
async def test_calls_in_flight_end_well_during_the_drain_and_new_ones_are_refused(kind):
    held = Held()
    stop = asyncio.Event()
    async with running(FourKinds(held), stop, drain_grace_s=30) as (channel, address, serving):
        call = asyncio.create_task(finish(begin(kind, channel)))
        await held.began.wait()
        stop.set()
        await asyncio.sleep(0.2)
        async with grpc.aio.insecure_channel(address) as fresh:
            assert type(await failure(begin("unary", fresh, timeout=5))) is errors.Unavailable
        assert not serving.done()
        held.go.set()
        assert await call
        await asyncio.wait_for(serving, 10)


@pytest.mark.parametrize("kind", KINDS)
async def test_calls_that_outlast_the_grace_end_with_unavailable(kind):
    held = Held()
    stop = asyncio.Event()
    async with running(FourKinds(held), stop, drain_grace_s=0.2) as (channel, _, serving):
        call = asyncio.create_task(failure(begin(kind, channel)))
        await held.began.wait()
        stop.set()
        error = await call
        assert (type(error), error.reason) == (errors.Unavailable, "SERVICE_UNAVAILABLE")
        assert "stopped" in error.message
        await asyncio.wait_for(serving, 10)


async def test_health_says_not_serving_and_calls_are_still_taken_during_the_delay():
    stop = asyncio.Event()
    async with running(FourKinds(), stop, drain_delay_s=1.5) as (channel, _, serving):
        stub = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        await watch.read()
        stop.set()
        assert (await watch.read()).status == NOT_SERVING
        assert (await stub.Check(health_pb2.HealthCheckRequest())).status == NOT_SERVING
        await finish(begin("unary", channel))
        await asyncio.wait_for(serving, 20)


async def test_watches_are_ended_at_once_and_do_not_use_up_the_grace():
    held = Held()
    stop = asyncio.Event()
    async with running(FourKinds(held), stop, drain_grace_s=60) as (channel, _, serving):
        watch = pb_grpc.RegistryServiceStub(channel).WatchAliases(pb.WatchAliasesRequest())
        health_watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        await watch.read()
        await health_watch.read()
        stop.set()
        error = await failure(watch)
        assert (type(error), "another replica" in error.message) == (errors.Unavailable, True)
        await asyncio.wait_for(serving, 20)


async def test_a_stream_that_never_stops_writing_is_ended_with_its_status():
    class Endless(pb_grpc.RegistryServiceServicer):
        async def DownloadBlob(self, request, context):
            while True:
                yield pb.DownloadBlobResponse(chunk=b"x" * 1000)

    registration = Registration(
        "vplab.api.registry.v1.RegistryService",
        lambda s: pb_grpc.add_RegistryServiceServicer_to_server(Endless(), s),
    )
    async with running_server([registration], ServerSettings(drain_grace_s=0.1)) as server:
        channel = grpc.aio.insecure_channel(server.address)
        calls = [asyncio.create_task(failure(begin("server_stream", channel))) for _ in range(5)]
        await asyncio.sleep(0.1)
    ended = await asyncio.gather(*calls)
    assert {(type(error), "stopped" in error.message) for error in ended} == {(errors.Unavailable, True)}
    await channel.close()


async def test_a_generators_cleanup_runs_when_its_call_is_ended():
    cleaned = asyncio.Event()

    class Cleaning(pb_grpc.RegistryServiceServicer):
        async def DownloadBlob(self, request, context):
            try:
                yield pb.DownloadBlobResponse()
                await asyncio.sleep(60)
            finally:
                cleaned.set()

    registration = Registration(
        "vplab.api.registry.v1.RegistryService",
        lambda s: pb_grpc.add_RegistryServiceServicer_to_server(Cleaning(), s),
    )
    async with running_server([registration], ServerSettings(drain_grace_s=0.1)) as server:
        channel = grpc.aio.insecure_channel(server.address)
        call = begin("server_stream", channel)
        await call.read()
    assert cleaned.is_set()
    await channel.close()


async def test_a_port_in_use_is_a_clear_error():
    async with running_server(FourKinds().registrations, ServerSettings()) as server:
        with pytest.raises(StartError, match=f"cannot listen on {server.address}"):
            async with running_server(FourKinds().registrations, ServerSettings(listen=server.address)):
                pass


async def test_a_metrics_port_in_use_is_a_clear_error():
    async with running_server(FourKinds().registrations, ServerSettings(metrics_port=0)) as server:
        with pytest.raises(StartError, match=f"metrics port 127.0.0.1:{server.metrics_port}"):
            async with running_server(FourKinds().registrations, ServerSettings(metrics_port=server.metrics_port)):
                pass


async def test_a_unix_socket_serves(tmp_path):
    async with (
        running_server(FourKinds().registrations, ServerSettings(listen=f"unix:{tmp_path}/s")) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        await finish(begin("unary", channel))


async def test_an_old_connection_is_renewed():
    """Without a maximum age a long-lived client never meets a new replica."""
    settings = ServerSettings(max_connection_age_s=0.5, max_connection_age_grace_s=5)
    peers: set[str] = set()
    until = time.monotonic() + 20
    async with (
        running_server(FourKinds().registrations, settings) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        while len(peers) < 2 and time.monotonic() < until:
            with capture_logs() as lines:
                await finish(begin("unary", channel))
            peers |= {line["peer"] for line in lines if line["event"] == "call"}
            await asyncio.sleep(0.1)
    assert len(peers) == 2


@asynccontextmanager
async def running(script: FourKinds, stop: asyncio.Event, **settings):
    """Run ``serve`` until ``stop``; yield a channel, the address and the task."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    config = ServerSettings(listen=address, **settings)
    serving = asyncio.create_task(serve(script.registrations, config, service="test", stop=stop))
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            await asyncio.wait_for(channel.channel_ready(), 20)
            yield channel, address, serving
    finally:
        stop.set()
        await serving


SERVICE = """
import asyncio, sys
sys.path.insert(0, {tests!r})
from fakes.four_kinds import FourKinds
from vplab.runtime.device_queue import DeviceQueue
from vplab.runtime.process import run_service
from vplab.runtime.server import serve
from vplab.runtime.settings import ServerSettings

class Settings(ServerSettings, env_prefix="VPLAB_LOOM_"):
    pass

def work(items):
    import time
    print("working", flush=True)
    time.sleep({seconds})
    return items

async def start(settings):
    queue = DeviceQueue(work, name="device", capacity=8)
    queue.start()
    await serve(FourKinds(lambda: queue.submit(1)).registrations, settings, service="loom")
    await queue.close(grace_s=0.5)

run_service("loom", Settings, start)
"""


class Process:
    """A service in a process of its own."""

    def __init__(self, seconds: float, **variables: str) -> None:
        source = SERVICE.format(tests=str(Path(__file__).parents[2]), seconds=seconds)
        environment = {**os.environ, **{f"VPLAB_LOOM_{name}": value for name, value in variables.items()}}
        self.popen = subprocess.Popen(
            [sys.executable, "-c", source], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def wait_listening(self) -> str:
        for line in self.popen.stderr:
            event = json.loads(line)
            if event["event"] == "serving":
                return event["address"]
        raise AssertionError("the service ended before it served")

    def wait_working(self) -> None:
        assert self.popen.stdout.readline() == "working\n"

    def wait_code(self) -> int:
        self.popen.communicate(timeout=30)
        return self.popen.returncode


@pytest.fixture
def processes():
    started: list[Process] = []

    def start(seconds: float, **variables: str) -> Process:
        started.append(Process(seconds, LISTEN="127.0.0.1:0", **variables))
        return started[-1]

    yield start
    for process in started:
        if process.popen.poll() is None:
            process.popen.kill()
            process.popen.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_process_exits_with_0_on_a_signal(processes, number):
    process = processes(0.0)
    process.wait_listening()
    process.popen.send_signal(number)
    assert process.wait_code() == 0


def test_a_process_whose_parent_blocks_the_signal_stops_all_the_same(processes):
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        process = processes(0.0)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    process.wait_listening()
    process.popen.terminate()
    assert process.wait_code() == 0


def test_sigterm_lets_the_call_in_flight_end_well(processes):
    process = processes(1.0)
    with grpc.insecure_channel(process.wait_listening()) as channel:
        call = pb_grpc.RegistryServiceStub(channel).QueryUpload.future(pb.QueryUploadRequest(), timeout=20)
        process.wait_working()
        process.popen.send_signal(signal.SIGTERM)
        assert call.result().committed_bytes > 0
        assert process.wait_code() == 0


@pytest.mark.parametrize("hurry", [False, True], ids=["grace", "second signal"])
def test_sigterm_ends_what_outlasts_the_grace_and_still_exits_with_0(processes, hurry):
    process = processes(60.0, DRAIN_GRACE_S="60" if hurry else "0.3")
    with grpc.insecure_channel(process.wait_listening()) as channel:
        call = pb_grpc.RegistryServiceStub(channel).QueryUpload.future(pb.QueryUploadRequest(), timeout=50)
        process.wait_working()
        process.popen.send_signal(signal.SIGTERM)
        if hurry:
            time.sleep(0.5)
            process.popen.send_signal(signal.SIGTERM)
        assert call.code() is grpc.StatusCode.UNAVAILABLE
        assert process.wait_code() == 0


def test_a_wrong_setting_ends_the_process_with_2_and_the_variables_name(processes):
    process = processes(0.0, DRAIN_GRACE_S="soon")
    _, errors_text = process.popen.communicate(timeout=30)
    assert process.popen.returncode == 2
    assert errors_text.startswith("VPLAB_LOOM_DRAIN_GRACE_S: ")


def test_a_port_in_use_ends_the_process_with_1(processes):
    address = processes(0.0).wait_listening()
    second = Process(0.0, LISTEN=address)
    _, errors_text = second.popen.communicate(timeout=30)
    assert second.popen.returncode == 1
    assert f"cannot listen on {address}" in errors_text


def test_a_mistyped_variable_is_warned_about(processes):
    process = processes(0.0, LISTN="x")
    line = json.loads(process.popen.stderr.readline())
    assert (line["level"], "did you mean VPLAB_LOOM_LISTEN?" in line["event"]) == ("warning", True)
