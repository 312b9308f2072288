"""Encoders follow their alias, survive the registry, and are refused when they are not what they say."""

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from fakes import tiny_models
from fakes.embedding_server import Serve, Serving, png
from fakes.fake_models import FakeModelSource
from vplab.api.embedding.v1 import embedding_service_pb2 as pb
from vplab.api.runtime.v1 import runtime_service_pb2, runtime_service_pb2_grpc
from vplab.api.vision.v1 import vision_pb2

ALIAS = "artifacts/tiny-encoder/aliases/production"


async def embed(serving: Serving, encoder: str = "artifacts/tiny-encoder", seed: int = 0) -> pb.Embedding:
    request = pb.EmbedImageRequest(image=vision_pb2.Image(encoded=png(seed)), encoders=[encoder], include_tensors=True)
    return (await serving.stub.EmbedImage(request)).embeddings[0]


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it never came true")


async def served(serving: Serving) -> dict[str, list[str]]:
    async with grpc.aio.insecure_channel(serving.address) as channel:
        stub = runtime_service_pb2_grpc.RuntimeServiceStub(channel)
        info = await stub.GetServerInfo(runtime_service_pb2.GetServerInfoRequest())
    return {model.model.name: list(model.aliases) for model in info.server.served_models}


async def test_a_moved_alias_is_followed_once_the_new_version_is_loaded(
    serving: Serving, source: FakeModelSource, tmp_path: Path
) -> None:
    tiny_models.write_encoder(tmp_path / "second", seed=9)
    source.publish("tiny-encoder", 2, tmp_path / "second")
    old = await embed(serving)
    assert old.encoder.name.endswith("/versions/1")
    source.move(ALIAS, "artifacts/tiny-encoder/versions/2")
    for _ in range(500):
        new = await embed(serving)
        if new.encoder.name.endswith("/versions/2"):
            break
        assert new.name == old.name
        await asyncio.sleep(0.02)
    assert new.encoder.digest != old.encoder.digest
    assert new.tensors[0].tensor.data != old.tensors[0].tensor.data
    models = await served(serving)
    assert models["artifacts/tiny-encoder/versions/2"] == [ALIAS]


async def test_the_old_version_serves_while_the_new_one_cannot_be_loaded(
    serving: Serving, source: FakeModelSource, tmp_path: Path
) -> None:
    old = await embed(serving)
    broken = tmp_path / "broken"
    tiny_models.write_encoder(broken)
    (broken / "encoder.onnx").write_bytes(b"this is no graph")
    source.publish("tiny-encoder", 2, broken)
    source.move(ALIAS, "artifacts/tiny-encoder/versions/2")
    await asyncio.sleep(0.5)
    again = await embed(serving, seed=1)
    assert again.encoder == old.encoder


async def test_loaded_encoders_serve_while_the_registry_is_away(serving: Serving, source: FakeModelSource) -> None:
    await embed(serving)
    source.is_away = True
    assert (await embed(serving, seed=1)).tier == pb.CACHE_TIER_COMPUTED
    listed = await serving.stub.ListEncoders(pb.ListEncodersRequest())
    assert [e.loaded for e in listed.encoders] == [True]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await embed(serving, "artifacts/other-encoder")
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


def wrong_shape(folder: Path) -> None:
    spec = json.loads((folder / "model.json").read_text())
    spec["outputs"][0]["shape"] = [256, 9, 9]
    (folder / "model.json").write_text(json.dumps(spec))


def wrong_output(folder: Path) -> None:
    spec = json.loads((folder / "model.json").read_text())
    spec["outputs"][1]["name"] = "absent"
    (folder / "model.json").write_text(json.dumps(spec))


def wrong_size(folder: Path) -> None:
    spec = json.loads((folder / "model.json").read_text())
    spec["preprocessing"]["size"] = 256
    (folder / "model.json").write_text(json.dumps(spec))


def no_graph(folder: Path) -> None:
    (folder / "encoder.onnx").unlink()


def other_graph(folder: Path) -> None:
    (folder / "encoder.onnx").write_bytes(tiny_models.decoder_onnx())


@pytest.mark.parametrize("spoil", [wrong_shape, wrong_output, wrong_size, no_graph, other_graph])
async def test_a_version_that_is_not_what_its_spec_says_is_refused(
    serving: Serving, source: FakeModelSource, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    shutil.copytree(tmp_path / "tiny-encoder", tmp_path / "spoilt")
    spoil(tmp_path / "spoilt")
    source.publish("spoilt", 1, tmp_path / "spoilt")
    for _ in range(2):
        with pytest.raises(grpc.aio.AioRpcError, match="spoilt") as caught:
            await embed(serving, "artifacts/spoilt")
        assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION


async def test_no_more_encoders_stay_loaded_than_allowed(serve: Serve, source: FakeModelSource, tmp_path: Path) -> None:
    async with serve(max_encoders=2) as serving:
        for i in range(5):
            tiny_models.write_encoder(tmp_path / f"e{i}", seed=i)
            source.publish(f"e{i}", 1, tmp_path / f"e{i}")
            await embed(serving, f"artifacts/e{i}")
        assert sorted(await served(serving)) == ["artifacts/e3/versions/1", "artifacts/e4/versions/1"]
        # One that left comes back when it is asked for.
        assert (await embed(serving, "artifacts/e0", seed=5)).tier == pb.CACHE_TIER_COMPUTED


async def test_preloaded_encoders_are_there_before_anyone_asks(serve: Serve) -> None:
    async with serve(preload=("artifacts/tiny-encoder", "artifacts/absent")) as serving:
        for _ in range(500):
            if await served(serving):
                break
            await asyncio.sleep(0.02)
        assert list(await served(serving)) == ["artifacts/tiny-encoder/versions/1"]
