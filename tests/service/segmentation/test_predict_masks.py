"""PredictMasks over a channel: prompts in, masks, logits and provenance out, and every refusal."""

import numpy as np
import pytest

from fakes.segmentation_site import RED, Serving, Site, as_png, iou, scene
from fakes.tiny_models import LOW_RES
from vplab.client import DigestImage, ObjectPrompt
from vplab.errors import FailedPrecondition, InvalidInput, NotFound, ResourceExhausted
from vplab.segmentation import metrics

PICTURE, MASK = scene((60, 50, 20, RED))
PNG = as_png(PICTURE)


def click(x: float, y: float, label: int = 1) -> ObjectPrompt:
    return ObjectPrompt(points_xy=np.array([[x, y]], np.float32), point_labels=np.array([label]))


def box(*xyxy: float) -> ObjectPrompt:
    return ObjectPrompt(box_xyxy=np.array(xyxy, np.float32))


async def test_a_box_gives_its_inside(serving: Serving) -> None:
    answer = await serving.client.segmentation.predict_masks(PNG, box(32, 24, 96, 72))
    ((mask,),) = answer.objects
    expected = np.zeros((96, 128), bool)
    expected[24:72, 32:96] = True
    assert iou(mask.mask, expected) > 0.85
    assert mask.low_res_logits is None
    assert answer.image_size_hw == (96, 128)


async def test_several_objects_answer_in_their_order_whatever_their_number_of_tokens(serving: Serving) -> None:
    asked = [click(100, 80), box(8, 8, 40, 40), click(20, 80), box(60, 60, 120, 90)]
    together = await serving.client.segmentation.predict_masks(PNG, asked)
    for prompt, (mask,) in zip(asked, together.objects, strict=True):
        ((alone,),) = (await serving.client.segmentation.predict_masks(PNG, prompt)).objects
        np.testing.assert_array_equal(mask.mask, alone.mask)
        assert mask.predicted_iou == pytest.approx(alone.predicted_iou, abs=1e-6)


async def test_multimask_gives_three_masks_and_single_mask_another_plane(serving: Serving) -> None:
    three = await serving.client.segmentation.predict_masks(
        PNG, click(64, 48), multimask=True, include_low_res_logits=True
    )
    one = await serving.client.segmentation.predict_masks(PNG, click(64, 48), include_low_res_logits=True)
    assert len(three.objects[0]) == 3
    assert len(one.objects[0]) == 1
    logits = [mask.low_res_logits for mask in (*one.objects[0], *three.objects[0])]
    # The tiny decoder's planes are offset by -1, -0.5, -1 and -1.5.
    np.testing.assert_allclose([plane - logits[0] for plane in logits], np.full_like(logits, 0) + OFFSETS, atol=1e-5)


OFFSETS = np.array([0, 0.5, 0, -0.5], np.float32).reshape(4, 1, 1)


async def test_logits_of_an_answer_are_a_mask_input_to_refine_from(serving: Serving) -> None:
    first = await serving.client.segmentation.predict_masks(PNG, click(40, 40), include_low_res_logits=True)
    logits = first.objects[0][0].low_res_logits
    assert logits is not None
    assert logits.shape == (LOW_RES, LOW_RES)
    again = await serving.client.segmentation.predict_masks(
        PNG, ObjectPrompt(low_res_logits=logits), include_low_res_logits=True
    )
    found = again.objects[0][0].low_res_logits
    assert found is not None
    # The tiny decoder passes its mask input on, so the earlier click is still there.
    assert np.unravel_index(found.argmax(), found.shape) == np.unravel_index(logits.argmax(), logits.shape)


async def test_a_mask_is_a_mask_input_too(serving: Serving) -> None:
    ((found,),) = (await serving.client.segmentation.predict_masks(PNG, ObjectPrompt(mask=MASK))).objects
    assert iou(found.mask, MASK) > 0.8


async def test_an_image_seen_before_is_known_by_its_digest(serving: Serving) -> None:
    first = await serving.client.segmentation.predict_masks(PNG, box(10, 10, 50, 50))
    digest = first.provenance.image_digest
    again = await serving.client.segmentation.predict_masks(DigestImage(digest), box(10, 10, 50, 50))
    np.testing.assert_array_equal(again.objects[0][0].mask, first.objects[0][0].mask)
    with pytest.raises(NotFound) as caught:
        await serving.client.segmentation.predict_masks(DigestImage("0" * 64), box(10, 10, 50, 50))
    assert caught.value.reason == "EMBEDDING_NOT_CACHED"


async def test_the_second_prompt_on_an_image_asks_the_embedding_service_nothing(serving: Serving, site: Site) -> None:
    await serving.client.segmentation.predict_masks(PNG, click(10, 10))
    hits = metrics.CACHE_LOOKUPS.labels("embedding", "hit")._value.get()
    await serving.client.segmentation.predict_masks(PNG, click(20, 10))
    assert metrics.CACHE_LOOKUPS.labels("embedding", "hit")._value.get() == hits + 1


async def test_provenance_names_segmenter_and_encoder(serving: Serving) -> None:
    answer = await serving.client.segmentation.predict_masks(PNG, click(10, 10))
    provenance = answer.provenance
    assert provenance.segmenter is not None
    assert provenance.segmenter.name == "artifacts/tiny-segmenter/versions/1"
    assert provenance.image_encoder is not None
    assert provenance.image_encoder.name == "artifacts/tiny-encoder/versions/1"
    assert len(provenance.segmenter.digest) == len(provenance.image_digest) == 64
    assert provenance.prompt_set is provenance.adapter is provenance.feature_encoder is None
    assert provenance.software


@pytest.mark.parametrize(
    ("prompts", "field"),
    [
        ([], "prompts"),
        ([click(1, 1)] * 257, "prompts"),
        ([click(1, 1), click(129, 1)], "prompts[1].points[0].x"),
        ([click(1, 97)], "prompts[0].points[0].y"),
        ([box(0, 0, 130, 20)], "prompts[0].box"),
        ([ObjectPrompt(low_res_logits=np.zeros((16, 16), np.float32))], "prompts[0].low_res_logits"),
        ([ObjectPrompt(mask=np.ones((10, 10), bool))], "prompts[0].mask"),
    ],
)
async def test_prompts_that_do_not_fit_name_the_field(
    serving: Serving, prompts: list[ObjectPrompt], field: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        await serving.client.segmentation.predict_masks(PNG, prompts)
    assert caught.value.violations[0].field == field


async def test_an_unreadable_image_is_refused(serving: Serving) -> None:
    with pytest.raises(InvalidInput) as caught:
        await serving.client.segmentation.predict_masks(b"no image", click(1, 1))
    assert caught.value.reason == "IMAGE_UNREADABLE"


async def test_models_that_do_not_fit_are_refused_with_their_reason(serving: Serving, site: Site) -> None:
    predict = serving.client.segmentation.predict_masks
    with pytest.raises(NotFound):
        await predict(PNG, click(1, 1), segmenter="artifacts/nothing")
    with pytest.raises(FailedPrecondition) as unsupported:
        await predict(PNG, click(1, 1), segmenter="artifacts/tiny-encoder")
    assert unsupported.value.reason == "MODEL_UNSUPPORTED"
    with pytest.raises(InvalidInput) as malformed:
        await predict(PNG, click(1, 1), segmenter="tiny-segmenter")
    assert malformed.value.violations[0].field == "models.segmenter"


async def test_logits_that_exceed_a_message_are_refused_before_work(site: Site) -> None:
    async with site.segmentation(max_send_bytes=5 << 20, cache_dir=site.folder / "small") as small:
        with pytest.raises(ResourceExhausted) as caught:
            await small.client.segmentation.predict_masks(
                PNG, [click(1, 1)] * 256, multimask=True, include_low_res_logits=True
            )
    assert caught.value.reason == "MESSAGE_TOO_LARGE"
