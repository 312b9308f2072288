"""Reading a folder: what is taken, what it becomes, and which files are named when it cannot be used."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from fakes.evaluation_folders import write_pair, write_squares
from vplab.errors import InvalidInput
from vplab.evaluation.folder import FolderOptions, read_folder

GREY = np.full((20, 30, 3), 90, np.uint8)


def labels(*values: int) -> np.ndarray:
    """A label image with a stripe of ten rows for each of two values."""
    mask = np.zeros((20, 30), np.uint8)
    mask[:10], mask[10:] = values
    return mask


def violations(root: Path, options: FolderOptions | None = None) -> dict[str, str]:
    with pytest.raises(InvalidInput) as caught:
        read_folder(root, options or FolderOptions())
    return {violation.field: violation.description for violation in caught.value.violations}


def test_a_jpeg_belongs_to_the_png_mask_of_its_name(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", GREY, labels(0, 255), suffix=".jpg")
    folder = read_folder(tmp_path, FolderOptions())
    assert [(c.class_id, c.value, c.name) for c in folder.classes] == [(1, 255, "object")]
    found = folder.read("a")
    assert (found.labels == labels(0, 1)).all()
    assert found.image_rgb.shape == (20, 30, 3)


def test_classes_get_ids_in_the_order_they_were_asked_for(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", GREY, labels(0, 7))
    write_pair(tmp_path, "b", GREY, labels(3, 7))
    folder = read_folder(tmp_path, FolderOptions(values=(7, 3)))
    assert (folder.read("b").labels == labels(2, 1)).all()
    assert (folder.read("a").labels == labels(0, 1)).all()
    assert [folder.area_of("a", target) for target in folder.classes] == [300, 0]


def test_value_zero_can_be_a_class(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", GREY, labels(0, 7))
    folder = read_folder(tmp_path, FolderOptions(values=(0,)))
    assert (folder.read("a").labels == labels(1, 0)).all()


def test_without_classes_all_values_but_zero_are_taken(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", GREY, labels(2, 7))
    write_pair(tmp_path, "b", GREY, labels(0, 4))
    assert [c.value for c in read_folder(tmp_path, FolderOptions()).classes] == [2, 4, 7]


def test_binary_makes_one_class_of_every_value(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", GREY, labels(2, 7))
    folder = read_folder(tmp_path, FolderOptions(is_binary=True))
    assert (folder.read("a").labels == 1).all()
    assert folder.area_of("a", folder.classes[0]) == 600


@pytest.mark.parametrize(("kind", "suffix"), [("JPEG", ".jpg"), ("WEBP", ".webp")])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_lossy_masks_are_binary_when_said_or_plain_to_see(tmp_path: Path, kind: str, suffix: str, mode: str) -> None:
    mask = cv2.circle(np.zeros((48, 64), np.uint8), (30, 20), 12, 255, -1)
    write_pair(tmp_path, "a", np.repeat(mask[..., None], 3, axis=2) // 2, mask)
    (tmp_path / "masks" / "a.png").unlink()
    Image.fromarray(mask).convert(mode).save(tmp_path / "masks" / f"a{suffix}", kind)
    for options in (FolderOptions(), FolderOptions(is_binary=True)):
        folder = read_folder(tmp_path, options)
        assert [c.name for c in folder.classes] == ["object"]
        assert (folder.read("a").labels == (mask > 0)).all()
        assert folder.area_of("a", folder.classes[0]) == (mask > 0).sum()
    assert "save it as PNG" in violations(tmp_path, FolderOptions(is_segments=True))["images/a.png"]
    Image.fromarray(mask // 80).convert(mode).save(tmp_path / "masks" / f"a{suffix}", kind)  # class 3
    assert "class ids need PNG" in violations(tmp_path)["images/a.png"]


def test_a_grey_mask_saved_in_colour_is_read_by_its_values(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", GREY, np.repeat(labels(0, 7)[..., None], 3, axis=2))
    assert (read_folder(tmp_path, FolderOptions(values=(7,))).read("a").labels == labels(0, 1)).all()


def test_images_without_masks_and_masks_of_another_size_are_all_named(tmp_path: Path) -> None:
    write_pair(tmp_path, "fine", GREY, labels(0, 255))
    write_pair(tmp_path, "cropped", GREY, labels(0, 255)[:, :25])
    write_pair(tmp_path, "alone", GREY, labels(0, 255))
    (tmp_path / "masks" / "alone.png").unlink()
    assert violations(tmp_path) == {
        "images/alone.png": "has no mask alone.png",
        "images/cropped.png": "is 30x20, its masks/cropped.png 25x20",
    }


def test_files_that_are_no_pictures_are_named(tmp_path: Path) -> None:
    write_pair(tmp_path, "fine", GREY, labels(0, 255))
    write_pair(tmp_path, "image", GREY, labels(0, 255))
    (tmp_path / "images" / "image.png").write_bytes(b"no image")
    write_pair(tmp_path, "mask", GREY, labels(0, 255))
    (tmp_path / "masks" / "mask.png").write_bytes(b"no mask")
    write_pair(tmp_path, "colour", GREY, GREY + np.array([0, 9, 0], np.uint8))
    found = violations(tmp_path)
    assert sorted(found) == ["images/colour.png", "images/image.png", "images/mask.png"]
    assert "mode is RGB" in found["images/colour.png"]
    assert "masks/mask.png cannot be read" in found["images/mask.png"]


def test_a_long_list_of_faults_is_cut(tmp_path: Path) -> None:
    for number in range(15):
        write_pair(tmp_path, f"{number:02d}", GREY, labels(0, 1))
        (tmp_path / "masks" / f"{number:02d}.png").unlink()
    found = violations(tmp_path)
    assert len(found) == 11
    assert found["..."] == "and 5 more"


@pytest.mark.parametrize("part", ["images", "masks"])
def test_a_folder_without_its_parts_is_refused(tmp_path: Path, part: str) -> None:
    write_squares(tmp_path)
    (tmp_path / part).rename(tmp_path / "elsewhere")
    with pytest.raises(InvalidInput, match=f"no folder {part}/"):
        read_folder(tmp_path, FolderOptions())


def test_a_class_that_no_mask_holds_is_refused_with_those_found(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", GREY, labels(0, 7))
    with pytest.raises(InvalidInput, match="no mask holds 9; values found: 0, 7"):
        read_folder(tmp_path, FolderOptions(values=(7, 9)))


def test_instance_ids_in_masks_are_not_taken_for_classes(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", GREY, np.arange(600, dtype=np.uint8).reshape(20, 30))
    with pytest.raises(InvalidInput, match="--binary"):
        read_folder(tmp_path, FolderOptions())


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", GREY, labels(0, 7))
    write_pair(tmp_path, "a", GREY, labels(0, 7), suffix=".jpg")
    with pytest.raises(InvalidInput, match=r"a\.jpg and a\.png have one name"):
        read_folder(tmp_path, FolderOptions())


def test_ids_choose_images_and_unknown_ones_are_named(tmp_path: Path) -> None:
    write_squares(tmp_path, 5)
    assert list(read_folder(tmp_path, FolderOptions(ids=("03", "01"))).images) == ["01", "03"]
    assert violations(tmp_path, FolderOptions(ids=("03", "77"))) == {"77": "no image of this name"}


def test_a_limit_takes_images_from_the_whole_list(tmp_path: Path) -> None:
    write_squares(tmp_path, 9)
    assert list(read_folder(tmp_path, FolderOptions(limit=3)).images) == ["00", "04", "08"]


def test_large_images_are_reduced_with_their_masks(tmp_path: Path) -> None:
    write_squares(tmp_path, 2, size_hw=(40, 60))
    folder = read_folder(tmp_path, FolderOptions(max_side=30))
    found = folder.read("01")
    assert found.image_rgb.shape == (20, 30, 3)
    assert set(np.unique(found.labels)) == {0, 1}
    assert 0.5 < found.labels.sum() / (16 * 20 / 4) < 1.5
    sent = cv2.imdecode(np.frombuffer(folder.encoded("01"), np.uint8), cv2.IMREAD_COLOR)
    assert (sent[..., ::-1] == found.image_rgb).all()


def test_an_object_is_the_largest_piece_or_the_largest_instance(tmp_path: Path) -> None:
    mask = np.zeros((20, 30), np.uint8)
    mask[2:12, 2:12] = 255
    mask[15:18, 20:24] = 255
    write_pair(tmp_path, "a", GREY, mask)
    folder = read_folder(tmp_path, FolderOptions())
    found = folder.read_object("a", folder.classes[0], folder.read("a"))
    assert found is not None
    assert int(found.sum()) == 100

    ids = np.zeros((20, 30), np.uint16)
    ids[2:12, 2:9], ids[2:12, 9:12], ids[15:18, 20:24] = 300, 301, 7
    (tmp_path / "instances").mkdir()
    Image.fromarray(ids).save(tmp_path / "instances" / "a.png")
    folder = read_folder(tmp_path, FolderOptions())
    found = folder.read_object("a", folder.classes[0], folder.read("a"))
    assert found is not None
    assert (found == (ids == 300)).all()


def test_an_image_without_the_class_has_no_object(tmp_path: Path) -> None:
    write_squares(tmp_path, 3)
    folder = read_folder(tmp_path, FolderOptions())
    assert folder.read_object("02", folder.classes[0], folder.read("02")) is None


def test_a_segment_is_neither_a_speck_nor_most_of_the_picture(tmp_path: Path) -> None:
    segments = np.full((20, 30), 300, np.uint16)
    segments[0, 0], segments[5:10, 5:10] = 1, 2
    for name in "ab":
        write_pair(tmp_path, name, GREY, segments)
        (tmp_path / "masks" / f"{name}.png").rename(tmp_path / "masks" / f"{name}_a1.png")
    folder = read_folder(tmp_path, FolderOptions(is_segments=True, mask_suffix="_a1"))
    found = folder.read_object("a", folder.classes[0], folder.read("a"))
    assert found is not None
    assert (found == (segments == 2)).all()


def test_the_digest_changes_with_any_file(tmp_path: Path) -> None:
    write_squares(tmp_path, 3)
    before = read_folder(tmp_path, FolderOptions()).digest
    assert read_folder(tmp_path, FolderOptions()).digest == before
    write_pair(tmp_path, "01", np.full((40, 60, 3), 41, np.uint8), np.full((40, 60), 255, np.uint8))
    assert read_folder(tmp_path, FolderOptions()).digest != before
