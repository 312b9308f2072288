"""TrainingService over gRPC."""

from vplab.api.training.v1 import training_service_pb2_grpc


class TrainingServicer(training_service_pb2_grpc.TrainingServiceServicer):
    """Answers UNIMPLEMENTED (reason NOT_IMPLEMENTED) to every RPC of the contract, which the generated base does."""
