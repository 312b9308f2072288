"""Prompts are drawn alike in training and in serving."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="making models needs the training extra")
pytest.importorskip("segment_anything", reason="making models needs the training extra")

from vplab.vision.nano.architecture import RASTER  # noqa: E402
from vplab.vision.nano.prompt_raster import rasterize_prompts  # noqa: E402
from vplab.vision.prompts import rasterize_prompt  # noqa: E402

LABELS = {
    "one click": [1, -1],
    "clicks of both kinds": [1, 0, 1, -1],
    "a box": [2, 3],
    "a box and clicks": [1, 0, 2, 3],
    "padding alone": [-1],
}


@pytest.mark.parametrize("name", LABELS)
def test_the_torch_and_numpy_rasters_are_equal(name):
    rng = np.random.default_rng(3)
    labels = np.tile(np.array(LABELS[name], np.float32), (4, 1))
    coords = rng.uniform(0, 512, (4, labels.shape[1], 2)).astype(np.float32)
    if 3 in LABELS[name]:
        coords[:, -2:] = np.sort(coords[:, -2:], axis=1)
    batched = rasterize_prompts(torch.from_numpy(coords), torch.from_numpy(labels), (128, 128), 512, RASTER)
    for drawn, xy, label in zip(batched[:, 0].numpy(), coords, labels, strict=True):
        np.testing.assert_allclose(drawn, rasterize_prompt(xy, label, (128, 128), 512, RASTER), atol=1e-4)


def test_a_click_peaks_in_its_own_cell_and_a_box_fills_its_inside():
    click = rasterize_prompts(torch.tensor([[[21.5, 9.5]]]), torch.ones(1, 1), (16, 16), 64, RASTER)[0, 0]
    assert divmod(int(click.argmax()), 16) == (2, 5)  # (y, x) = (9.5, 21.5) + 0.5 over cells of 4 pixels
    corners = torch.tensor([[[16.0, 8.0], [31.0, 23.0]]])
    box = rasterize_prompts(corners, torch.tensor([[2.0, 3.0]]), (16, 16), 64, RASTER)[0, 0]
    rows, columns = (box == RASTER.box_inside).nonzero(as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (2, 5, 4, 7)
    assert int((box == RASTER.box_inside).sum()) == 16
    assert float(box.min()) == RASTER.box_outside
