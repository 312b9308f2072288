"""Our own methods over real channels: prompt sets published once, embeddings reused, proposals that nobody corrects."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from fakes.evaluation_folders import write_pair
from fakes.segmentation_site import GREEN, RED, Serving, scene, tiny_site
from vplab.client import Client, ClientOptions, SegmentOptions
from vplab.client.segmentation.values import MatcherName
from vplab.errors import InvalidInput
from vplab.evaluation.folder import FolderOptions, LabelledFolder, read_folder
from vplab.evaluation.results import Results
from vplab.evaluation.run import Measuring
from vplab.evaluation.served import ServedClicks, ServedMatcher, Services
from vplab.evaluation.splits import make_splits
from vplab.evaluation.values import LabelledImage

Answer = TypeVar("Answer")
MATCHERS: tuple[MatcherName, ...] = ("softmatch", "prototype", "graph")


@pytest.fixture
def folder(tmp_path: Path) -> LabelledFolder:
    """Grey pictures with a red disc, the class, and a green one."""
    for number in range(8):
        x = 25 + 9 * number
        picture, mask = scene((x, 40 + number, 15, RED), (120 - x, 75, 12, GREEN), seed=number)
        write_pair(tmp_path / "set", f"{number}", picture, mask.astype(np.uint8) * 255)
    return read_folder(tmp_path / "set", FolderOptions())


@asynccontextmanager
async def services(folder: LabelledFolder, tmp_path: Path) -> AsyncIterator[tuple[Services, Serving]]:
    async with tiny_site(tmp_path / "site") as (site, serving):
        with Client(segmentation=serving.address, registry=site.registry_address, options=ClientOptions()) as client:
            yield Services(client, folder.encoded), serving


async def in_thread(work: Callable[[], Answer]) -> Answer:
    """Run what blocks beside the loop that serves it."""
    return await asyncio.to_thread(work)


async def test_what_is_measured_is_what_is_served(folder: LabelledFolder, tmp_path: Path) -> None:
    async with services(folder, tmp_path) as (served, serving):
        shots = [folder.read("0"), folder.read("4")]
        target = folder.read("6")
        for matcher in MATCHERS:
            method = ServedMatcher(matcher, matcher, served)
            labels = await in_thread(lambda: method.fit(shots, [1], 5).predict(target.image_rgb, "6"))  # noqa: B023
            direct = await serving.client.segmentation.segment_image(
                folder.encoded("6"),
                f"artifacts/{served.prompt_set_id}/versions/1",
                options=SegmentOptions(matcher=matcher, seed=5),
            )
            assert (labels == direct.label_image()).all()
            assert ((labels == 1) & (target.labels == 1)).sum() > 0.8 * (target.labels == 1).sum()


async def test_matchers_share_the_prompt_set_of_their_shots(folder: LabelledFolder, tmp_path: Path) -> None:
    async with services(folder, tmp_path) as (served, serving):
        few, more = [folder.read("0")], [folder.read("0"), folder.read("4")]

        def learn() -> list[str]:
            methods = [ServedMatcher(matcher, matcher, served) for matcher in MATCHERS]
            return [method.fit(shots, [1], 0).prompt_set for shots in (few, more) for method in methods]

        names = await in_thread(learn)
        versions = [f"artifacts/{served.prompt_set_id}/versions/{number}" for number in (1, 2)]
        assert names == [versions[0]] * len(MATCHERS) + [versions[1]] * len(MATCHERS)
        newest = await serving.client.segmentation.get_prompt_set(versions[1])
        assert len(newest.references) == 2


async def test_the_prompt_sets_are_forgotten_afterwards(folder: LabelledFolder, tmp_path: Path) -> None:
    async with services(folder, tmp_path) as (served, serving):
        await in_thread(served.forget)  # nothing was published yet
        await in_thread(lambda: served.prompt_set_of([folder.read("0")], [1]))
        assert [found.display_name async for found in serving.client.segmentation.list_prompt_sets()] == [""]
        await in_thread(served.forget)
        assert [found async for found in serving.client.segmentation.list_prompt_sets()] == []


async def test_a_reference_that_shows_nothing_is_refused(folder: LabelledFolder, tmp_path: Path) -> None:
    async with services(folder, tmp_path) as (served, _):
        empty = LabelledImage("0", folder.read("0").image_rgb, np.zeros((96, 128), np.uint8))
        with pytest.raises(InvalidInput, match="shows nothing of class 1"):
            await in_thread(lambda: served.prompt_set_of([empty], [1]))


async def test_a_proposal_comes_from_the_segmenter_and_not_from_the_truth(
    folder: LabelledFolder, tmp_path: Path
) -> None:
    async with services(folder, tmp_path) as (served, _):
        labelled = folder.read("3")
        proposed = await in_thread(lambda: served.propose(labelled))
        both = ((proposed.labels == 1) & (labelled.labels == 1)).sum()
        assert both > 0.5 * (labelled.labels == 1).sum()
        # Told of half of the object only, it clicks within that half and proposes by what it sees.
        half = LabelledImage(
            "3", labelled.image_rgb, np.where(np.arange(128) < 52, labelled.labels, 0).astype(np.uint8)
        )
        again = await in_thread(lambda: served.propose(half))
        assert ((again.labels == 1) & (half.labels == 0)).sum() > 50


async def test_a_whole_measurement_names_the_models_that_answered(folder: LabelledFolder, tmp_path: Path) -> None:
    async with services(folder, tmp_path) as (served, _):
        with Results.open(tmp_path / "j", {}) as results:
            served.on_model = results.note_model
            measuring = Measuring(folder, make_splits(folder, 4, 1), results, tmp_path / "predictions")

            def measure() -> None:
                measuring.measure_clicks(ServedClicks("segmenter", served))
                measuring.measure_shots(ServedMatcher("softmatch", "softmatch", served), 0, 0, served.propose)
                measuring.measure_shots(ServedMatcher("softmatch", "softmatch", served), 1, 0)

            await in_thread(measure)
            assert len(results.clicks) == 4
            assert len(results.shots) == 8
            assert not [score for score in results.shots.values() if score.error]
            assert {role: model["name"] for role, model in results.models.items()} == {
                "segmenter": "artifacts/tiny-segmenter/versions/1",
                "image_encoder": "artifacts/tiny-encoder/versions/1",
                "feature_encoder": "artifacts/tiny-encoder/versions/1",
            }
            for score in results.clicks.values():
                box = next(step for step in score.steps if step.step == "box")
                assert box.iou > 0.5
