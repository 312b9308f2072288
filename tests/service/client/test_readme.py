"""The example in clients/README.md does what it says."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fakes.segmentation_server import FakeSegmentation, serving_in_threads

README = Path(__file__).parents[3] / "clients" / "README.md"


def test_the_example_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pixels = np.full((40, 60), 40, np.uint8)
    pixels[5:20, 10:30] = 200
    for name in ("reference.png", "part.png"):
        Image.fromarray(pixels).save(name)
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    segmentation = FakeSegmentation()
    with serving_in_threads(segmentation) as address:
        # The click of the example lies outside of so small an image; the fake does not mind.
        exec(re.sub(r"localhost:\d+", address, example), {})
    assert segmentation.num_segmented == 1
    assert capsys.readouterr().out.startswith("True 0.69")
