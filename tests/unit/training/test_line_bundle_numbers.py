"""The numbers in the C++ program of a line bundle are those of the modules that it is a port of."""

import re
from pathlib import Path

import pytest

from vplab.training import line_bundle
from vplab.vision import colour_evidence, tiling
from vplab.vision.matching import pixel_classifier, proposals
from vplab.vision.pipeline import decoding, grouping, segment

_ALL = (colour_evidence, decoding, grouping, pixel_classifier, proposals, segment, tiling)
MODULES = {module.__name__.rpartition(".")[2]: module for module in _ALL}
NUMBER = re.compile(r"constexpr \w+ (k\w+) = ([\de.-]+)f?(?: / ([\d.]+))?;(?: +// (\w+)\.([\w.]+))?")


def numbers() -> list[tuple[str, float, str, str]]:
    """Return name, value, and module and name in Python of every constant."""
    texts = [path.read_text() for path in (Path(line_bundle.__file__).parent / "cpp").glob("*.hpp")]
    return [
        (name, float(value) / float(divisor or 1), module, path)
        for text in texts
        for name, value, divisor, module, path in NUMBER.findall(text)
    ]


@pytest.mark.parametrize(("name", "value", "module", "path"), numbers())
def test_a_number_is_that_of_the_module_named_beside_it(name: str, value: float, module: str, path: str) -> None:
    found: object = MODULES[module]
    for part in path.split("."):
        found = getattr(found, part)
    assert value == found


def test_no_number_is_overlooked() -> None:
    texts = "".join(path.read_text() for path in (Path(line_bundle.__file__).parent / "cpp").glob("*.?pp"))
    assert len(numbers()) == len(re.findall(r"^constexpr ", texts, re.MULTILINE))
