"""``vplab prompt``: what a person sees and what is stored."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fakes.segmentation_server import FakeSegmentation

Vplab = Callable[..., Any]


def test_clicks_become_a_mask_a_picture_and_a_prompt_set(
    vplab: Vplab, folder: Path, segmentation: FakeSegmentation, tmp_path: Path
) -> None:
    ran = vplab("prompt", folder / "1.png", "--point", "20,10", "--point", "25,9", "--background", "2,2",
                "--save", "scratch", "--class-id", 3, "--class-name", "Scratch", "--json", "figures.json")  # fmt: skip
    assert ran.code == 0, ran.text
    (stored,) = segmentation.prompt_sets["scratch"]
    assert [(c.class_id, c.display_name) for c in stored.classes] == [(3, "Scratch")]
    assert stored.references[0].masks[0].class_id == 3
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["area_px"] == 11 * 20
    assert figures["prompt_set"]["name"] == "artifacts/scratch/versions/1"
    drawn = np.asarray(Image.open(tmp_path / "1-prompt.png"))
    original = np.asarray(Image.open(folder / "1.png").convert("RGB"))
    assert drawn.shape == original.shape
    assert (drawn != original).any()


def test_one_click_is_ambiguous_and_another_mask_can_be_chosen(vplab: Vplab, folder: Path, tmp_path: Path) -> None:
    first = vplab("prompt", folder / "1.png", "--point", "20,10", "--json", "a.json")
    other = vplab("prompt", folder / "1.png", "--point", "20,10", "--choose", 2, "--json", "b.json")
    assert (first.code, other.code) == (0, 0)
    assert "--choose" in first.err
    areas = [json.loads((tmp_path / name).read_text())["area_px"] for name in ("a.json", "b.json")]
    assert areas == [11 * 20, 40 * 60]


def test_a_mask_file_serves_instead_of_clicks(vplab: Vplab, folder: Path, segmentation: FakeSegmentation) -> None:
    labels = np.zeros((40, 60), np.uint8)
    labels[:10], labels[10:20] = 1, 2
    Image.fromarray(labels).save(folder.parent / "labels.png")
    ran = vplab("prompt", folder / "1.png", "--mask", "labels.png", "--mask-value", 2, "--save", "scratch")
    assert ran.code == 0, ran.text
    assert list(segmentation.prompt_sets["scratch"][0].references[0].masks[0].mask.runs) == [600, 600, 1200]


def test_adding_keeps_the_earlier_references_and_classes(
    vplab: Vplab, folder: Path, segmentation: FakeSegmentation, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unverified(self: Any, sha256: str, **_: Any) -> bytes:
        return segmentation.blobs[sha256]

    monkeypatch.setattr("vplab.client.registry.area.AsyncRegistry.read_blob", unverified)
    vplab("prompt", folder / "1.png", "--point", "20,10", "--save", "scratch")
    vplab("prompt", folder / "1.png", "--point", "20,10", "--save", "scratch", "--class-name", "Scratch")
    vplab("prompt", folder / "4.png", "--point", "20,10", "--save", "scratch", "--add")
    again = segmentation.prompt_sets["scratch"][-1]
    assert [c.display_name for c in again.classes] == ["Scratch"]
    ran = vplab("prompt", folder / "2.png", "--point", "20,10", "--save", "scratch", "--add", "--class-id", 2,
                "--class-name", "dent")  # fmt: skip
    assert ran.code == 0, ran.text
    newest = segmentation.prompt_sets["scratch"][-1]
    assert [c.display_name for c in newest.classes] == ["Scratch", "dent"]
    assert [[m.class_id for m in r.masks] for r in newest.references] == [[1], [1], [2]]


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--point", "20"], 2, "X,Y"),
        (["--point", "a,b"], 2, "X,Y"),
        (["--box", "1,2,3"], 2, "X0,Y0,X1,Y1"),
        (["--point", "nan,1"], 2, "X,Y"),
        ([], 3, "--point"),
        (["--point", "1,1", "--add"], 3, "--save"),
        (["--point", "1,1", "--mask", "labels.png"], 3, "not both"),
        (["--mask", "absent.png"], 3, "absent.png"),
        (["--mask", "small.png"], 3, "5x5"),
        (["--mask", "labels.png", "--mask-value", "9"], 3, "marks nothing"),
        (["--point", "1,1", "--choose", "7"], 3, "0 to 2"),
        (["--point", "1,1", "--save", "new", "--add"], 5, "--add"),
    ],
)
def test_what_cannot_work_ends_with_one_clear_line(
    vplab: Vplab, folder: Path, arguments: list[str], code: int, text: str
) -> None:
    Image.fromarray(np.ones((40, 60), np.uint8)).save(folder.parent / "labels.png")
    Image.fromarray(np.ones((5, 5), np.uint8)).save(folder.parent / "small.png")
    ran = vplab("prompt", folder / "1.png", *arguments)
    assert ran.code == code, ran.text
    assert text in ran.text
    assert "Traceback" not in ran.text


def test_a_file_that_is_no_image_is_refused_before_anything_is_sent(vplab: Vplab, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("text")
    ran = vplab("prompt", "text.png", "--point", "1,1")
    assert ran.code == 3
    assert "image.encoded" in ran.err
