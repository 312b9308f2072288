"""Health, readiness, reflection and what a server says about itself."""

import asyncio
import time

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from fakes.four_kinds import EMBEDDING, REGISTRY, FourKinds, begin, failure, finish, open_channel
from vplab import errors
from vplab.api.runtime.v1 import runtime_service_pb2, runtime_service_pb2_grpc
from vplab.runtime.device_queue import DeviceQueue
from vplab.runtime.server import running_server
from vplab.runtime.server_info import RUNTIME_SERVICE, ServedModel
from vplab.runtime.settings import ServerSettings

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


@pytest.fixture
async def health():
    async with open_channel(FourKinds().registrations) as channel:
        yield health_pb2_grpc.HealthStub(channel)


async def check(stub, service: str = "") -> int:
    return (await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)).status


@pytest.mark.parametrize("service", ["", REGISTRY, EMBEDDING, RUNTIME_SERVICE])
async def test_check_answers_for_the_server_and_each_service(health, service):
    assert await check(health, service) == SERVING


async def test_check_of_an_unknown_service_is_not_found(health):
    error = await failure(health.Check(health_pb2.HealthCheckRequest(service="no.such.Service")))
    assert (type(error), error.metadata) == (errors.NotFound, {"name": "no.such.Service"})


async def test_list_names_the_server_and_each_service(health):
    statuses = (await health.List(health_pb2.HealthListRequest())).statuses
    assert {name: response.status for name, response in statuses.items()} == dict.fromkeys(
        ["", REGISTRY, EMBEDDING, RUNTIME_SERVICE], SERVING
    )


async def test_watch_of_an_unknown_service_says_so_and_stays_open(health):
    call = health.Watch(health_pb2.HealthCheckRequest(service="no.such.Service"))
    assert (await call.read()).status == UNKNOWN
    call.cancel()


async def test_a_server_is_alive_but_not_serving_until_its_service_is_ready():
    go = asyncio.Event()
    async with (
        running_server(FourKinds().registrations, ServerSettings(), ready=go.wait, wait_ready=False) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        stub = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=REGISTRY))
        assert (await watch.read()).status == NOT_SERVING
        assert await check(stub) == NOT_SERVING
        assert await check(stub, RUNTIME_SERVICE) == SERVING
        error = await failure(begin("unary", channel))
        assert (type(error), error.retry_after_s) == (errors.Unavailable, 1.0)
        go.set()
        assert (await watch.read()).status == SERVING
        assert await check(stub) == SERVING
        await finish(begin("unary", channel))


async def test_one_service_can_be_taken_out_alone():
    async with (
        running_server(FourKinds().registrations, ServerSettings()) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        stub = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=EMBEDDING))
        assert (await watch.read()).status == SERVING
        server.health.set_not_serving(EMBEDDING)
        assert (await watch.read()).status == NOT_SERVING
        assert await check(stub, REGISTRY) == SERVING


async def test_a_service_that_cannot_become_ready_reports_why():
    async def ready() -> None:
        raise errors.Unavailable("no registry")

    with pytest.raises(errors.Unavailable, match="no registry"):
        async with running_server(FourKinds().registrations, ServerSettings(), ready=ready):
            pass


async def test_a_watcher_that_does_not_read_holds_up_neither_changes_nor_the_drain():
    async with running_server(FourKinds().registrations, ServerSettings(drain_grace_s=30)) as server:
        channel = grpc.aio.insecure_channel(server.address)
        call = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        await call.read()
        for _ in range(1000):
            server.health.set_not_serving("")
            server.health.set_serving("")
        began = time.monotonic()
    assert time.monotonic() - began < 15
    await channel.close()


@pytest.mark.parametrize("work", ["onnxruntime", "numpy"])
async def test_health_answers_within_100_ms_while_the_device_computes(work):
    """On the median: on a busy machine another process may hold both cores for a moment."""
    run = _onnx_work() if work == "onnxruntime" else _numpy_work
    ran_s = []

    def timed(items):
        began = time.monotonic()
        run()
        ran_s.append(time.monotonic() - began)
        return items

    queue = DeviceQueue(timed, name=f"busy-{work}", capacity=4)
    queue.start()
    script = FourKinds(lambda: queue.submit(1))
    async with (
        running_server(script.registrations, ServerSettings()) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        stub = health_pb2_grpc.HealthStub(channel)
        await check(stub)
        inference = asyncio.create_task(finish(begin("unary", channel)))
        waits = []
        while not inference.done():
            began = time.monotonic()
            assert await check(stub) == SERVING
            waits.append(time.monotonic() - began)
            await asyncio.sleep(0.02)
        await inference
    await queue.close()
    assert ran_s[0] > 1.0
    assert len(waits) > 10
    assert sorted(waits)[len(waits) // 2] < 0.1
    assert max(waits) < ran_s[0] / 2  # no answer waited for the work


def _numpy_work() -> None:
    a = np.ones((1500, 1500), np.float32)
    until = time.monotonic() + 1.5
    while time.monotonic() < until:
        a = a @ a / 1500


def _onnx_work():
    helper = pytest.importorskip("onnx").helper
    from onnx import TensorProto

    from vplab.runtime.onnx_session import OnnxSettings, create_session

    # One run of a chain of products, with no return to Python in between.
    nodes = [helper.make_node("MatMul", [f"x{i}", "x0"], [f"x{i + 1}"]) for i in range(120)]
    shape = [1024, 1024]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("x120", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    session = create_session(model.SerializeToString(), OnnxSettings(providers=("cpu",), intra_op_threads=1))
    value = np.full(shape, 1 / 1024, np.float32)

    def run() -> None:
        session.run(None, {"x0": value})

    return run


async def test_reflection_lists_every_service_and_serves_its_file():
    async with open_channel(FourKinds().registrations) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        requests = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol=REGISTRY),
        ]
        listed, described = [response async for response in stub.ServerReflectionInfo(requests)]
    names = {service.name for service in listed.list_services_response.service}
    assert {REGISTRY, EMBEDDING, RUNTIME_SERVICE, "grpc.health.v1.Health"} <= names
    assert described.file_descriptor_response.file_descriptor_proto


async def test_reflection_can_be_switched_off():
    async with open_channel(FourKinds().registrations, enable_reflection=False) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        error = await failure(stub.ServerReflectionInfo([reflection_pb2.ServerReflectionRequest(list_services="")]))
    assert type(error) is errors.Unimplemented


async def test_a_server_tells_what_it_is_and_serves():
    models = [ServedModel("segmenter", "artifacts/nano-segmenter/versions/2", "ab" * 32, ("production",), "cpu")]
    queue = DeviceQueue(list, name="decoder", capacity=7)
    queue.start()
    async with (
        running_server(
            FourKinds().registrations, ServerSettings(), service="segmentation", served_models=lambda: models
        ) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        stub = runtime_service_pb2_grpc.RuntimeServiceStub(channel)
        info = (await stub.GetServerInfo(runtime_service_pb2.GetServerInfoRequest())).server
        models.clear()
        later = (await stub.GetServerInfo(runtime_service_pb2.GetServerInfoRequest())).server
    await queue.close()
    assert info.service == "segmentation"
    assert list(info.served_services) == sorted([REGISTRY, EMBEDDING])
    (model,) = info.served_models
    assert (model.role, model.model.digest, list(model.aliases), model.device) == (
        "segmenter",
        "ab" * 32,
        ["production"],
        "cpu",
    )
    assert [(q.name, q.capacity, q.depth) for q in info.queues if q.name == "decoder"] == [("decoder", 7, 0)]
    assert info.resident_memory_bytes > 10_000_000
    assert abs(info.start_time.ToSeconds() - time.time()) < 60
    assert not later.served_models
    assert later.uptime.ToNanoseconds() > info.uptime.ToNanoseconds()
