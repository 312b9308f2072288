"""Ten thousand malformed requests to the real processes: every answer is documented, nothing breaks."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from fakes.documented_reasons import documented_reasons
from fakes.local_processes import health_of, local_processes
from fakes.malformed import requests
from vplab.api.embedding.v1 import embedding_service_pb2
from vplab.api.registry.v1 import registry_service_pb2
from vplab.api.segmentation.v1 import segmentation_service_pb2
from vplab.api.training.v1 import training_service_pb2
from vplab.api.vision.v1 import vision_pb2
from vplab.client.first_status import FirstStatus
from vplab.vision.masks import encode_runs

NUM_REQUESTS = 10_000
NUM_AT_ONCE = 16
SERVICES = {
    "registry": registry_service_pb2,
    "embedding": embedding_service_pb2,
    "segmentation": segmentation_service_pb2,
    "training": training_service_pb2,
}
NEVER = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS, grpc.StatusCode.UNAVAILABLE}
# What grpc.aio's client makes of a status that arrives while it still sends (grpc/grpc#36066); the server said
# something else, so the call is made again.
CLIENT_FAULT = "Internal error from Core"
# A watch of nothing is quiet: its caller's own deadline ends it, which the server does not report.
QUIET_S = 0.5


@dataclass(frozen=True)
class Method:
    """One RPC as a sender of raw bytes sees it."""

    service: str
    path: str
    request_type: type[Message]
    client_streaming: bool
    server_streaming: bool


def _methods() -> list[Method]:
    found = []
    for short, module in SERVICES.items():
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                request_type = getattr(module, method.input_type.name)
                streaming = method.client_streaming, method.server_streaming
                found.append(Method(short, f"/{service.full_name}/{method.name}", request_type, *streaming))
    return found


def _valid_requests() -> dict[type[Message], list[Message]]:
    """Requests that are right or nearly right, so that mutations reach past the first check."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    frame = vision_pb2.RawFrame(width=32, height=24, pixel_format="PIXEL_FORMAT_RGB8", data=pixels.tobytes())
    image = vision_pb2.Image(frame=frame)
    runs = encode_runs(pixels[..., 0] > 128)
    mask = vision_pb2.Mask(width=32, height=24, runs=runs.tolist())
    point = vision_pb2.Point(x=3, y=4, label="POINT_LABEL_FOREGROUND")
    box = vision_pb2.Box(x_min=1, y_min=1, x_max=20, y_max=20)
    prompt = segmentation_service_pb2.ObjectPrompt(points=[point], box=box)
    reference = segmentation_service_pb2.ReferenceImage(image=image, masks=[{"class_id": 1, "mask": mask}])
    encoder = "artifacts/nano-encoder"
    embed = embedding_service_pb2.EmbedImageRequest(image=image, encoders=[encoder], include_tensors=True)
    config = segmentation_service_pb2.SegmentImagesConfig(prompt_set="artifacts/fuzzed", drop_policy="DROP_POLICY_WAIT")
    valid: list[Message] = [
        registry_service_pb2.GetVersionRequest(name=encoder),
        registry_service_pb2.CreateArtifactRequest(artifact_id="made", artifact={"kind": "ARTIFACT_KIND_DATASET"}),
        registry_service_pb2.UploadBlobRequest(header={"sha256": "0" * 64, "size_bytes": 5}),
        registry_service_pb2.UploadBlobRequest(chunk=b"12345"),
        embed,
        embedding_service_pb2.EmbedImagesRequest(item_id="a", request=embed),
        embedding_service_pb2.PrecomputeEmbeddingsRequest(blobs={"sha256": ["0" * 64]}, encoders=[encoder]),
        segmentation_service_pb2.PredictMasksRequest(image=image, prompts=[prompt], multimask=True),
        segmentation_service_pb2.CreatePromptSetRequest(
            prompt_set_id="fuzzed", classes=[{"class_id": 1, "display_name": "one"}], references=[reference]
        ),
        segmentation_service_pb2.SegmentImageRequest(image=image, prompt_set="artifacts/fuzzed"),
        segmentation_service_pb2.SegmentImagesRequest(config=config),
        segmentation_service_pb2.SegmentImagesRequest(frame={"frame_id": "1", "image": image}),
        training_service_pb2.CreateTuningJobRequest(
            inline={
                "classes": [{"class_id": 1, "display_name": "one"}],
                "images": [{"file_name": "a.png", "image": image, "masks": [{"class_id": 1, "mask": mask}]}],
            },
            adapter_id="fuzzed-adapter",
            options={"num_steps": 3, "learning_rate": 0.01},
            promote_alias="production",
            request_id="123e4567-e89b-42d3-a456-426614174000",
        ),
        training_service_pb2.ListTuningJobsRequest(page_size=3),
    ]
    by_type: dict[type[Message], list[Message]] = {}
    for message in valid:
        by_type.setdefault(type(message), []).append(message)
    return by_type


async def _send(channel: grpc.aio.Channel, method: Method, messages: list[bytes]) -> grpc.aio.AioRpcError | None:
    """Make one call with raw messages; return its error, or None when it ended well."""

    def as_is(data: bytes) -> bytes:
        return data

    async def stream() -> AsyncIterator[bytes]:
        for message in messages:
            yield message

    watches = method.path.endswith(("/WatchAliases", "/WatchTuningJob"))
    kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    call = getattr(channel, kind)(method.path, as_is, as_is)(
        stream() if method.client_streaming else messages[0], timeout=QUIET_S if watches else 60.0
    )
    told = FirstStatus(call)
    try:
        if method.server_streaming:
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as replaced:
        error = told.error or replaced
        quiet = watches and error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        return None if quiet else error
    return None


def _reason(error: grpc.aio.AioRpcError) -> str:
    status = rpc_status.from_call(error)
    for detail in status.details if status else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return info.reason
    return "none"


@pytest.mark.slow
async def test_ten_thousand_malformed_requests_get_documented_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Orders are taken and checked in full; that nobody carries them out keeps the machine free for the requests.
    monkeypatch.setenv("VPLAB_TRAINING_TRAINS", "false")
    async with local_processes(tmp_path) as deployment:
        pids = deployment.pids()
        outcomes, faults = await _send_all(deployment.addresses)
        assert sum(outcomes.values()) == NUM_REQUESTS
        assert not faults, f"{len(faults)} undocumented answers of {dict(outcomes)}:\n" + "\n".join(faults[:20])
        assert outcomes["INVALID_ARGUMENT"] > NUM_REQUESTS / 4, f"the requests were not malformed enough: {outcomes}"
        assert deployment.pids() == pids, "a service died and was started again"
        assert set((await health_of(deployment)).values()) == {"serving"}


async def _send_all(addresses: Mapping[str, str]) -> tuple[Counter[str], list[str]]:
    draw = random.Random(20261122)
    valid, documented = _valid_requests(), documented_reasons()
    methods = _methods()
    sources = {m.path: requests(m.request_type, valid.get(m.request_type, []), draw) for m in methods}
    calls = [methods[index % len(methods)] for index in range(NUM_REQUESTS)]
    draw.shuffle(calls)
    queue = iter(calls)
    outcomes: Counter[str] = Counter()
    faults: list[str] = []
    channels = {name: grpc.aio.insecure_channel(address) for name, address in addresses.items()}

    async def send_in_turn() -> None:
        for method in queue:
            count = draw.randrange(1, 5) if method.client_streaming else 1
            messages = [next(sources[method.path]) for _ in range(count)]
            error = await _send(channels[method.service], method, messages)
            while error is not None and error.details() == CLIENT_FAULT:
                error = await _send(channels[method.service], method, messages)
            outcomes[error.code().name if error else "OK"] += 1
            if error and (error.code() in NEVER or _reason(error) not in documented[method.path]):
                sent = b"".join(messages)[:200]
                faults.append(f"{method.path}: {error.code().name} {_reason(error)} {error.details()!r} for {sent!r}")

    await asyncio.gather(*(send_in_turn() for _ in range(NUM_AT_ONCE)))
    for channel in channels.values():
        await channel.close()
    return outcomes, faults
