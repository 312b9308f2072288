"""The training server before there are adapters: it starts, is healthy, and refuses every call of its contract."""

import subprocess
import sys

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fakes.four_kinds import failure, open_channel
from vplab import errors
from vplab.api.training.v1 import training_service_pb2 as pb
from vplab.api.training.v1 import training_service_pb2_grpc as pb_grpc
from vplab.runtime.server import Registration
from vplab.training.servicer import TrainingServicer

SERVICE = "vplab.api.training.v1.TrainingService"
METHODS = [method.name for method in pb.DESCRIPTOR.services_by_name["TrainingService"].methods]


@pytest.fixture
async def channel():
    registration = Registration(SERVICE, lambda s: pb_grpc.add_TrainingServiceServicer_to_server(TrainingServicer(), s))
    async with open_channel([registration]) as channel:
        yield channel


@pytest.mark.parametrize("method", METHODS)
async def test_every_rpc_answers_not_implemented(channel, method):
    call = getattr(pb_grpc.TrainingServiceStub(channel), method)(getattr(pb, f"{method}Request")())
    error = await failure(call)
    assert (type(error), error.reason) == (errors.Unimplemented, "NOT_IMPLEMENTED")
    assert method in error.message


async def test_the_server_is_healthy_all_the_same(channel: grpc.aio.Channel):
    stub = health_pb2_grpc.HealthStub(channel)
    response = await stub.Check(health_pb2.HealthCheckRequest(service=SERVICE))
    assert response.status == health_pb2.HealthCheckResponse.SERVING


def test_the_process_loads_no_torch_and_no_onnxruntime():
    source = (
        "import sys, vplab.training.__main__\n"
        "print({'torch', 'onnxruntime', 'opentelemetry', 'segment_anything', 'timm'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert (result.stdout.strip(), result.stderr) == ("set()", "")
