"""Jobs over a real channel and database, with an executor that only counts."""

import asyncio
import dataclasses
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest

from fakes.training_parts import (
    DATASET,
    NUM_STEPS,
    PROMPT_SET,
    SEGMENTER,
    FakeExecutor,
    Parts,
    fake_result,
    fake_training,
)
from vplab.client import AsyncClient, SegmentClass
from vplab.client.training.values import (
    InlineDataset,
    TuningJob,
    TuningOptions,
    TuningProgress,
    TuningRequest,
    ValidatedImage,
)
from vplab.errors import AlreadyExists, FailedPrecondition, InvalidInput, NotFound, OutOfRange
from vplab.training.values import ModelRef

SERVED = ModelRef("artifacts/scratch-adapter/versions/7", "b" * 64)
REQUEST = TuningRequest("scratch-adapter", "artifacts/fake-data")
Waiting = Callable[[int], Awaitable[None]]


def waiting_at(step: int) -> tuple[Waiting, asyncio.Event, asyncio.Event]:
    """Return a hook that stops before a step, an event that says it got there, and one that lets it go on."""
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def wait(at: int) -> None:
        if at == step:
            reached.set()
            await go_on.wait()

    return wait, reached, go_on


async def ended(client: AsyncClient, name: str) -> TuningJob:
    """Wait for the terminal event."""
    async with asyncio.timeout(120):
        async for event in client.training.watch_tuning_job(name):
            if isinstance(event.event, TuningJob) and event.event.is_done:
                return event.event
    raise AssertionError("the watch ended without a terminal event")


async def test_a_job_runs_to_a_published_adapter(tmp_path: Path) -> None:
    async with fake_training(tmp_path) as (client, _):
        created = await client.training.create_tuning_job(REQUEST)
        assert (created.state, created.method, created.adapter) == ("queued", "e_peft", None)
        assert (created.dataset.name, created.segmenter.digest) == (DATASET.name, SEGMENTER.digest)
        assert (created.options.lora_rank, created.options.num_prompt_tokens, created.options.seed) == (8, 50, 0)
        assert created.options.num_steps
        assert created.options.learning_rate
        job = await ended(client, created.name)
        assert job.state == "succeeded"
        assert job.adapter is not None
        assert job.adapter.name == "artifacts/scratch-adapter/versions/1"
        assert job.metrics["validation_iou_after"] == 0.6
        assert {"seconds_queue", "seconds_start", "seconds_train", "seconds_promote"} <= set(job.metrics)
        assert await client.training.get_tuning_job(created.name) == job


async def test_a_watch_tells_every_event_once_and_can_be_resumed_anywhere(tmp_path: Path) -> None:
    async with fake_training(tmp_path) as (client, _):
        name = (await client.training.create_tuning_job(REQUEST)).name
        await ended(client, name)
        events = [event async for event in client.training.watch_tuning_job(name)]
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
        steps = [event.event.step for event in events if isinstance(event.event, TuningProgress)]
        assert steps == list(range(1, NUM_STEPS + 1))
        for position in range(len(events) + 1):
            rest = [e.sequence async for e in client.training.watch_tuning_job(name, from_sequence=position)]
            assert rest == [event.sequence for event in events[position:]]
        with pytest.raises(OutOfRange) as refused:
            async for _ in client.training.watch_tuning_job(name, from_sequence=len(events) + 1):
                pass
        assert refused.value.metadata["offset"] == str(len(events))


async def test_a_watch_follows_a_job_that_runs(tmp_path: Path) -> None:
    wait, reached, go_on = waiting_at(3)
    async with fake_training(tmp_path, Parts(FakeExecutor(before_step=wait))) as (client, _):
        name = (await client.training.create_tuning_job(REQUEST)).name
        seen = []
        async for event in client.training.watch_tuning_job(name):
            seen.append(event)
            if isinstance(event.event, TuningProgress) and event.event.step == 2:
                assert reached.is_set() or not go_on.is_set()
                go_on.set()
        assert seen[-1].state == "succeeded"
        assert [event.sequence for event in seen] == list(range(1, len(seen) + 1))


async def test_a_cancelled_job_ends_and_publishes_nothing(tmp_path: Path) -> None:
    wait, reached, _ = waiting_at(3)
    async with fake_training(tmp_path, Parts(FakeExecutor(before_step=wait))) as (client, parts):
        name = (await client.training.create_tuning_job(REQUEST)).name
        async with asyncio.timeout(120):
            await reached.wait()
        assert (await client.training.cancel_tuning_job(name)).state == "cancelled"
        assert (await ended(client, name)).state == "cancelled"
        async with asyncio.timeout(120):
            while not parts.executor.num_cancelled:
                await asyncio.sleep(0.01)
        assert parts.executor.num_committed == 0
        assert (await client.training.cancel_tuning_job(name)).state == "cancelled"
        parts.executor.before_step = FakeExecutor().before_step
        assert (await ended(client, (await client.training.create_tuning_job(REQUEST)).name)).state == "succeeded"


async def test_a_job_that_waits_can_be_cancelled(tmp_path: Path) -> None:
    async with fake_training(tmp_path, Parts(FakeExecutor(num_slots=0))) as (client, _):
        name = (await client.training.create_tuning_job(REQUEST)).name
        assert (await client.training.cancel_tuning_job(name)).state == "cancelled"
        states = [event.state async for event in client.training.watch_tuning_job(name)]
        assert states == ["queued", "cancelled"]


async def test_a_job_that_publishes_is_not_cancelled_any_more(tmp_path: Path) -> None:
    publishing, go_on = asyncio.Event(), asyncio.Event()

    class Slow(FakeExecutor):
        async def run(self, claim, reports):
            result = await super().run(claim, reports)
            publishing.set()
            await go_on.wait()
            return result

    async with fake_training(tmp_path, Parts(Slow())) as (client, _):
        name = (await client.training.create_tuning_job(REQUEST)).name
        async with asyncio.timeout(120):
            await publishing.wait()
        assert (await client.training.cancel_tuning_job(name)).state == "running"
        go_on.set()
        assert (await ended(client, name)).state == "succeeded"


async def test_a_repeated_request_returns_the_first_job(tmp_path: Path) -> None:
    async with fake_training(tmp_path) as (client, parts):
        request_id = str(uuid.uuid4())
        data = InlineDataset([SegmentClass(1, "one")], [_image("a.png")])
        request = TuningRequest("scratch-adapter", data)
        first = await client.training.create_tuning_job(request, request_id=request_id)
        again = await client.training.create_tuning_job(request, request_id=request_id)
        assert again.name == first.name
        assert len(parts.datasets.published) == 1
        other = dataclasses.replace(request, options=TuningOptions(seed=1))
        with pytest.raises(AlreadyExists) as refused:
            await client.training.create_tuning_job(other, request_id=request_id)
        assert refused.value.reason == "REQUEST_ID_REUSED"
        together = str(uuid.uuid4())
        jobs = await asyncio.gather(
            *(client.training.create_tuning_job(request, request_id=together) for _ in range(8))
        )
        assert len({job.name for job in jobs}) == 1


async def test_jobs_are_listed_newest_first_and_page_by_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vplab.client.training.area.PAGE_SIZE", 2)
    async with fake_training(tmp_path, Parts(FakeExecutor(num_slots=0))) as (client, _):
        names = [(await client.training.create_tuning_job(REQUEST)).name for _ in range(5)]
        assert [job.name async for job in client.training.list_tuning_jobs()] == names[::-1]


async def test_ended_jobs_beyond_the_bound_are_forgotten(tmp_path: Path) -> None:
    async with fake_training(tmp_path, keep_jobs=2) as (client, _):
        names = []
        for _ in range(4):
            names.append((await client.training.create_tuning_job(REQUEST)).name)
            await ended(client, names[-1])
        assert [job.name async for job in client.training.list_tuning_jobs()] == names[:0:-1]
        with pytest.raises(NotFound):
            await client.training.get_tuning_job(names[0])


@pytest.mark.parametrize(
    ("metrics", "compared", "promotes", "figures"),
    [
        ({}, None, True, "its validation IoU is 0.6000, the segmenter's without an adapter 0.4000"),
        ({"validation_iou_after": 0.4}, None, True, "its validation IoU is 0.4000"),
        ({"validation_iou_after": 0.39}, None, False, "is 0.3900, the segmenter's without an adapter 0.4000"),
        ({"validation_iou_promoted": 0.6}, SERVED, True, f"is 0.6000, that of {SERVED.name} 0.6000"),
        ({"validation_iou_promoted": 0.61}, SERVED, False, f"is 0.6000, that of {SERVED.name} 0.6100"),
        (
            {"validation_iou_promoted": 0.61, "validation_images_known_to_promoted": 2},
            SERVED,
            False,
            "0.6100, which was tuned on 2 of the validation images",
        ),
    ],
)
async def test_an_adapter_is_promoted_unless_what_is_served_is_better(
    tmp_path: Path, metrics: dict[str, float], compared: ModelRef | None, promotes: bool, figures: str
) -> None:
    request = dataclasses.replace(REQUEST, promote_alias="production", promote_only_if_better=True)
    async with fake_training(tmp_path) as (client, parts):
        plan = dataclasses.make_dataclass("Plan", ["adapter_id"])("scratch-adapter")
        parts.executor.result = dataclasses.replace(fake_result(plan, **metrics), compared=compared)
        job = await ended(client, (await client.training.create_tuning_job(request)).name)
        assert job.state == "succeeded"
        expected = [("production", "artifacts/scratch-adapter/versions/1", job.name)]
        assert parts.models.promoted == (expected if promotes else [])
        assert job.promotion.startswith("moved production: " if promotes else "not promoted: ")
        assert figures in job.promotion


async def test_an_adapter_without_parity_is_never_promoted(tmp_path: Path) -> None:
    request = dataclasses.replace(REQUEST, promote_alias="production")
    async with fake_training(tmp_path) as (client, parts):
        plan = dataclasses.make_dataclass("Plan", ["adapter_id"])("scratch-adapter")
        parts.executor.result = dataclasses.replace(fake_result(plan), parity_passed=False)
        job = await ended(client, (await client.training.create_tuning_job(request)).name)
        assert (job.state, parts.models.promoted) == ("succeeded", [])
        assert "differs" in job.promotion


async def test_a_job_at_fault_fails_with_the_reason(tmp_path: Path) -> None:
    async def refuse(step: int) -> None:
        raise InvalidInput("image 3 has no class", field="images[3]")

    async with fake_training(tmp_path, Parts(FakeExecutor(before_step=refuse))) as (client, _):
        job = await ended(client, (await client.training.create_tuning_job(REQUEST)).name)
        assert (job.state, job.message) == ("failed", "image 3 has no class")


async def test_a_fault_of_ours_fails_the_job_without_telling_internals(tmp_path: Path) -> None:
    async def break_down(step: int) -> None:
        raise ZeroDivisionError("secret")

    async with fake_training(tmp_path, Parts(FakeExecutor(before_step=break_down))) as (client, _):
        job = await ended(client, (await client.training.create_tuning_job(REQUEST)).name)
        assert job.state == "failed"
        assert "secret" not in job.message


async def test_names_of_another_base_are_refused_at_creation(tmp_path: Path) -> None:
    async with fake_training(tmp_path) as (client, parts):
        parts.models.bases |= {"artifacts/old-prompts": "0" * 64, "old-adapter": "0" * 64}
        for changes, name in (
            ({"prompt_set": "artifacts/old-prompts"}, "artifacts/old-prompts/versions/1"),
            ({"adapter_id": "old-adapter"}, "artifacts/old-adapter"),
        ):
            with pytest.raises(FailedPrecondition) as refused:
                await client.training.create_tuning_job(dataclasses.replace(REQUEST, **changes))
            (field,) = changes
            assert refused.value.reason == "ADAPTER_BASE_MISMATCH"
            assert refused.value.message.startswith(f"{field}: {name} was made for")
            said = {key: value for key, value in refused.value.metadata.items() if key != "request_id"}
            expected = {"name": name, "field": field, "expected": SEGMENTER.digest, "actual": "0" * 64}
            assert said == expected | ({"adapter": name} if field == "adapter_id" else {})
        assert [job async for job in client.training.list_tuning_jobs()] == []


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"data": "artifacts/none"}, "dataset"),
        ({"segmenter": "artifacts/none"}, "segmenter"),
        ({"prompt_set": "artifacts/x"}, "prompt_set"),
    ],
)
async def test_what_does_not_exist_is_refused_at_creation_with_its_field(
    tmp_path: Path, changes: dict[str, str], field: str
) -> None:
    async with fake_training(tmp_path) as (client, _):
        with pytest.raises(NotFound) as refused:
            await client.training.create_tuning_job(dataclasses.replace(REQUEST, **changes))
        assert next(iter(changes.values())) in refused.value.metadata["name"]
        assert refused.value.metadata["field"] == field
        assert refused.value.message.startswith(f"{field}: ")


async def test_a_digest_of_another_version_is_refused_at_creation_with_its_field(tmp_path: Path) -> None:
    async with fake_training(tmp_path) as (client, parts):
        parts.models.bases["artifacts/prompts"] = SEGMENTER.digest
        request = dataclasses.replace(REQUEST, prompt_set="artifacts/prompts")
        right = {
            "segmenter_digest": SEGMENTER.digest,
            "prompt_set_digest": PROMPT_SET.digest,
            "dataset_digest": DATASET.digest,
        }
        for field, digest in right.items():
            with pytest.raises(FailedPrecondition) as refused:
                await client.training.create_tuning_job(dataclasses.replace(request, **{field: "1" * 64}))
            metadata = refused.value.metadata
            assert refused.value.reason == "MODEL_MISMATCH"
            assert (metadata["field"], metadata["expected"], metadata["actual"]) == (field, "1" * 64, digest)
        assert [job async for job in client.training.list_tuning_jobs()] == []
        job = await client.training.create_tuning_job(dataclasses.replace(request, **right))
        assert job.segmenter.digest == SEGMENTER.digest


async def test_a_queued_job_says_what_it_is_for(tmp_path: Path) -> None:
    async with fake_training(tmp_path, Parts(FakeExecutor(num_slots=0))) as (client, parts):
        parts.models.bases["artifacts/prompts"] = SEGMENTER.digest
        request = dataclasses.replace(REQUEST, prompt_set="artifacts/prompts", promote_alias="production")
        await client.training.create_tuning_job(request)
        (job,) = [job async for job in client.training.list_tuning_jobs()]
        assert (job.state, job.adapter_id, job.promote_alias) == ("queued", "scratch-adapter", "production")
        assert job.prompt_set is not None
        assert (job.prompt_set.name, job.prompt_set.digest) == ("artifacts/prompts/versions/1", PROMPT_SET.digest)
        await client.training.create_tuning_job(REQUEST)
        newest = await anext(client.training.list_tuning_jobs())
        assert (newest.adapter_id, newest.prompt_set, newest.promote_alias) == ("scratch-adapter", None, "")


async def test_unknown_jobs_are_not_found(tmp_path: Path) -> None:
    async with fake_training(tmp_path) as (client, _):
        for call in (client.training.get_tuning_job, client.training.cancel_tuning_job):
            with pytest.raises(NotFound):
                await call("tuningJobs/none")
        with pytest.raises(NotFound):
            async for _ in client.training.watch_tuning_job("tuningJobs/none"):
                pass


def _image(name: str) -> ValidatedImage:
    picture = np.zeros((8, 10, 3), np.uint8)
    return ValidatedImage(name, picture, {1: np.eye(8, 10, dtype=np.bool_)})
