"""The nano models' shapes, sizes and starting weights."""

import pytest

torch = pytest.importorskip("torch", reason="making models needs the training extra")
pytest.importorskip("segment_anything", reason="making models needs the training extra")

from safetensors.torch import save_file  # noqa: E402

from vplab.errors import InvalidInput  # noqa: E402
from vplab.vision.nano.architecture import FEATURE_DIM, NanoSegmenter  # noqa: E402
from vplab.vision.nano.trunk import MobileNetTrunk  # noqa: E402


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return NanoSegmenter().eval()


def test_one_pass_gives_the_embedding_unit_length_patch_features_and_the_colours(model):
    pixels = torch.randint(0, 256, (2, 3, 64, 64)).repeat_interleave(2, 2).repeat_interleave(2, 3)
    with torch.no_grad():
        embedding, features, colours = model.encoder((pixels - 127.5) / 127.5)
    torch.testing.assert_close(colours, pixels[..., ::2, ::2] / 255)
    assert embedding.shape == (2, 256, 8, 8)
    assert features.shape == (2, 16, 16, FEATURE_DIM)
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(2, 16, 16))


def test_the_embedding_alone_equals_the_embedding_of_the_full_pass(model):
    image = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(model.encoder.embed(image), model.encoder(image)[0])


def test_patch_features_stay_when_the_trunk_is_tuned_for_masks():
    torch.manual_seed(0)
    model = NanoSegmenter().eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        embedding, features, _ = model.encoder(image)
        for parameter in model.encoder.trunk.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01)
        tuned_embedding, tuned_features, _ = model.encoder(image)
    assert torch.equal(features, tuned_features)
    assert not torch.allclose(embedding, tuned_embedding)


def test_prompt_encoder_and_decoder_have_sams_parameter_counts(model):
    assert sum(p.numel() for p in model.mask_decoder.parameters()) == 4_058_340
    assert sum(p.numel() for p in model.prompt_encoder.parameters()) == 6_220


def test_the_decoder_takes_any_input_size_of_whole_cells(model):
    decoder = model.decoder(256)
    with torch.no_grad():
        logits, iou = decoder(
            torch.randn(2, 256, 16, 16),
            torch.tensor([0, 1, 1]),
            torch.rand(3, 2, 2) * 256,
            torch.tensor([[2.0, 3.0]] * 3),
            torch.zeros(3, 1, 64, 64),
            torch.ones(3),
        )
    assert logits.shape == (3, 4, 64, 64)
    assert iou.shape == (3, 4)


def test_folding_batch_norm_keeps_the_trunks_features(tmp_path):
    import timm

    torch.manual_seed(1)
    reference = timm.create_model("mobilenetv2_100", pretrained=False, pad_type="same").eval()
    for module in reference.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    path = tmp_path / "trunk.safetensors"
    save_file({n: v.contiguous() for n, v in reference.state_dict().items()}, path)
    trunk = MobileNetTrunk.from_weights(path)
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        maps = trunk(image)
        x = reference.bn1(reference.conv_stem(image))
        for block in reference.blocks:
            x = block(x)
    assert {stride: tuple(m.shape[1:]) for stride, m in maps.items()} == {
        4: (24, 16, 16),
        8: (32, 8, 8),
        16: (96, 4, 4),
        32: (320, 2, 2),
    }
    torch.testing.assert_close(maps[32], x, rtol=1e-3, atol=1e-3 * float(x.abs().max()))


def test_a_file_of_another_architecture_is_invalid_input(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(InvalidInput, match="mobilenetv2_100"):
        MobileNetTrunk.from_weights(path)
