"""What ships was compared with what it was made from: on twenty images, with every kind of prompt."""

import json
from pathlib import Path

import pytest

BUILTIN = Path(__file__).parents[2] / "services" / "vplab" / "registry" / "builtin"
MODELS = sorted(path.parent for path in BUILTIN.glob("*/model.json"))
REPORTS = sorted(BUILTIN.glob("*/*parity.json"))
NUM_IMAGES = 20


def test_every_graph_that_ships_has_a_report():
    graphs = {path.relative_to(BUILTIN).as_posix() for path in BUILTIN.glob("*/*.onnx")}
    own = {"encoder.onnx": "parity.json", "decoder.onnx": "parity.json", "bank.onnx": "bank_parity.json"}
    reported = {path.relative_to(BUILTIN).as_posix() for path in REPORTS}
    assert MODELS
    assert {f"{Path(graph).parent}/{own[Path(graph).name]}" for graph in graphs} == reported


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_shipped_report_compares_every_quantity_on_twenty_images(path):
    """If it does not: ``python -m vplab.training.foundation parity --models services/vplab/registry/builtin``."""
    report = json.loads(path.read_bytes())
    assert report["passed"]
    images: dict[str, set[tuple[int, int]]] = {}
    for case in report["cases"]:
        # An encoder's cases are batches of one output; a decoder's are kinds of prompts, each of all images.
        subject = case["quantity"] if case["num_prompts"] is None else case["name"]
        images.setdefault(subject, set()).update(map(tuple, case["image_sizes_hw"]))
    assert {subject: len(sizes) for subject, sizes in images.items()} == dict.fromkeys(images, NUM_IMAGES)
    shapes = {height > width for sizes in images.values() for height, width in sizes}
    assert shapes == {True, False}, "wide and tall"


@pytest.mark.parametrize(
    "path", [p for p in REPORTS if p.parent.name.endswith("segmenter")], ids=lambda path: path.stem
)
def test_a_shipped_segmenter_is_compared_on_every_kind_of_prompt(path):
    names = {case["name"] for case in json.loads(path.read_bytes())["cases"]}
    for kind in ("one point", "three points", "box", "box and two points", "mask input"):
        assert any(kind in name for name in names), kind
