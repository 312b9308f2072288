"""Precompute jobs: idempotent, patient, persistent, and never in the way of a click."""

import asyncio
import uuid
from pathlib import Path

import grpc
import pytest

from fakes.embedding_server import Serve, Serving, png
from fakes.fake_models import FakeModelSource
from vplab.api.embedding.v1 import embedding_service_pb2 as pb
from vplab.api.vision.v1 import vision_pb2

ENCODERS = ["artifacts/tiny-encoder", "artifacts/other-encoder"]
ENDED = (pb.JOB_STATE_SUCCEEDED, pb.JOB_STATE_FAILED, pb.JOB_STATE_CANCELLED)


def job_over(digests: list[str], **fields: object) -> pb.PrecomputeEmbeddingsRequest:
    values = {"blobs": pb.BlobImages(sha256=digests), "encoders": ENCODERS} | fields
    return pb.PrecomputeEmbeddingsRequest(**values)


async def ended(serving: Serving, name: str) -> pb.PrecomputeJob:
    for _ in range(1000):
        job = (await serving.stub.GetPrecomputeJob(pb.GetPrecomputeJobRequest(name=name))).job
        if job.state in ENDED:
            return job
        await asyncio.sleep(0.02)
    raise AssertionError(f"the job did not end: {job}")


async def state(serving: Serving, name: str) -> int:
    return (await serving.stub.GetPrecomputeJob(pb.GetPrecomputeJobRequest(name=name))).job.state


async def test_a_job_embeds_every_image_and_counts_the_broken_ones(serving: Serving, source: FakeModelSource) -> None:
    digests = [source.add_image(png(i)) for i in range(10)]
    broken, absent = source.add_image(b"no image"), "0" * 64
    created = (await serving.stub.PrecomputeEmbeddings(job_over([*digests, broken, absent, digests[0]]))).job
    assert (created.num_images, created.state) == (12, pb.JOB_STATE_QUEUED)
    job = await ended(serving, created.name)
    assert job.state == pb.JOB_STATE_SUCCEEDED
    assert (job.num_done, job.num_failed) == (10, 2)
    assert {(e.item_id, e.reason, e.code) for e in job.errors} == {
        (broken, "IMAGE_UNREADABLE", grpc.StatusCode.INVALID_ARGUMENT.value[0]),
        (absent, "RESOURCE_NOT_FOUND", grpc.StatusCode.NOT_FOUND.value[0]),
    }
    assert job.HasField("end_time")
    assert [e.name for e in job.encoders] == [f"{name}/versions/1" for name in ENCODERS]
    known = pb.EmbedImageRequest(image=vision_pb2.Image(digest=digests[3]), encoders=ENCODERS)
    assert len((await serving.stub.EmbedImage(known)).embeddings) == 2


async def test_what_is_cached_is_not_fetched_again(serving: Serving, source: FakeModelSource) -> None:
    digests = [source.add_image(png(i)) for i in range(3)]
    await ended(serving, (await serving.stub.PrecomputeEmbeddings(job_over(digests))).job.name)
    num_reads = source.num_reads
    job = await ended(serving, (await serving.stub.PrecomputeEmbeddings(job_over(digests))).job.name)
    assert (job.num_done, source.num_reads) == (3, num_reads)


async def test_a_dataset_names_the_images(serving: Serving, source: FakeModelSource) -> None:
    digests = [source.add_image(png(i)) for i in range(3)]
    source.datasets["artifacts/parts/aliases/production"] = digests
    source.datasets["artifacts/empty/versions/1"] = []
    request = pb.PrecomputeEmbeddingsRequest(dataset="artifacts/parts", encoders=ENCODERS[:1])
    job = await ended(serving, (await serving.stub.PrecomputeEmbeddings(request)).job.name)
    assert job.num_done == 3
    request.dataset = "artifacts/empty/versions/1"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await serving.stub.PrecomputeEmbeddings(request)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_repeated_request_returns_the_first_job(serving: Serving, source: FakeModelSource) -> None:
    digests = [source.add_image(png())]
    request_id = str(uuid.uuid4())
    first = (await serving.stub.PrecomputeEmbeddings(job_over(digests, request_id=request_id))).job
    second = (await serving.stub.PrecomputeEmbeddings(job_over(digests, request_id=request_id.upper()))).job
    assert second.name == first.name
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await serving.stub.PrecomputeEmbeddings(job_over(["1" * 64], request_id=request_id))
    assert caught.value.code() == grpc.StatusCode.ALREADY_EXISTS


async def test_a_job_goes_on_after_a_restart(serve: Serve, source: FakeModelSource, tmp_path: Path) -> None:
    digests = [source.add_image(png(i)) for i in range(40)]
    async with serve() as serving:
        name = (await serving.stub.PrecomputeEmbeddings(job_over(digests))).job.name
        while source.num_reads < 5:
            await asyncio.sleep(0.01)
    async with serve() as serving:
        job = await ended(serving, name)
        assert (job.state, job.num_done, job.num_failed) == (pb.JOB_STATE_SUCCEEDED, 40, 0)


async def test_a_job_waits_while_the_registry_is_away(serving: Serving, source: FakeModelSource) -> None:
    digests = [source.add_image(png(i)) for i in range(3)]
    await serving.stub.EmbedImage(pb.EmbedImageRequest(image=vision_pb2.Image(encoded=png(50)), encoders=ENCODERS))
    created = (await serving.stub.PrecomputeEmbeddings(job_over(digests))).job
    source.is_away = True
    await asyncio.sleep(0.3)
    source.is_away = False
    job = await ended(serving, created.name)
    assert (job.num_done, job.num_failed) == (3, 0)


async def test_a_cancelled_job_stays_cancelled(serving: Serving, source: FakeModelSource) -> None:
    source.is_away = False
    digests = [source.add_image(png(i)) for i in range(200)]
    name = (await serving.stub.PrecomputeEmbeddings(job_over(digests))).job.name
    cancelled = (await serving.stub.CancelPrecomputeJob(pb.CancelPrecomputeJobRequest(name=name))).job
    assert cancelled.state == pb.JOB_STATE_CANCELLED
    assert cancelled.num_done < 200
    again = (await serving.stub.CancelPrecomputeJob(pb.CancelPrecomputeJobRequest(name=name))).job
    assert again == cancelled
    # The next job is not held up by it.
    following = (await serving.stub.PrecomputeEmbeddings(job_over(digests[:2]))).job
    assert (await ended(serving, following.name)).state == pb.JOB_STATE_SUCCEEDED


async def test_an_encoder_that_cannot_be_loaded_fails_the_job(
    serving: Serving, source: FakeModelSource, tmp_path: Path
) -> None:
    (tmp_path / "other-encoder" / "encoder.onnx").write_bytes(b"damaged")
    job = await ended(serving, (await serving.stub.PrecomputeEmbeddings(job_over([source.add_image(png())]))).job.name)
    assert job.state == pb.JOB_STATE_FAILED
    assert "other-encoder" in job.message


async def test_a_short_job_does_not_wait_for_a_long_one(
    serve: Serve, source: FakeModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = [source.add_image(png(i)) for i in range(22)]
    go, order, read = asyncio.Event(), [], source.read_image

    async def held(sha256: str, max_bytes: int) -> bytes:
        order.append(digests.index(sha256))
        await go.wait()
        return await read(sha256, max_bytes)

    monkeypatch.setattr(source, "read_image", held)
    async with serve(job_images_at_once=1) as serving:
        names = []
        for images in (digests[:20], digests[20:]):
            names.append((await serving.stub.PrecomputeEmbeddings(job_over(images))).job.name)
        async with asyncio.timeout(30):
            for name in names:
                while await state(serving, name) != pb.JOB_STATE_RUNNING:
                    await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)  # the second job's first image has to stand in line
        go.set()
        jobs = [await ended(serving, name) for name in names]
    assert [job.num_done for job in jobs] == [20, 2]
    assert order.index(21) <= 5


async def test_several_jobs_go_on_after_a_restart(serve: Serve, source: FakeModelSource) -> None:
    digests = [source.add_image(png(i)) for i in range(40)]
    async with serve() as serving:
        answers = [await serving.stub.PrecomputeEmbeddings(job_over(d)) for d in (digests[:20], digests[20:])]
        while source.num_reads < 5:
            await asyncio.sleep(0.01)
    async with serve() as serving:
        jobs = [await ended(serving, answer.job.name) for answer in answers]
    assert [(job.state, job.num_done) for job in jobs] == [(pb.JOB_STATE_SUCCEEDED, 20)] * 2


async def test_jobs_are_listed_newest_first_in_pages(serving: Serving, source: FakeModelSource) -> None:
    names = []
    for i in range(5):
        names.append((await serving.stub.PrecomputeEmbeddings(job_over([source.add_image(png(i))]))).job.name)
    listed, token = [], ""
    while True:
        page = await serving.stub.ListPrecomputeJobs(pb.ListPrecomputeJobsRequest(page_size=2, page_token=token))
        listed += [job.name for job in page.jobs]
        token = page.next_page_token
        if not token:
            break
    assert listed == names[::-1]


@pytest.mark.parametrize(
    "request_",
    [
        pb.PrecomputeEmbeddingsRequest(encoders=ENCODERS),
        pb.PrecomputeEmbeddingsRequest(blobs=pb.BlobImages(), encoders=ENCODERS),
        pb.PrecomputeEmbeddingsRequest(blobs=pb.BlobImages(sha256=["x"]), encoders=ENCODERS),
        pb.PrecomputeEmbeddingsRequest(blobs=pb.BlobImages(sha256=["0" * 64])),
        pb.PrecomputeEmbeddingsRequest(dataset="nonsense", encoders=ENCODERS),
        pb.PrecomputeEmbeddingsRequest(blobs=pb.BlobImages(sha256=["0" * 64]), encoders=ENCODERS, request_id="x"),
    ],
)
async def test_a_job_over_nonsense_is_invalid_argument(
    serving: Serving, request_: pb.PrecomputeEmbeddingsRequest
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await serving.stub.PrecomputeEmbeddings(request_)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_an_unknown_job_is_not_found(serving: Serving) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await serving.stub.GetPrecomputeJob(pb.GetPrecomputeJobRequest(name="precomputeJobs/none"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


async def test_a_click_is_answered_while_a_job_runs(serving: Serving, source: FakeModelSource) -> None:
    digests = [source.add_image(png(i)) for i in range(400)]
    name = (await serving.stub.PrecomputeEmbeddings(job_over(digests))).job.name
    while source.num_reads < 3:
        await asyncio.sleep(0.01)
    click = pb.EmbedImageRequest(image=vision_pb2.Image(encoded=png(1000)), encoders=ENCODERS)
    answer = await serving.stub.EmbedImage(click)
    assert [e.tier for e in answer.embeddings] == [pb.CACHE_TIER_COMPUTED] * 2
    job = (await serving.stub.GetPrecomputeJob(pb.GetPrecomputeJobRequest(name=name))).job
    assert job.state == pb.JOB_STATE_RUNNING
