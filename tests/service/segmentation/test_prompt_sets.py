"""Prompt sets over a channel: made, found, listed, repeated, and kept while the registry is away."""

import asyncio
import hashlib
import uuid
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fakes import tiny_models
from fakes.segmentation_site import GREEN, RED, Serving, Site, as_png, iou, scene
from vplab.client import ObjectPrompt, PromptSetDraft, Reference, SegmentClass, SegmentOptions
from vplab.client.segmentation.values import PromptSet
from vplab.errors import AlreadyExists, FailedPrecondition, InvalidInput, NotFound

PICTURE, MASK = scene((40, 48, 20, RED), (96, 40, 16, GREEN))
TARGET, TARGET_MASK = scene((90, 50, 22, RED), (30, 46, 22, GREEN), seed=1)
ABSENT, _ = scene((84, 50, 22, GREEN), seed=2)
SPOT = SegmentClass(1, "red spot")
TINY_IOU = 0.5
"""The tiny decoder answers each click with a bump of its own size, so masks reach past the spots."""


def draft(**changes: object) -> PromptSetDraft:
    values: dict[str, object] = {
        "prompt_set_id": "spots",
        "classes": [SPOT],
        "references": [Reference(as_png(PICTURE), {1: MASK})],
        "display_name": "Spots",
    }
    return PromptSetDraft(**(values | changes))  # type: ignore[arg-type]


async def create(serving: Serving, **changes: object) -> PromptSet:
    return await serving.client.segmentation.create_prompt_set(draft(**changes))


async def test_a_prompt_set_comes_back_as_it_was_made(serving: Serving) -> None:
    made = await create(serving, options=SegmentOptions(max_points=7, seed=3, tile_side=0))
    found = await serving.client.segmentation.get_prompt_set(made.model.name)
    assert found.model == made.model
    assert found.display_name == "Spots"
    assert found.classes == (SPOT,)
    assert found.segmenter.name == "artifacts/tiny-segmenter/versions/1"
    assert found.feature_encoder.name == "artifacts/tiny-encoder/versions/1"
    assert found.options == SegmentOptions(max_points=7, seed=3, tile_side=0)
    assert found.create_time == made.create_time is not None
    (reference,) = found.references
    assert reference.image_size_hw == (96, 128)
    np.testing.assert_array_equal(reference.masks[1], MASK)


async def test_the_picture_is_the_registry_blob_of_its_digest(serving: Serving) -> None:
    made = await create(serving, references=[Reference(as_png(PICTURE), {1: MASK}), Reference(PICTURE, {1: MASK})])
    encoded, frame = made.references
    assert await serving.client.registry.read_blob(encoded.image_digest) == as_png(PICTURE)
    blob = await serving.client.registry.read_blob(frame.image_digest)
    assert blob == b"frame:128x96:PIXEL_FORMAT_RGB8:" + PICTURE.tobytes()
    assert hashlib.sha256(blob).hexdigest() == frame.image_digest
    version = await serving.client.registry.get_version(made.model.name)
    assert {item.relation for item in version.manifest.lineage} == {"segmenter", "feature_encoder"}
    assert version.kind == "prompt_set"


async def test_a_name_without_a_version_means_the_newest(serving: Serving) -> None:
    await create(serving)
    second = await create(serving, display_name="Again")
    found = await serving.client.segmentation.get_prompt_set("artifacts/spots")
    assert found.model == second.model
    assert found.model.name.endswith("/versions/2")


async def test_a_repeated_request_gives_the_first_answer_and_a_reused_id_is_refused(serving: Serving) -> None:
    request_id = str(uuid.uuid4())
    call = serving.client.segmentation.create_prompt_set
    first = await call(draft(), request_id=request_id)
    assert (await call(draft(), request_id=request_id)).model == first.model
    with pytest.raises(AlreadyExists) as caught:
        await call(draft(display_name="Other"), request_id=request_id)
    assert caught.value.reason == "REQUEST_ID_REUSED"


async def test_lists_the_newest_version_of_each_by_name(serving: Serving) -> None:
    for name in ("c-set", "a-set", "b-set", "a-set"):
        await create(serving, prompt_set_id=name, display_name=uuid.uuid4().hex)
    names = [p.model.name async for p in serving.client.segmentation.list_prompt_sets()]
    assert names == ["artifacts/a-set/versions/2", "artifacts/b-set/versions/1", "artifacts/c-set/versions/1"]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"prompt_set_id": "Spots!"}, "prompt_set_id"),
        ({"classes": []}, "classes"),
        ({"classes": [SegmentClass(0, "zero")]}, "classes[0].class_id"),
        ({"classes": [SPOT, SPOT]}, "classes[1].class_id"),
        ({"classes": [SegmentClass(1, "")]}, "classes[0].display_name"),
        ({"classes": [SPOT, SegmentClass(2, "never marked")]}, "references"),
        ({"references": []}, "references"),
        ({"references": [Reference(as_png(PICTURE), {})]}, "references[0].masks"),
        ({"references": [Reference(as_png(PICTURE), {2: MASK})]}, "references[0].masks[0].class_id"),
        ({"references": [Reference(as_png(PICTURE), {1: MASK[:50]})]}, "references[0].masks[0].mask"),
        ({"references": [Reference(as_png(PICTURE), {1: np.zeros_like(MASK)})]}, "references[0].masks[0].mask"),
        ({"references": [Reference(b"no image", {1: MASK})]}, "references[0].image.encoded"),
        ({"options": SegmentOptions(max_points=0)}, "options.max_points"),
        ({"options": SegmentOptions(presence_threshold=2.0)}, "options.presence_threshold"),
        ({"options": SegmentOptions(tile_side=5)}, "options.tile_side"),
    ],
)
async def test_a_draft_that_makes_no_sense_names_the_field(
    serving: Serving, changes: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        await create(serving, **changes)
    assert caught.value.violations[0].field == field


async def test_a_name_that_is_no_prompt_set_is_refused(serving: Serving) -> None:
    with pytest.raises(NotFound):
        await serving.client.segmentation.get_prompt_set("artifacts/nothing")
    with pytest.raises(FailedPrecondition) as caught:
        await serving.client.segmentation.get_prompt_set("artifacts/tiny-encoder/versions/1")
    assert caught.value.reason == "MODEL_UNSUPPORTED"


async def segment(serving: Serving, picture: NDArray[np.uint8], name: str = "artifacts/spots", **options: object):
    settings = SegmentOptions(**options)  # type: ignore[arg-type]
    return await serving.client.segmentation.segment_image(as_png(picture), name, options=settings)


@pytest.mark.parametrize("matcher", ["softmatch", "prototype", "graph"])
async def test_every_matcher_finds_the_class_and_not_the_other(serving: Serving, matcher: str) -> None:
    await create(serving)
    (found,) = (await segment(serving, TARGET, matcher=matcher)).classes
    assert found.present
    assert found.presence_score >= found.presence_threshold
    assert found.score > 0
    assert iou(found.mask, TARGET_MASK) > TINY_IOU


async def test_a_class_that_is_not_there_is_not_present(serving: Serving) -> None:
    await create(serving)
    (found,) = (await segment(serving, ABSENT)).classes
    assert not found.present
    assert not found.mask.any()
    assert found.score == 0
    assert found.presence_score < found.presence_threshold


async def test_two_classes_are_told_apart(serving: Serving) -> None:
    green = scene((96, 40, 16, GREEN))[1]
    classes = [SPOT, SegmentClass(9, "green spot")]
    await create(serving, classes=classes, references=[Reference(as_png(PICTURE), {1: MASK, 9: green})])
    answer = await segment(serving, TARGET)
    red, other = answer.classes
    assert [red.class_id, other.class_id] == [1, 9]
    assert iou(red.mask, TARGET_MASK) > TINY_IOU
    where_green = scene((30, 46, 22, GREEN))[1]
    assert (other.mask & where_green).sum() > 0.8 * where_green.sum()
    assert not (red.mask & other.mask).any()


async def test_equal_seeds_give_equal_answers_and_instances_and_points_come_when_asked_for(serving: Serving) -> None:
    await create(serving)
    one = (await segment(serving, TARGET, seed=4, include_instances=True, include_points=True)).classes[0]
    two = (await segment(serving, TARGET, seed=4, include_instances=True, include_points=True)).classes[0]
    np.testing.assert_array_equal(one.mask, two.mask)
    np.testing.assert_array_equal(one.points_xy, two.points_xy)
    assert [i.score for i in one.instances] == [i.score for i in two.instances]
    assert len(one.points_xy) >= 1
    assert TARGET_MASK[tuple(one.points_xy[0][::-1].astype(int))]
    union = np.any([i.mask for i in one.instances], axis=0)
    np.testing.assert_array_equal(union, one.mask)
    plain = (await segment(serving, TARGET, seed=4)).classes[0]
    assert plain.instances == ()
    assert len(plain.points_xy) == 0


async def test_the_answer_names_all_that_made_it_and_where_the_time_went(serving: Serving) -> None:
    made = await create(serving)
    answer = await segment(serving, TARGET)
    provenance = answer.provenance
    assert provenance.prompt_set == made.model
    assert provenance.segmenter == made.segmenter
    assert provenance.feature_encoder == made.feature_encoder
    assert answer.timings.total_s >= answer.timings.embed_s >= 0
    assert answer.timings.total_s >= answer.timings.match_s + answer.timings.decode_s - 1e-6


async def test_the_threshold_of_the_call_goes_before_the_calibrated_one(serving: Serving) -> None:
    await create(serving, options=SegmentOptions(presence_threshold=0.9999))
    assert (await segment(serving, TARGET)).classes[0].presence_threshold == pytest.approx(0.9999)
    lenient = (await segment(serving, TARGET, presence_threshold=-1.0)).classes[0]
    assert lenient.presence_threshold == -1
    assert lenient.present


async def test_a_large_image_in_tiles_gives_what_the_whole_gives(serving: Serving) -> None:
    big, mask = scene((200, 96, 46, RED), (60, 90, 40, GREEN), size_hw=(192, 400))
    await create(serving)
    (tiled,) = (await segment(serving, big, tile_side=256, include_instances=True)).classes
    assert tiled.present
    assert iou(tiled.mask, mask) > TINY_IOU


async def test_what_was_served_is_served_without_the_registry_and_after_a_restart(tmp_path: Path) -> None:
    site = Site(tmp_path)
    async with AsyncExitStack() as embedding:
        async with site.registry.running():
            await site.publish_tiny_models()
            await embedding.enter_async_context(site.embedding())
            async with site.segmentation() as serving:
                made = await create(serving)
                before = (await segment(serving, TARGET)).classes[0]
        async with site.segmentation() as restarted:
            after = await segment(restarted, TARGET)
            assert after.provenance.prompt_set == made.model
            np.testing.assert_array_equal(after.classes[0].mask, before.mask)


async def test_a_new_set_pins_what_the_alias_of_the_feature_encoder_means_now(serving: Serving, site: Site) -> None:
    first = await create(serving)
    tiny_models.write_encoder(site.folder / "second", seed=7)
    second = await site.publish_model(site.folder / "second", "tiny-encoder")
    renewed = await create(serving)
    assert first.feature_encoder.name == "artifacts/tiny-encoder/versions/1"
    assert renewed.feature_encoder.name == second.name
    # The old set still answers, with the encoder it was made with; its decoder still reads the first encoder.
    answer = await segment(serving, TARGET, first.model.name)
    assert answer.provenance.feature_encoder == first.feature_encoder
    assert answer.classes[0].present


async def test_a_moved_alias_is_followed_once_the_new_segmenter_is_loaded(serving: Serving, site: Site) -> None:
    first = await serving.client.segmentation.predict_masks(as_png(PICTURE), [_click()])
    encoder = await serving.client.registry.get_version("artifacts/tiny-encoder")
    folder = site.folder / "second"
    tiny_models.write_segmenter(folder)
    spec = tiny_models.SEGMENTER_SPEC.model_copy(update={"architecture": "bumps again"})
    (folder / "model.json").write_text(spec.model_dump_json())
    second = await site.publish_model(folder, "tiny-segmenter", image_encoder=encoder)
    for _ in range(500):
        answer = await serving.client.segmentation.predict_masks(as_png(PICTURE), [_click()])
        assert answer.provenance.segmenter is not None
        if answer.provenance.segmenter.name == second.name:
            break
        await asyncio.sleep(0.02)
    else:
        pytest.fail(f"still served by {first.provenance.segmenter}")
    served = {model.name for model in serving.service.served_models()}
    assert second.name in served


def _click() -> ObjectPrompt:
    return ObjectPrompt(points_xy=np.array([[40, 48]], np.float32), point_labels=np.array([1]))
