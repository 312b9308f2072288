"""The Python client against the real services, started by the command: what the README of the clients promises."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fakes.vplab_command import Vplab, ended, free_port_base, wait_for
from vplab import registry
from vplab.client import (
    AsyncClient,
    Client,
    ClientOptions,
    DigestImage,
    ObjectPrompt,
    PromptSetDraft,
    Reference,
    SegmentClass,
    SegmentOptions,
)
from vplab.client.training.values import TuningRequest
from vplab.errors import InvalidInput, NotFound
from vplab.training.foundation.evaluation import ExportedPair
from vplab.vision.masks import coco_rle_to_mask, png_to_mask
from vplab.vision.synthesis import InspectionImage, synthesize_inspection_set

BUILTIN = Path(registry.__file__).parent / "builtin"


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("services")
    base, figures = free_port_base(), folder / "serve.json"
    with ended(Vplab(folder / "home", {}).start("serve", "--port-base", base, "--json", figures)) as process:
        wait_for(lambda: process.poll() is not None or figures.exists(), timeout_s=120)
        assert process.poll() is None, process.communicate()
        areas = ("registry", "embedding", "segmentation", "training")
        yield {area: f"127.0.0.1:{base + index}" for index, area in enumerate(areas)}


@pytest.fixture(scope="module")
def client(addresses: dict[str, str]) -> Iterator[Client]:
    with Client(**addresses, options=ClientOptions()) as client:  # type: ignore[arg-type]
        yield client


@pytest.fixture(scope="module")
def images() -> list[InspectionImage]:
    return synthesize_inspection_set(4, (256, 320), "patch", seed=2)


def test_clicks_give_masks_in_every_form(client: Client, images: list[InspectionImage]) -> None:
    image, truth = images[0].image_rgb, images[0].mask
    row, column = np.argwhere(truth)[truth.sum() // 2]
    click = ObjectPrompt(points_xy=np.array([[column, row]], np.float32))
    prediction = client.segmentation.predict_masks(image, [click, click], multimask=True, include_low_res_logits=True)
    assert [len(masks) for masks in prediction.objects] == [3, 3]
    best = max(prediction.objects[0], key=lambda mask: mask.predicted_iou)
    assert best.mask.shape == truth.shape
    np.testing.assert_array_equal(png_to_mask(best.to_png()), best.mask)
    np.testing.assert_array_equal(coco_rle_to_mask(best.to_coco_rle()), best.mask)
    assert best.low_res_logits is not None

    refined = client.segmentation.predict_masks(
        image, ObjectPrompt(click.points_xy, low_res_logits=best.low_res_logits),
        known_digest=prediction.provenance.image_digest,
    )  # fmt: skip
    assert refined.provenance == prediction.provenance
    by_digest = client.segmentation.predict_masks(DigestImage(prediction.provenance.image_digest), click)
    assert by_digest.image_size_hw == truth.shape


def test_the_shipped_models_are_served_as_their_recipe_measures_them(
    client: Client, images: list[InspectionImage]
) -> None:
    pair = ExportedPair(BUILTIN, threads=1)
    for image in images:
        rows, columns = np.nonzero(image.mask)
        box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], np.float32)
        click = np.array([[columns[len(rows) // 2], rows[len(rows) // 2]]], np.float32)
        encoded, _ = pair.encode(image.image_rgb)
        for prompt in (
            ObjectPrompt(box_xyxy=box),
            ObjectPrompt(points_xy=click, point_labels=np.array([1]), box_xyxy=box),
        ):
            expected, _, _ = pair.decode(encoded, prompt)
            ((answer,),) = client.segmentation.predict_masks(image.image_rgb, prompt).objects
            # The service keeps half-precision embeddings, so a pixel on the border may fall on the other side.
            assert (answer.mask & expected).sum() / (answer.mask | expected).sum() > 0.99


def test_an_image_the_service_forgot_is_sent_again(client: Client, images: list[InspectionImage]) -> None:
    click = ObjectPrompt(points_xy=np.array([[5, 5]], np.float32))
    answer = client.segmentation.predict_masks(images[1].image_rgb, click, known_digest="0" * 64)
    assert answer.provenance.image_digest != "0" * 64
    with pytest.raises(NotFound) as caught:
        client.segmentation.predict_masks(DigestImage("0" * 64), click)
    assert caught.value.reason == "EMBEDDING_NOT_CACHED"


def test_a_prompt_set_finds_its_class_in_single_images_and_in_a_stream(
    client: Client, images: list[InspectionImage]
) -> None:
    made = client.segmentation.create_prompt_set(
        PromptSetDraft(
            "patches",
            [SegmentClass(7, "patch")],
            [Reference(images[0].image_rgb, {7: images[0].mask})],
            options=SegmentOptions(max_points=8),
        )
    )
    stored = client.segmentation.get_prompt_set("artifacts/patches")
    assert stored.model == made.model
    np.testing.assert_array_equal(stored.references[0].masks[7], images[0].mask)
    assert "artifacts/patches/versions/1" in [s.model.name for s in client.segmentation.list_prompt_sets()]

    options = SegmentOptions(include_points=True, include_instances=True)
    single = [client.segmentation.segment_image(i.image_rgb, "artifacts/patches", options=options) for i in images[1:]]
    for image, found in zip(images[1:], single, strict=True):
        (patch,) = found.classes
        assert (patch.class_id, patch.mask.shape) == (7, image.mask.shape)
        assert found.provenance.prompt_set == made.model
        assert set(np.unique(found.label_image())) <= {0, 7}
        assert (len(patch.points_xy) > 0) == (len(patch.instances) > 0) or patch.present is False
    frames = [(str(number), image.image_rgb) for number, image in enumerate(images[1:])]
    streamed = list(client.segmentation.segment_images([*frames, ("bad", b"no image")], "artifacts/patches"))
    assert [frame.frame_id for frame in streamed] == ["0", "1", "2", "bad"]
    for frame, alone in zip(streamed, single, strict=False):
        assert frame.result is not None
        np.testing.assert_array_equal(frame.result.classes[0].mask, alone.classes[0].mask)
    assert isinstance(streamed[-1].error, InvalidInput)
    assert streamed[-1].error.reason == "IMAGE_UNREADABLE"


def test_embeddings_come_as_arrays_alone_in_a_stream_and_by_name(client: Client, images: list[InspectionImage]) -> None:
    encoder = next(iter(client.embedding.list_encoders()))
    name = encoder.model.name.partition("/versions/")[0]
    (embedding,) = client.embedding.embed_image(images[0].image_rgb, name, precision="float32")
    assert embedding.image_size_hw == (256, 320)
    for output in encoder.outputs:
        array = embedding.output(output.role)  # type: ignore[arg-type]
        assert (array.shape, array.dtype) == (output.shape, np.float32)
    by_name = client.embedding.get_embedding(embedding.name)
    for kept, first in zip(by_name.tensors, embedding.tensors, strict=True):
        np.testing.assert_array_equal(kept.array, first.array)
    items = [(str(number), image.image_rgb) for number, image in enumerate(images)]
    streamed = {e.item_id: e for e in client.embedding.embed_images([*items, ("bad", b"x")], name, precision="float32")}
    assert set(streamed) == {"0", "1", "2", "3", "bad"}
    np.testing.assert_array_equal(
        streamed["0"].embeddings[0].output("patch_features"), embedding.output("patch_features")
    )
    assert isinstance(streamed["bad"].error, InvalidInput)


def test_a_precompute_job_fills_the_cache(client: Client, tmp_path: Path) -> None:
    from vplab.cli.pictures import save_picture

    files = []
    for number, image in enumerate(synthesize_inspection_set(3, (128, 128), "pore", seed=9)):
        save_picture(image.image_rgb, tmp_path / f"{number}.png")
        files.append(client.registry.upload_file(tmp_path / f"{number}.png", media_type="image/png"))
    name = next(iter(client.embedding.list_encoders())).model.name
    job = client.embedding.precompute(name, blob_digests=[file.sha256 for file in files])
    wait_for(lambda: client.embedding.get_precompute_job(job.name).is_done)
    done = client.embedding.get_precompute_job(job.name)
    assert (done.state, done.num_done, done.num_failed) == ("succeeded", 3, 0)
    (embedding,) = client.embedding.embed_image(DigestImage(files[0].sha256), name)
    assert embedding.tier in ("host", "durable")
    assert [j.name for j in client.embedding.list_precompute_jobs()] == [job.name]


async def test_training_refuses_data_that_is_not_there(addresses: dict[str, str]) -> None:
    async with AsyncClient(**addresses, options=ClientOptions()) as client:  # type: ignore[arg-type]
        with pytest.raises(NotFound):
            await client.training.create_tuning_job(TuningRequest("adapter", "artifacts/dataset"))
        assert [job async for job in client.training.list_tuning_jobs()] == []
