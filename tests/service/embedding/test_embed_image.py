"""EmbedImage over a real channel with a real graph."""

import asyncio
import hashlib

import grpc
import numpy as np
import onnxruntime
import pytest

from fakes import tiny_models
from fakes.embedding_server import Serve, Serving, png
from vplab.api.embedding.v1 import embedding_service_pb2 as pb
from vplab.api.vision.v1 import vision_pb2
from vplab.embedding import preparation
from vplab.vision.images import ImageLimits, decode_image
from vplab.vision.preprocessing import preprocess
from vplab.wire.status import error_from_call
from vplab.wire.tensors import tensor_from_proto

ENCODER = "artifacts/tiny-encoder"


def request(data: bytes, **fields: object) -> pb.EmbedImageRequest:
    values = {"encoders": [ENCODER], "include_tensors": True, "precision": pb.PRECISION_FLOAT32} | fields
    return pb.EmbedImageRequest(image=vision_pb2.Image(encoded=data), **values)


async def refusal(call: object) -> tuple[grpc.StatusCode, str, list[str]]:
    """Return code, reason and fields of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = error_from_call(caught.value.code(), caught.value.details(), tuple(caught.value.trailing_metadata()))
    return caught.value.code(), error.reason, [v.field for v in getattr(error, "violations", ())]


async def test_float32_equals_a_bare_run_of_the_graph_bit_for_bit(serving: Serving) -> None:
    data = png()
    embedding = (await serving.stub.EmbedImage(request(data))).embeddings[0]

    tensor = preprocess(decode_image(data), tiny_models.ENCODER_SPEC.preprocessing).tensor
    session = onnxruntime.InferenceSession(tiny_models.encoder_onnx(0), providers=["CPUExecutionProvider"])
    expected = session.run(["image_embedding", "patch_features"], {"image": tensor[None]})
    assert [t.name for t in embedding.tensors] == ["image_embedding", "patch_features"]
    for named, values in zip(embedding.tensors, expected, strict=True):
        array = tensor_from_proto(named.tensor, field="tensor")
        assert array.dtype == np.float32
        assert np.array_equal(array, values[0])
    assert (embedding.image_size.width, embedding.image_size.height) == (90, 60)
    assert embedding.image_digest == hashlib.sha256(data).hexdigest()


async def test_float16_is_the_default_and_rounds(serving: Serving) -> None:
    data = png()
    exact = (await serving.stub.EmbedImage(request(data))).embeddings[0]
    half = (await serving.stub.EmbedImage(request(data, precision=0))).embeddings[0]
    assert half.precision == pb.PRECISION_FLOAT16
    assert half.name != exact.name
    for rounded, full in zip(half.tensors, exact.tensors, strict=True):
        array = tensor_from_proto(rounded.tensor, field="tensor")
        assert array.dtype == np.float16
        assert np.array_equal(array, tensor_from_proto(full.tensor, field="tensor").astype(np.float16))


async def test_the_key_is_what_the_contract_says(serving: Serving) -> None:
    data = png()
    embedding = (await serving.stub.EmbedImage(request(data))).embeddings[0]
    listed = (await serving.stub.ListEncoders(pb.ListEncodersRequest())).encoders
    encoder = next(e for e in listed if e.model.name == embedding.encoder.name)
    parts = (hashlib.sha256(data).hexdigest(), encoder.model.digest, encoder.preprocessing_digest, "float32")
    assert embedding.name == "embeddings/" + hashlib.sha256(":".join(parts).encode()).hexdigest()


async def test_a_second_call_is_answered_from_memory(serving: Serving) -> None:
    first, second = [(await serving.stub.EmbedImage(request(png()))).embeddings[0] for _ in range(2)]
    assert first.tier == pb.CACHE_TIER_COMPUTED
    assert second.tier == pb.CACHE_TIER_HOST
    assert second.tensors == first.tensors


async def test_after_a_restart_it_comes_from_the_durable_store(serve: Serve) -> None:
    async with serve() as serving:
        first = (await serving.stub.EmbedImage(request(png()))).embeddings[0]
    async with serve() as serving:
        second = (await serving.stub.EmbedImage(request(png()))).embeddings[0]
        assert second.tier == pb.CACHE_TIER_DURABLE
        assert second.tensors == first.tensors
        third = (await serving.stub.EmbedImage(request(png()))).embeddings[0]
        assert third.tier == pb.CACHE_TIER_HOST


async def test_several_encoders_decode_the_image_once(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []

    def count(data: bytes, limits: object) -> np.ndarray:
        decoded.append(1)
        return decode_image(data)

    monkeypatch.setattr("vplab.embedding.preparation.decode_image", count)
    names = [
        "artifacts/tiny-encoder",
        "artifacts/other-encoder/versions/1",
        "artifacts/tiny-encoder/aliases/production",
    ]
    answer = await serving.stub.EmbedImage(request(png(), encoders=names))
    assert len(decoded) == 1
    assert [e.encoder.name for e in answer.embeddings] == [
        "artifacts/tiny-encoder/versions/1",
        "artifacts/other-encoder/versions/1",
        "artifacts/tiny-encoder/versions/1",
    ]


async def test_concurrent_calls_for_one_key_compute_once(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []

    def count(data: bytes, limits: object) -> np.ndarray:
        decoded.append(1)
        return decode_image(data)

    monkeypatch.setattr("vplab.embedding.preparation.decode_image", count)
    answers = await asyncio.gather(*(serving.stub.EmbedImage(request(png())) for _ in range(8)))
    assert len(decoded) == 1
    assert len({a.embeddings[0].tensors[0].tensor.data for a in answers}) == 1


async def test_an_image_named_by_digest_is_answered_while_it_is_cached(serving: Serving) -> None:
    digest = hashlib.sha256(png()).hexdigest()
    by_digest = pb.EmbedImageRequest(image=vision_pb2.Image(digest=digest), encoders=[ENCODER], include_tensors=True)
    assert await refusal(serving.stub.EmbedImage(by_digest)) == (
        grpc.StatusCode.NOT_FOUND,
        "EMBEDDING_NOT_CACHED",
        [],
    )
    sent = await serving.stub.EmbedImage(request(png(), precision=0))
    again = await serving.stub.EmbedImage(by_digest)
    assert again.embeddings[0].tensors == sent.embeddings[0].tensors
    assert again.embeddings[0].image_size == sent.embeddings[0].image_size


async def test_a_frame_and_its_padded_twin_share_an_embedding(serving: Serving) -> None:
    rows = np.random.default_rng(3).integers(0, 256, (20, 30), dtype=np.uint8)
    padded = np.pad(rows, ((0, 0), (0, 6)))
    mono = vision_pb2.PIXEL_FORMAT_MONO8
    tight_frame = vision_pb2.RawFrame(width=30, height=20, pixel_format=mono, data=rows.tobytes())
    padded_frame = vision_pb2.RawFrame(width=30, height=20, stride_bytes=36, pixel_format=mono, data=padded.tobytes())
    names = []
    for frame in (tight_frame, padded_frame):
        message = pb.EmbedImageRequest(image=vision_pb2.Image(frame=frame), encoders=[ENCODER])
        names.append((await serving.stub.EmbedImage(message)).embeddings[0].name)
    assert names[0] == names[1]


async def test_tensors_come_only_when_asked_for_and_by_role(serving: Serving) -> None:
    none = await serving.stub.EmbedImage(request(png(), include_tensors=False))
    assert not none.embeddings[0].tensors
    some = await serving.stub.EmbedImage(request(png(), output_roles=[pb.OUTPUT_ROLE_PATCH_FEATURES]))
    assert [t.role for t in some.embeddings[0].tensors] == [pb.OUTPUT_ROLE_PATCH_FEATURES]


async def test_tensors_beyond_the_message_limit_are_refused_before_any_work(serve: Serve) -> None:
    async with serve(max_send_bytes=70_000) as serving:
        call = serving.stub.EmbedImage(request(png()))
        with pytest.raises(grpc.aio.AioRpcError, match="GetEmbedding") as caught:
            await call
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        known = vision_pb2.Image(digest=hashlib.sha256(png()).hexdigest())
        missing = pb.EmbedImageRequest(image=known, encoders=[ENCODER], precision=pb.PRECISION_FLOAT32)
        assert (await refusal(serving.stub.EmbedImage(missing)))[1] == "EMBEDDING_NOT_CACHED"
        name = (await serving.stub.EmbedImage(request(png(), include_tensors=False))).embeddings[0].name
        parts = [part async for part in serving.stub.GetEmbedding(pb.GetEmbeddingRequest(name=name))]
        assert sum(len(part.chunk) for part in parts) == (256 * 64 + 256 * 16) * 4


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"encoders": []}, "encoders"),
        ({"encoders": ["nonsense"]}, "encoders[0]"),
        ({"encoders": [ENCODER] * 9}, "encoders"),
        ({"precision": 77}, "precision"),
        ({"output_roles": [0]}, "output_roles[0]"),
        ({"image": vision_pb2.Image()}, "image.content"),
        ({"image": vision_pb2.Image(encoded=b"not an image")}, "image.encoded"),
        ({"image": vision_pb2.Image(digest="xyz")}, "image.digest"),
        ({"image": vision_pb2.Image(frame=vision_pb2.RawFrame(width=4, height=4))}, "image.frame.pixel_format"),
        (
            {
                "image": vision_pb2.Image(
                    frame=vision_pb2.RawFrame(width=40, height=4, stride_bytes=39, pixel_format=1, data=b"x" * 160)
                )
            },
            "image.frame.stride_bytes",
        ),
    ],
)
async def test_bad_input_is_invalid_argument_with_the_field(
    serving: Serving, fields: dict[str, object], field: str
) -> None:
    values = {"image": vision_pb2.Image(encoded=png()), "encoders": [ENCODER]} | fields
    code, _, named = await refusal(serving.stub.EmbedImage(pb.EmbedImageRequest(**values)))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert named == [field]


async def test_an_image_beyond_the_limits_is_refused(serve: Serve) -> None:
    async with serve(max_image_pixels=1000) as serving:
        code, reason, _ = await refusal(serving.stub.EmbedImage(request(png())))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "IMAGE_TOO_LARGE")


async def test_an_unknown_encoder_is_not_found(serving: Serving) -> None:
    code, reason, _ = await refusal(serving.stub.EmbedImage(request(png(), encoders=["artifacts/absent"])))
    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")


async def test_get_embedding_streams_what_embed_image_returned(serving: Serving) -> None:
    embedding = (await serving.stub.EmbedImage(request(png()))).embeddings[0]
    parts = [part async for part in serving.stub.GetEmbedding(pb.GetEmbeddingRequest(name=embedding.name))]
    header, data = parts[0].header, b"".join(part.chunk for part in parts[1:])
    assert all(len(part.chunk) <= 1 << 20 for part in parts)
    assert [t.tensor.shape for t in header.tensors] == [t.tensor.shape for t in embedding.tensors]
    assert data == b"".join(t.tensor.data for t in embedding.tensors)
    assert header.image_size == embedding.image_size


async def test_get_embedding_of_an_unknown_key_is_not_found(serving: Serving) -> None:
    missing = serving.stub.GetEmbedding(pb.GetEmbeddingRequest(name=f"embeddings/{'0' * 64}"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await missing.read()
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


async def test_encoders_are_listed_by_name_in_pages(serving: Serving) -> None:
    everything = await serving.stub.ListEncoders(pb.ListEncodersRequest())
    names = [e.model.name for e in everything.encoders]
    assert names == sorted(names)
    assert len(names) == 2
    assert not everything.encoders[0].loaded
    await serving.stub.EmbedImage(request(png(), encoders=[names[0]]))
    first = await serving.stub.ListEncoders(pb.ListEncodersRequest(page_size=1))
    second = await serving.stub.ListEncoders(pb.ListEncodersRequest(page_size=1, page_token=first.next_page_token))
    assert [first.encoders[0].model.name, second.encoders[0].model.name] == names
    assert first.encoders[0].loaded
    assert first.encoders[0].execution_provider == "CPUExecutionProvider"
    assert not second.next_page_token
    assert [o.role for o in first.encoders[0].outputs] == [1, 2]


async def test_a_cached_embedding_is_found_before_anything_is_decoded(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[bytes] = []

    def counting(data: bytes, limits: ImageLimits) -> np.ndarray:
        decoded.append(data)
        return decode_image(data, limits)

    monkeypatch.setattr(preparation, "decode_image", counting)
    tiers = []
    for _ in range(2):  # the second server finds it on disk, and then in memory
        async with serve() as serving:
            for _ in range(2):
                tiers.append((await serving.stub.EmbedImage(request(png()))).embeddings[0].tier)
    assert tiers == [pb.CACHE_TIER_COMPUTED, pb.CACHE_TIER_HOST, pb.CACHE_TIER_DURABLE, pb.CACHE_TIER_HOST]
    assert len(decoded) == 1
