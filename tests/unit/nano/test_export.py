"""The exported pair equals the torch modules, and what ships loads in ONNX Runtime and is what its spec says."""

import shutil
from importlib import resources

import numpy as np
import onnxruntime as ort
import pytest

from vplab.vision.adapters.bank_layout import BANK_INPUT, LAYOUT_KEY, BankLayout
from vplab.vision.adapters.spec import default_spec
from vplab.vision.preprocessing import preprocess
from vplab.vision.specs import EncoderSpec, SegmenterSpec, spec_from_json

BUILTIN = resources.files("vplab.registry") / "builtin"


def shipped(artifact):
    folder = BUILTIN / artifact
    return folder, spec_from_json((folder / "model.json").read_bytes())


def test_the_shipped_encoder_gives_what_its_spec_promises():
    folder, spec = shipped("nano-encoder")
    assert isinstance(spec, EncoderSpec)
    session = ort.InferenceSession((folder / spec.graph).read_bytes(), providers=["CPUExecutionProvider"])
    side = spec.preprocessing.size
    images = np.random.default_rng(0).uniform(-1, 1, (2, 3, side, side)).astype(np.float32)
    for output in spec.outputs:
        (batch,) = session.run([output.name], {"image": images})
        assert batch.shape == (2, *output.shape)
        assert batch.dtype == np.float32
        assert np.isfinite(batch).all()
        (single,) = session.run([output.name], {"image": images[1:]})
        np.testing.assert_allclose(batch[1:], single, atol=1e-4)
    assert np.allclose(np.linalg.norm(session.run(["patch_features"], {"image": images})[0], axis=-1), 1, atol=1e-4)


@pytest.mark.slow
def test_the_shipped_encoder_sees_each_of_twenty_images_in_a_batch_as_it_does_alone():
    pytest.importorskip("torch", reason="the pictures are those of the importer's comparison")
    from vplab.training.models.compare import make_picture
    from vplab.training.models.imported import PARITY_IMAGE_SIZES_HW

    folder, spec = shipped("nano-encoder")
    session = ort.InferenceSession((folder / spec.graph).read_bytes(), providers=["CPUExecutionProvider"])
    pictures = [make_picture(size_hw, seed) for seed, size_hw in enumerate(PARITY_IMAGE_SIZES_HW)]
    images = np.stack([preprocess(picture, spec.preprocessing).tensor for picture in pictures])
    names = [output.name for output in spec.outputs]
    alone = [session.run(names, {"image": image[None]}) for image in images]
    together = [session.run(names, {"image": images[i : i + 5]}) for i in range(0, 20, 5)]
    for output in range(len(names)):
        expected, found = (np.concatenate([run[output] for run in runs]) for runs in (alone, together))
        np.testing.assert_allclose(found, expected, atol=1e-4 * expected.std())


def test_the_shipped_segmenter_decodes_prompts_of_several_images_at_once():
    folder, spec = shipped("nano-segmenter")
    assert isinstance(spec, SegmenterSpec)
    assert spec.prompt_raster is not None
    session = ort.InferenceSession((folder / spec.graph).read_bytes(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    feed = {
        "image_embedding": rng.normal(size=(2, *spec.embedding_shape)).astype(np.float32),
        "image_index": np.array([0, 1, 1], np.int64),
        "point_coords": rng.uniform(0, spec.input_size, (3, 2, 2)).astype(np.float32),
        "point_labels": np.array([[2, 3]] * 3, np.float32),
        "mask_input": np.zeros((3, 1, *spec.low_res_hw), np.float32),
        "has_mask_input": np.ones(3, np.float32),
    }
    logits, scores = session.run(["low_res_logits", "iou_predictions"], feed)
    assert logits.shape == (3, spec.num_planes, *spec.low_res_hw)
    assert scores.shape == (3, spec.num_planes)
    assert np.isfinite(logits).all()


def test_the_shipped_pair_fits_together_and_stays_small():
    (encoder_folder, encoder), (segmenter_folder, segmenter) = shipped("nano-encoder"), shipped("nano-segmenter")
    embedding = encoder.output("image_embedding")
    assert embedding.shape == segmenter.embedding_shape
    assert encoder.preprocessing.size == segmenter.input_size
    size = sum(len((f / s.graph).read_bytes()) for f, s in ((encoder_folder, encoder), (segmenter_folder, segmenter)))
    assert size < 30_000_000


@pytest.mark.parametrize("artifact", ["nano-encoder", "nano-segmenter"])
def test_shipped_models_come_with_a_passed_parity_report_and_a_card(artifact):
    pytest.importorskip("torch", reason="the report's type lives beside the importers")
    from vplab.training.models.parity import ParityReport

    folder = BUILTIN / artifact
    report = ParityReport.model_validate_json((folder / "parity.json").read_bytes())
    assert report.passed
    assert all(case.passed for case in report.cases)
    assert "mobilenet" in (folder / "MODEL_CARD.md").read_text().lower()


def test_the_shipped_bank_takes_adapters_of_todays_method_and_was_compared_on_twenty_images():
    """If E-PEFT changed: ``python -m vplab.training.foundation bank --models services/vplab/registry/builtin``."""
    pytest.importorskip("torch", reason="the report's type lives beside the importers")
    from vplab.training.models.parity import ParityReport

    folder, spec = shipped("nano-segmenter")
    assert spec.adapter_bank is not None
    assert spec.adapter_bank.adapter == default_spec("e_peft")
    session = ort.InferenceSession((folder / spec.adapter_bank.graph).read_bytes(), providers=["CPUExecutionProvider"])
    layout = BankLayout.from_json(session.get_modelmeta().custom_metadata_map[LAYOUT_KEY])
    assert [i.shape for i in session.get_inputs() if i.name == BANK_INPUT] == [["num_adapters", layout.width]]
    report = ParityReport.model_validate_json((folder / "bank_parity.json").read_bytes())
    assert report.passed
    assert all(case.passed and len(set(case.image_sizes_hw)) == 20 for case in report.cases)
    assert {case.name.partition(",")[0] for case in report.cases} == {"base", "adapters mixed"}


def test_the_shipped_encoders_weights_can_be_read_back_from_its_graph():
    torch = pytest.importorskip("torch", reason="making models needs the training extra")
    from vplab.training.foundation.encoder_weights import encoder_state
    from vplab.vision.nano.architecture import NanoEncoder

    folder, spec = shipped("nano-encoder")
    encoder = NanoEncoder().eval()
    encoder.load_state_dict(encoder_state(folder / spec.graph))
    side = spec.preprocessing.size
    image = np.random.default_rng(0).uniform(-1, 1, (1, 3, side, side)).astype(np.float32)
    session = ort.InferenceSession((folder / spec.graph).read_bytes(), providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        expected = encoder(torch.from_numpy(image))
    for found, wanted in zip(
        session.run([output.name for output in spec.outputs], {"image": image}), expected, strict=True
    ):
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-3 * float(wanted.std()))


@pytest.mark.slow
def test_an_export_equals_the_torch_modules_it_came_from(tmp_path):
    torch = pytest.importorskip("torch", reason="making models needs the training extra")
    pytest.importorskip("segment_anything", reason="making models needs the training extra")
    from vplab.training.foundation.export import export, parity, round_to_half
    from vplab.vision.nano.architecture import NanoSegmenter

    torch.manual_seed(0)
    model = NanoSegmenter().eval()
    with torch.no_grad():
        for value in model.parameters():  # equal scales and offsets, as before training, would be one constant
            if value.ndim == 1:
                value += 0.01 * torch.randn_like(value)
    few = ((480, 640), (640, 480), (333, 517))  # the recipe takes twenty
    export(model, tmp_path, few)
    for report in parity(round_to_half(model).eval(), tmp_path, few):
        assert report.passed
    with torch.no_grad():
        model.mask_decoder.iou_token.weight += 1
    assert not parity(round_to_half(model).eval(), tmp_path, few)[1].passed


@pytest.mark.slow
def test_a_segmenter_exported_anew_keeps_its_weights_and_the_encoder_all_of_its_files(tmp_path):
    torch = pytest.importorskip("torch", reason="making models needs the training extra")
    pytest.importorskip("segment_anything", reason="making models needs the training extra")
    from vplab.training.foundation.export import export_segmenter_again
    from vplab.training.worker.decoder_weights import load_decoder

    shutil.copytree(BUILTIN, tmp_path / "models")
    segmenter = tmp_path / "models" / "nano-segmenter"
    (segmenter / "parity.json").unlink()
    export_segmenter_again(tmp_path / "models", ((480, 640), (640, 480), (333, 517)))
    folder, spec = shipped("nano-segmenter")
    before, after = (load_decoder(one, spec).state_dict() for one in (folder, segmenter))
    for name, value in before.items():
        assert torch.equal(after[name], value), name
    assert (segmenter / "parity.json").exists()
    for path in shipped("nano-encoder")[0].iterdir():
        assert (tmp_path / "models" / "nano-encoder" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_the_early_encoder_gives_what_the_shipped_one_gives_and_the_map_of_stride_4(tmp_path):
    torch = pytest.importorskip("torch", reason="making models needs the training extra")
    pytest.importorskip("segment_anything", reason="making models needs the training extra")
    from vplab.training.foundation.encoder_weights import encoder_state
    from vplab.training.foundation.export import EARLY_ENCODER, EARLY_SEGMENTER, export_early
    from vplab.training.models.parity import ParityReport
    from vplab.vision.nano.architecture import NanoEncoder

    export_early(BUILTIN, tmp_path, ((480, 640), (640, 480), (333, 517)))
    (plain_folder, plain), folder = shipped("nano-encoder"), tmp_path / EARLY_ENCODER
    spec = spec_from_json((folder / "model.json").read_bytes())
    assert spec.outputs[:-1] == plain.outputs
    assert spec.early_channels == 384
    report = ParityReport.model_validate_json((folder / "parity.json").read_bytes())
    assert {case.quantity for case in report.cases} == {output.role for output in spec.outputs}
    image = np.random.default_rng(0).uniform(-1, 1, (1, 3, 512, 512)).astype(np.float32)
    *same, early = ort.InferenceSession(folder / spec.graph).run([o.name for o in spec.outputs], {"image": image})
    old = ort.InferenceSession(plain_folder / plain.graph).run([o.name for o in plain.outputs], {"image": image})
    for found, expected in zip(same, old, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4 * expected.std())
    encoder = NanoEncoder().eval()
    encoder.load_state_dict(encoder_state(plain_folder / plain.graph))
    with torch.inference_mode():
        fine = encoder.trunk(torch.from_numpy(image))[4].numpy()[0]
    # Channel 16 c + 4 dy + dx of a cell is channel c of the map at its place (dy, dx).
    np.testing.assert_allclose(early[0].reshape(24, 4, 4, 32, 32)[5, 2, 3], fine[5, 2::4, 3::4], atol=1e-4)
    for path in (BUILTIN / "nano-segmenter").iterdir():
        assert (tmp_path / EARLY_SEGMENTER / path.name).read_bytes() == path.read_bytes()
