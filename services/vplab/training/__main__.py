"""Composition root: ``python -m vplab.training`` serves until SIGTERM."""

from vplab.api.training.v1 import training_service_pb2_grpc
from vplab.runtime.process import run_service
from vplab.runtime.server import Registration, serve
from vplab.training.config import TrainingConfig
from vplab.training.servicer import TrainingServicer

SERVICE = "vplab.api.training.v1.TrainingService"


async def start(config: TrainingConfig) -> None:
    """Serve until told to stop."""
    servicer = TrainingServicer()
    registration = Registration(
        SERVICE, lambda server: training_service_pb2_grpc.add_TrainingServiceServicer_to_server(servicer, server)
    )
    await serve([registration], config, service="training")


if __name__ == "__main__":
    run_service("training", TrainingConfig, start)
