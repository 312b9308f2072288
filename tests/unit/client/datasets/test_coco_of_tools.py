"""COCO files as CVAT and Label Studio write them, with pycocotools deciding what their masks are.

The layouts are those of CVAT's "COCO 1.0" export (Datumaro's writer) and of label-studio-converter's COCO writer:
names, ids, extra fields and kinds of segmentation; the pictures are made here.
"""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from vplab.cli.dataset_sources import read_source
from vplab.client.datasets import Dataset, write_coco
from vplab.errors import InvalidInput

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

HEIGHT, WIDTH = 40, 60
POLYGON = [10.5, 5.25, 40.0, 5.25, 40.0, 30.75, 22.0, 18.5, 10.5, 30.75]


def picture(seed: int, *, rotated: bool = False) -> bytes:
    """A picture that people see as 60 x 40; rotated is stored upright with the orientation in its EXIF."""
    pixels = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    file = io.BytesIO()
    if not rotated:
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()
    exif = Image.Exif()
    exif[0x0112] = 6  # stored a quarter turn to the left of how it is seen
    Image.fromarray(np.ascontiguousarray(np.rot90(pixels))).save(file, "JPEG", exif=exif)
    return file.getvalue()


def disc() -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return (y - 20) ** 2 + (x - 30) ** 2 < 120


def drawn(polygon: list[float]) -> np.ndarray:
    """What pycocotools makes of a polygon."""
    return coco_mask.decode(coco_mask.frPyObjects([polygon], HEIGHT, WIDTH))[..., 0].astype(bool)


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    """Counts as CVAT writes the masks of its brush."""
    flat = mask.T.reshape(-1).astype(int)
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    return {"counts": [0, *counts] if flat[0] else counts, "size": [HEIGHT, WIDTH]}


def cvat(root: Path, places: tuple[str, ...]) -> Path:
    """Write an export of CVAT: two folders of images with the same names, polygons and a brushed mask."""
    names = ("line1/part.png", "line2/part.png", "turned.jpg")
    images, annotations = [], []
    for number, name in enumerate(names, start=1):
        path = root.joinpath(*places, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number, rotated=name == "turned.jpg"))
        empty = {"license": 0, "flickr_url": "", "coco_url": "", "date_captured": 0}
        images.append({"id": number, "width": WIDTH, "height": HEIGHT, "file_name": name, **empty})
        attributes = {"occluded": False, "rotation": 0.0}
        shapes = [(1, 0, [POLYGON]), (2, 1, uncompressed(disc()))]
        annotations += [
            {
                "id": 10 * number + category,
                "image_id": number,
                "category_id": category,
                "segmentation": segmentation,
                "area": 500.0,
                "bbox": [10.5, 5.25, 29.5, 25.5],
                "iscrowd": is_crowd,
                "attributes": attributes,
            }
            for category, is_crowd, segmentation in shapes
        ]
    (root / "annotations").mkdir()
    content = {
        "licenses": [{"name": "", "id": 0, "url": ""}],
        "info": {"contributor": "", "date_created": "", "description": "", "url": "", "version": "", "year": ""},
        "categories": [{"id": i, "name": n, "supercategory": ""} for i, n in ((1, "scratch"), (2, "dent"))],
        "images": images,
        "annotations": annotations,
    }
    (root / "annotations" / "instances_default.json").write_text(json.dumps(content))
    return root


@pytest.mark.parametrize("places", [("images",), ("images", "default"), ()])
def test_an_export_of_cvat_is_read(tmp_path: Path, places: tuple[str, ...]) -> None:
    found = read_source(cvat(tmp_path, places))
    assert [(c.class_id, c.display_name) for c in found.classes] == [(1, "scratch"), (2, "dent")]
    assert [item.file_name for item in found.items] == ["line1/part.png", "line2/part.png", "turned.jpg"]
    for item in found.items:
        np.testing.assert_array_equal(item.masks[1], drawn(POLYGON))
        np.testing.assert_array_equal(item.masks[2], disc())


def label_studio(root: Path, file_name: str, stored: str) -> Path:
    """Write an export of Label Studio: categories and ids count from zero, and a brushed mask is compressed."""
    (root / "images").mkdir(parents=True)
    (root / "images" / stored).write_bytes(picture(1))
    rle = coco_mask.encode(np.asfortranarray(disc(), np.uint8))
    shapes = [(0, [POLYGON]), (1, {"size": rle["size"], "counts": rle["counts"].decode("ascii")})]
    content = {
        "images": [{"width": WIDTH, "height": HEIGHT, "id": 0, "file_name": file_name}],
        "categories": [{"id": 0, "name": "dent"}, {"id": 1, "name": "scratch"}],
        "annotations": [
            {
                "id": number,
                "image_id": 0,
                "category_id": number,
                "segmentation": segmentation,
                "bbox": [10.5, 5.25, 29.5, 25.5],
                "ignore": 0,
                "iscrowd": 0,
                "area": 500.0,
            }
            for number, segmentation in shapes
        ],
        "info": {"year": 2026, "version": "1.0", "description": "", "contributor": "Label Studio", "url": ""},
    }
    (root / "result.json").write_text(json.dumps(content))
    return root


@pytest.mark.parametrize(
    ("file_name", "stored", "shown"),
    [
        ("images/0a1b2c3d-part.png", "0a1b2c3d-part.png", "0a1b2c3d-part.png"),
        ("images\\0a1b2c3d-part.png", "0a1b2c3d-part.png", "0a1b2c3d-part.png"),
        ("images/0a1b2c3d-part.png", "part.png", "part.png"),
        ("/data/upload/3/0a1b2c3d-part.png", "part.png", "part.png"),
        ("/data/local-files/?d=lines/one/part.png", "part.png", "part.png"),
        ("/data/local-files/?d=lines%2Fone%2Fpart%201.png", "part 1.png", "part 1.png"),
        ("/data/local-files/?d=part.png", "part.png", "part.png"),
    ],
)
def test_an_export_of_label_studio_is_read(tmp_path: Path, file_name: str, stored: str, shown: str) -> None:
    (item,) = read_source(label_studio(tmp_path / "export", file_name, stored)).items
    assert item.file_name == shown
    np.testing.assert_array_equal(item.masks[1], drawn(POLYGON))
    np.testing.assert_array_equal(item.masks[2], disc())


def test_a_box_that_was_drawn_in_a_tool_is_named_as_no_mask(tmp_path: Path) -> None:
    path = cvat(tmp_path, ("images",)) / "annotations" / "instances_default.json"
    content = json.loads(path.read_text())
    content["annotations"][3]["segmentation"] = []
    path.write_text(json.dumps(content))
    with pytest.raises(InvalidInput, match=r"has no segmentation on line2/part\.png; a box"):
        read_source(tmp_path)


def test_what_came_from_a_tool_goes_back_to_it_without_a_loss(tmp_path: Path) -> None:
    found = read_source(cvat(tmp_path / "in", ("images",)))
    write_coco(found, tmp_path / "out")
    again: Dataset = read_source(tmp_path / "out")
    assert [item.file_name for item in again.items] == ["line1__part.png", "line2__part.png", "turned.jpg"]
    for before, after in zip(found.items, again.items, strict=True):
        assert before.image == after.image
        for class_id, mask in before.masks.items():
            np.testing.assert_array_equal(after.masks[class_id], mask)
