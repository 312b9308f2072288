"""Tuned adapters as methods over real channels: tuned once for clicks and matchers, served by what was published."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from fakes.evaluation_folders import write_pair
from fakes.segmentation_site import GREEN, RED, Serving, scene, tiny_site
from fakes.small_sam import ENCODER, SEGMENTER, small_site
from fakes.training_server import FakeTraining, training_in_threads
from fakes.training_site import training_beside
from vplab.api.training.v1 import training_service_pb2 as pb
from vplab.client import Client, ClientOptions, SegmentOptions
from vplab.client.datasets.values import DatasetItem
from vplab.errors import Internal
from vplab.evaluation.folder import FolderOptions, LabelledFolder, read_folder
from vplab.evaluation.results import Results
from vplab.evaluation.served import Services
from vplab.evaluation.tuned import TunedClicks, TunedMatcher, Tuner
from vplab.vision.simulated_clicks import tight_box

Answer = TypeVar("Answer")
SHIFT = 3.0
"""What the published adapter adds to each logit."""


@dataclass
class Running:
    """Services, an evaluation's tuner, and the training service behind it."""

    tuner: Tuner
    training: FakeTraining
    serving: Serving
    folder: LabelledFolder

    def again(self, run_id: str = "") -> Tuner:
        """Return the tuner of a run that goes on from the same journal, under another name if one is given."""
        services = self.tuner.services
        other = Services(services.client, services.encoded, run_id=run_id or services.run_id)
        return Tuner(other, self.tuner.results)


@pytest.fixture
def folder(tmp_path: Path) -> LabelledFolder:
    """Grey pictures with a red disc, the class, and a green one; the last lacks the red one."""
    for number in range(6):
        x = 25 + 9 * number
        picture, mask = scene((x, 40 + number, 15, RED), (120 - x, 75, 12, GREEN), seed=number)
        mask = mask & (number != 5)
        write_pair(tmp_path / "set", f"{number}", picture, mask.astype(np.uint8) * 255)
    return read_folder(tmp_path / "set", FolderOptions())


@pytest.fixture
async def running(folder: LabelledFolder, tmp_path: Path) -> AsyncIterator[Running]:
    fake = FakeTraining()
    async with tiny_site(tmp_path / "site") as (site, serving):
        fake.adapter_digest = (await site.publish_adapter("tuned", SHIFT)).digest
        with (
            training_in_threads(fake) as address,
            Client(
                segmentation=serving.address,
                registry=site.registry_address,
                training=address,
                options=ClientOptions(),
            ) as client,
            Results.open(tmp_path / "j", {}) as results,
        ):
            yield Running(Tuner(Services(client, folder.encoded), results), fake, serving, folder)


async def in_thread(work: Callable[[], Answer]) -> Answer:
    """Run what blocks beside the loop that serves it."""
    return await asyncio.to_thread(work)


async def test_clicks_and_matchers_share_one_job_of_their_shots(running: Running) -> None:
    shots = [running.folder.read("0"), running.folder.read("3")]

    def learn() -> set[str]:
        clicks = TunedClicks("e-peft", running.tuner).learn(shots, [1], 7)
        soft = TunedMatcher("softmatch+e-peft", "softmatch", "e-peft", running.tuner).fit(shots, [1], 7)
        graph = TunedMatcher("graph+e-peft", "graph", "e-peft", running.tuner).fit(shots, [1], 7)
        assert soft.prompt_set == graph.prompt_set
        return {clicks.adapter, soft.adapter, graph.adapter}

    assert await in_thread(learn) == {"artifacts/tuned/versions/1"}
    (request,) = running.training.requests
    assert (request.method, request.options.seed) == (pb.TUNING_METHOD_E_PEFT, 7)
    assert request.prompt_set.startswith(f"artifacts/evaluation-{running.tuner.services.run_id}-references/")
    # Another number of shots, seed or method is another job; the data set of equal shots is not published twice.
    await in_thread(lambda: running.tuner.adapter("e-peft", shots[:1], [1], 7))
    await in_thread(lambda: running.tuner.adapter("e-peft", shots, [1], 8))
    await in_thread(lambda: running.tuner.adapter("hq-token", shots, [1], 7))
    assert len(running.training.jobs) == 4
    data = [request.dataset for request in running.training.requests]
    assert data[0] == data[2] == data[3] != data[1]


async def test_what_is_measured_is_the_published_adapter_as_it_is_served(running: Running) -> None:
    shots, target = [running.folder.read("0"), running.folder.read("3")], running.folder.read("2")
    method = TunedMatcher("softmatch+lora", "softmatch", "lora", running.tuner)
    predictor = await in_thread(lambda: method.fit(shots, [1], 5))
    labels = await in_thread(lambda: predictor.predict(target.image_rgb, "2"))
    direct = await running.serving.client.segmentation.segment_image(
        running.folder.encoded("2"),
        predictor.prompt_set,
        adapter="artifacts/tuned/versions/1",
        options=SegmentOptions(matcher="softmatch", seed=5),
    )
    assert (labels == direct.label_image()).all()

    def mark(adapter: str) -> int:
        clicks = TunedClicks("lora", running.tuner).learn(shots, [1], 5)
        session = (clicks if adapter else type(clicks)("plain", clicks.services)).open(target.image_rgb, "2")
        box = tight_box(target.labels == 1)
        return int(session.predict(np.zeros((0, 2), np.float32), np.zeros(0, np.int64), box, None).sum())

    # The adapter raises every logit, so more pixels are found with it than without.
    assert await in_thread(lambda: mark("tuned")) > await in_thread(lambda: mark(""))


async def test_a_run_that_goes_on_tunes_nothing_again(running: Running) -> None:
    shots = [running.folder.read("0")]
    first = await in_thread(lambda: running.tuner.adapter("e-peft", shots, [1], 0))
    tuning = running.tuner.results.tunings["e-peft", 1, 0]
    assert tuning.version_bytes > 0
    assert tuning.metrics["validation_iou_after"] == 0.8
    with Results.open(running.tuner.results.lines.path.with_name("again"), {}) as empty:
        # From the journal, and without its line (the kill came in between) by the request that was sent before.
        assert await in_thread(lambda: running.again().adapter("e-peft", shots, [1], 0)) == first
        assert len(running.training.requests) == 1
        lost = Tuner(running.again().services, empty)
        assert await in_thread(lambda: lost.adapter("e-peft", shots, [1], 0)) == first
    assert len(running.training.requests) == 2
    assert len(running.training.jobs) == 1


async def test_an_adapter_that_is_gone_is_tuned_again(running: Running) -> None:
    shots = [running.folder.read("0")]
    await in_thread(lambda: running.tuner.adapter("e-peft", shots, [1], 0))
    await in_thread(running.tuner.forget)
    await in_thread(lambda: running.tuner.services.client.registry.delete_artifact("artifacts/tuned"))
    await in_thread(lambda: running.again("later").adapter("e-peft", shots, [1], 0))
    assert len(running.training.jobs) == 2


async def test_a_job_that_failed_says_why_and_is_tried_again_by_the_next_run(running: Running) -> None:
    running.training.fails_with = "the loss is not finite"
    shots = [running.folder.read("0")]
    with pytest.raises(Internal, match="the loss is not finite"):
        await in_thread(lambda: running.tuner.adapter("e-peft", shots, [1], 0))
    assert not running.tuner.results.tunings
    running.training.fails_with = ""
    assert await in_thread(lambda: running.again().adapter("e-peft", shots, [1], 0)) == "artifacts/tuned/versions/1"
    assert len(running.training.jobs) == 2


async def test_a_job_is_followed_to_its_end_though_the_stream_breaks(running: Running) -> None:
    running.training.breaks = 2
    stages: list[str] = []
    running.tuner.on_stage = stages.append
    adapter = await in_thread(lambda: running.tuner.adapter("ia3", [running.folder.read("0")], [1], 0))
    assert adapter == "artifacts/tuned/versions/1"
    assert running.training.watched_from == [0, 2, 4]
    assert [stage for stage in stages if "step" in stage] == [f"step {step} of 4" for step in (1, 2, 3, 4)]


async def test_the_data_set_is_the_folder_s_files_and_masks(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[list[DatasetItem]] = []
    items = Tuner._items

    def keep(*arguments: object) -> list[DatasetItem]:
        made.append(items(*arguments))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(Tuner, "_items", keep)
    shots = [running.folder.read(name) for name in ("0", "5", "0")]  # with one that shows nothing, and one twice
    await in_thread(lambda: running.tuner.adapter("e-peft", shots, [1], 0))
    (found,) = made
    assert [(item.file_name, list(item.masks)) for item in found] == [("0.png", [1]), ("5.png", [])]
    assert found[0].image == running.folder.encoded("0")
    assert (found[0].masks[1] == (shots[0].labels == 1)).all()


async def test_everything_published_is_forgotten_afterwards(running: Running) -> None:
    shots = [running.folder.read("0")]
    await in_thread(lambda: running.tuner.adapter("e-peft", shots, [1], 0))
    run = running.tuner.services.run_id
    registry = running.tuner.services.client.registry

    def named() -> set[str]:
        return {a.name for a in registry.list_artifacts() if run in a.name}

    assert await in_thread(named) == {f"artifacts/evaluation-{run}-{what}" for what in ("references", "data")}
    await in_thread(running.tuner.forget)
    assert await in_thread(named) == set()


@asynccontextmanager
async def really_training(tmp_path: Path, folder: LabelledFolder) -> AsyncIterator[Tuner]:
    """Run every service with a small SAM, named by reference as an imported model is."""
    models = {"default_segmenter": f"artifacts/{SEGMENTER}", "default_feature_encoder": f"artifacts/{ENCODER}"}
    async with (
        small_site(tmp_path / "site") as site,
        training_beside(site) as training,
        site.segmentation(**models, refines="always") as serving,
    ):
        with (
            Client(
                segmentation=serving.address,
                registry=site.registry_address,
                training=training.client.addresses["training"],
                options=ClientOptions(),
            ) as client,
            Results.open(tmp_path / "j", {}) as results,
        ):
            references = (f"artifacts/{SEGMENTER}", f"artifacts/{ENCODER}")
            yield Tuner(Services(client, folder.encoded, *references), results, num_steps=4)


async def test_a_real_job_of_a_segmenter_by_reference_is_measured(folder: LabelledFolder, tmp_path: Path) -> None:
    async with really_training(tmp_path, folder) as tuner:
        shots, target = [folder.read("0")], folder.read("2")
        clicks = await in_thread(lambda: TunedClicks("lora", tuner).learn(shots, [1], 1))
        tuning = tuner.results.tunings["lora", 1, 1]
        assert (tuning.num_parameters, tuning.adapter) == (144_384, clicks.adapter)
        assert 4 * 144_384 <= tuning.adapter_bytes < tuning.version_bytes
        assert tuning.metrics["seconds_train"] > 0
        session = clicks.open(target.image_rgb, "2")
        box = tight_box(target.labels == 1)
        mask = await in_thread(lambda: session.predict(np.zeros((0, 2), np.float32), np.zeros(0, np.int64), box, None))
        assert mask.shape == target.labels.shape
        method = TunedMatcher("softmatch+lora", "softmatch", "lora", tuner)
        labels = await in_thread(lambda: method.fit(shots, [1], 1).predict(target.image_rgb, "2"))
        assert labels.shape == target.labels.shape
        assert len(tuner.results.tunings) == 1
