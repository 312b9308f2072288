from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vplab.cli.pictures import Cell, contact_sheet, overlay, save_picture, thumbnail
from vplab.vision.label_images import colour_of


def test_an_overlay_colours_the_mask_and_nothing_else() -> None:
    image = np.full((40, 40, 3), 100, np.uint8)
    labels = np.zeros((40, 40), np.uint8)
    labels[10:30, 10:30] = 2
    drawn = overlay(image, labels)
    assert (image == 100).all()
    np.testing.assert_array_equal(drawn[labels == 0], image[labels == 0])
    expected = np.round(100 * 0.55 + np.array(colour_of(2)) * 0.45)
    np.testing.assert_allclose(drawn[20, 20], expected, atol=1)


def test_clicks_and_a_box_are_drawn() -> None:
    image = np.zeros((60, 60, 3), np.uint8)
    drawn = overlay(image, np.zeros((60, 60), np.uint8), [(10, 20), (40, 50)], [1, 0], (5, 5, 55, 55))
    assert drawn[20, 10].argmax() == 1
    assert drawn[50, 40].argmax() == 0
    assert drawn[5, 30].min() == 255


@pytest.mark.parametrize("count", [1, 4, 5, 9])
def test_a_sheet_holds_every_picture_whatever_its_shape(count: int) -> None:
    cells = [
        Cell(np.full((30 + 40 * i, 50, 3), 200, np.uint8), f"a very long caption indeed {i} " * 5) for i in range(count)
    ]
    sheet = contact_sheet(cells, columns=4, cell_px=100)
    columns, rows = min(count, 4), -(-count // 4)
    assert sheet.shape == (rows * 126 + 6, columns * 106 + 6, 3)
    assert (sheet == 200).all(axis=2).sum() > count * 500


def test_a_thumbnail_is_never_enlarged() -> None:
    assert thumbnail(np.zeros((10, 20, 3), np.uint8), 100).shape == (10, 20, 3)
    assert thumbnail(np.zeros((100, 2, 3), np.uint8), 10).shape == (10, 1, 3)


def test_pictures_are_written_whole_in_the_format_of_their_name(tmp_path: Path) -> None:
    for name, kind in (("a.png", "PNG"), ("deep/b.jpg", "JPEG")):
        save_picture(np.zeros((4, 4, 3), np.uint8), tmp_path / name)
        with Image.open(tmp_path / name) as image:
            assert image.format == kind
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.png", "b.jpg", "deep"]
