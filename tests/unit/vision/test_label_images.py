from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from vplab.errors import InvalidInput
from vplab.vision.label_images import colour_of, label_png, read_labels


@settings(max_examples=50)
@given(labels=hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)))
def test_class_ids_survive_the_file(tmp_path_factory: pytest.TempPathFactory, labels: np.ndarray) -> None:
    path = tmp_path_factory.mktemp("labels") / "a.png"
    path.write_bytes(label_png(labels))
    np.testing.assert_array_equal(read_labels(path), labels)


@given(st.integers(1, 255))
def test_every_class_has_a_colour_that_is_not_the_background(class_id: int) -> None:
    assert colour_of(class_id) == colour_of(class_id)
    assert max(colour_of(class_id)) > 100


def test_the_first_classes_are_told_apart() -> None:
    assert len({colour_of(class_id) for class_id in range(1, 256)}) > 200


def test_grey_one_bit_and_palette_files_are_read_and_others_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.array([[0, 200]], np.uint8)).save(path)
    assert read_labels(path).tolist() == [[0, 200]]
    Image.fromarray(np.array([[False, True]])).save(path)
    assert read_labels(path).tolist() == [[0, 255]]
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(path)
    with pytest.raises(InvalidInput, match="mode is RGB"):
        read_labels(path)
    path.write_text("text")
    with pytest.raises(InvalidInput, match="cannot read"):
        read_labels(path)
