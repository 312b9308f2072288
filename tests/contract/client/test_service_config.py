"""The published gRPC service config: the promise about retries and health that clients of every language load."""

import json
import re
from datetime import timedelta

import pytest

from vplab.api.embedding.v1 import embedding_service_pb2
from vplab.api.registry.v1 import registry_service_pb2
from vplab.api.segmentation.v1 import segmentation_service_pb2
from vplab.api.training.v1 import training_service_pb2
from vplab.client.channels import service_config
from vplab.client.options import AREAS, Area

SERVICES = {
    "registry": registry_service_pb2.DESCRIPTOR.services_by_name["RegistryService"].full_name,
    "embedding": embedding_service_pb2.DESCRIPTOR.services_by_name["EmbeddingService"].full_name,
    "segmentation": segmentation_service_pb2.DESCRIPTOR.services_by_name["SegmentationService"].full_name,
    "training": training_service_pb2.DESCRIPTOR.services_by_name["TrainingService"].full_name,
}


@pytest.mark.parametrize("area", AREAS)
def test_only_unavailable_is_retried_and_not_for_ever(area: Area) -> None:
    config = json.loads(service_config(area))
    for method in config["methodConfig"]:
        policy = method["retryPolicy"]
        assert policy["retryableStatusCodes"] == ["UNAVAILABLE"]
        assert 2 <= policy["maxAttempts"] <= 5  # gRPC caps it at 5 and says nothing
        assert seconds(policy["initialBackoff"]) < seconds(policy["maxBackoff"])
    assert config["retryThrottling"]["maxTokens"] > 0


@pytest.mark.parametrize("area", AREAS)
def test_the_config_names_the_service_that_the_contract_names(area: Area) -> None:
    config = json.loads(service_config(area))
    named = {name["service"] for method in config["methodConfig"] for name in method["name"]}
    assert SERVICES[area] in named
    assert config["healthCheckConfig"]["serviceName"] == SERVICES[area]


@pytest.mark.parametrize("area", AREAS)
def test_replicas_take_turns(area: Area) -> None:
    assert json.loads(service_config(area))["loadBalancingConfig"] == [{"round_robin": {}}]


def seconds(text: str) -> timedelta:
    assert re.fullmatch(r"[0-9]+(\.[0-9]+)?s", text)
    return timedelta(seconds=float(text[:-1]))
