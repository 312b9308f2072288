"""Whatever a server answers, the converters give a value or InvalidInput, which the client reports as Internal."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.message import Message

from fakes.malformed import random_message
from fakes.outcomes import value_or_refusal
from vplab.api.embedding.v1 import embedding_service_pb2 as embedding_pb
from vplab.api.registry.v1 import registry_service_pb2 as registry_pb
from vplab.api.runtime.v1 import runtime_service_pb2 as runtime_pb
from vplab.api.segmentation.v1 import segmentation_service_pb2 as segmentation_pb
from vplab.api.training.v1 import training_service_pb2 as training_pb
from vplab.client import replicas
from vplab.client.calls import Calls
from vplab.client.embedding import convert as embedding
from vplab.client.options import ClientOptions
from vplab.client.registry import convert as registry
from vplab.client.segmentation import convert as segmentation
from vplab.client.training import convert as training
from vplab.errors import Internal, InvalidInput

NUM_ANSWERS = 600

CONVERTERS: list[tuple[Callable[[], Message], Callable[[Any], Any]]] = [
    (registry_pb.Artifact, registry.artifact),
    (registry_pb.Version, registry.version),
    (registry_pb.Alias, registry.alias),
    (registry_pb.AliasChange, registry.alias_change),
    (registry_pb.Lease, registry.lease),
    (registry_pb.CollectGarbageResponse, registry.garbage),
    (embedding_pb.Encoder, embedding.encoder),
    (embedding_pb.EmbedImageResponse, embedding.embeddings),
    (embedding_pb.EmbedImagesResponse, embedding.streamed),
    (embedding_pb.PrecomputeJob, embedding.precompute_job),
    (segmentation_pb.PredictMasksResponse, segmentation.prediction),
    (segmentation_pb.SegmentImageResponse, segmentation.segmentation),
    (segmentation_pb.SegmentImagesResponse, segmentation.segmented_frame),
    (segmentation_pb.PromptSet, segmentation.prompt_set),
    (training_pb.TuningJob, training.tuning_job),
    (training_pb.WatchTuningJobResponse, training.tuning_event),
    (training_pb.ExportJob, training.export_job),
    (runtime_pb.ServerInfo, replicas.server_info),
]


@pytest.mark.parametrize(("message_type", "convert"), CONVERTERS, ids=lambda value: getattr(value, "__name__", ""))
def test_any_answer_is_a_value_or_a_refusal(message_type: Callable[[], Message], convert: Callable[[Any], Any]) -> None:
    draw = random.Random(7)
    outcomes = [value_or_refusal(lambda: convert(random_message(message_type, draw))) for _ in range(NUM_ANSWERS)]
    assert len(outcomes) == NUM_ANSWERS


def test_a_refused_answer_is_the_servers_fault() -> None:
    def refuse(answer: None) -> None:
        raise InvalidInput("is broken", field="mask.runs")

    calls = Calls("segmentation", "host:1", ClientOptions())
    with pytest.raises(Internal, match=r"segmentation service at host:1 .*mask\.runs: is broken"):
        calls.converted(None, refuse)
