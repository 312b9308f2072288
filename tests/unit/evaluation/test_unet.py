"""The U-Net that is trained on the shots alone; it starts from weights made here."""

import logging

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from vplab.errors import InvalidInput
from vplab.evaluation.comparators.unet import UNet
from vplab.evaluation.values import LabelledImage


@pytest.fixture(scope="module")
def trunk_file(tmp_path_factory):
    torch.manual_seed(0)
    model = timm.create_model("mobilenetv2_100", pretrained=False, pad_type="same")
    path = tmp_path_factory.mktemp("weights") / "trunk.safetensors"
    save_file({name: value.half() for name, value in model.state_dict().items() if value.is_floating_point()}, path)
    return path


def coloured(seed: int, size_hw: tuple[int, int] = (70, 90)) -> LabelledImage:
    """Grey ground with a red square of class 1 and a blue one of class 3."""
    rng = np.random.default_rng(seed)
    image, labels = rng.normal(120, 5, (*size_hw, 3)), np.zeros(size_hw, np.uint8)
    top, left = rng.integers(4, 24, 2)
    labels[top : top + 32, left : left + 24] = 1
    labels[top : top + 32, left + 34 : left + 58] = 3
    image[labels == 1] += (90, -60, -60)
    image[labels == 3] += (-60, -60, 90)
    return LabelledImage(f"image{seed}", np.clip(image, 0, 255).astype(np.uint8), labels)


def small(trunk_file, num_steps=2, **options):
    return UNet(trunk_weights=trunk_file, num_steps=num_steps, batch_size=2, crop_size=64, **options)


def test_equal_seeds_train_equal_networks_and_leave_the_global_generator_alone(trunk_file):
    before = torch.get_rng_state()
    shots = [coloured(0)]
    first, again, other = (small(trunk_file).fit(shots, [1, 3], seed).network.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert torch.equal(before, torch.get_rng_state())


def test_labels_are_the_class_ids_at_the_images_own_size(trunk_file):
    predictor = small(trunk_file, max_side=64).fit([coloured(0)], [1, 3], 0)
    found = predictor.predict(coloured(1, (90, 131)).image_rgb, "a")
    assert found.shape == (90, 131)
    assert found.dtype == np.uint8
    assert set(np.unique(found)) <= {0, 1, 3}


def test_training_learns_the_shot(trunk_file):
    shot = coloured(0)
    predictor = small(trunk_file, num_steps=40, learning_rate=5e-3).fit([shot], [1, 3], 0)
    found = predictor.predict(shot.image_rgb, "a")
    assert np.mean(found == shot.labels) > 0.8


def test_the_trunk_starts_from_the_file_and_keeps_its_statistics(trunk_file):
    predictor = small(trunk_file, num_steps=1).fit([coloured(0)], [1, 3], 0)
    norms = [m for m in predictor.network.unet.encoder.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms
    assert all((norm.running_mean == 0).all() for norm in norms)


def test_a_file_of_another_network_is_invalid_input(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(InvalidInput, match=r"other\.safetensors does not hold"):
        small(path).fit([coloured(0)], [1, 3], 0)
    path.write_bytes(b"nonsense")
    with pytest.raises(InvalidInput, match="not a safetensors file"):
        small(path).fit([coloured(0)], [1, 3], 0)


def test_without_any_weights_it_starts_from_noise_and_says_so(monkeypatch, caplog):
    real = timm.create_model

    def offline(name, pretrained=False, **options):
        if pretrained:
            raise OSError("no route to the hub")
        return real(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    with caplog.at_level(logging.WARNING):
        predictor = small(None, num_steps=1).fit([coloured(0)], [1, 3], 0)
    assert "starts from noise" in caplog.text
    assert not predictor.network.is_pretrained
