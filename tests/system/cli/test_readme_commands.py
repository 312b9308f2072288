"""The commands of README.md, one after the other as they stand there, with services of their own."""

import re
import shlex
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fakes.vplab_command import Vplab

README = Path(__file__).parents[3] / "README.md"
VERBS = ("prompt", "segment", "dataset push", "tune", "models bundle")

pytestmark = pytest.mark.slow


def commands_of(readme: Path) -> list[list[str]]:
    """Return the sequence that is about ``parts/``, without measurements and servers."""
    blocks = re.findall(r"```\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    wanted = [line for line in lines if line.startswith(tuple(f"vplab {verb} " for verb in VERBS))]
    return [shlex.split(line, comments=True)[1:] for line in wanted]


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """Six grey plates with a bright patch; 017.jpg has it where the README clicks."""
    folder = tmp_path / "parts"
    folder.mkdir()
    noise = np.random.default_rng(0)
    for number in range(6):
        pixels = noise.normal(90, 4, (320, 512))
        left, top = 370 - 50 * number, 190 - 15 * number
        pixels[top : top + 60, left : left + 90] += 110
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{17 + number:03d}.jpg", quality=95)
    return folder


def test_the_sequence_runs_as_it_stands(vplab: Vplab, parts: Path, tmp_path: Path) -> None:
    commands = commands_of(README)
    assert [command[0] for command in commands] == ["prompt", "segment", "dataset", "tune", "segment", "models"]
    for command in commands:
        # What it learns is another test's question.
        extra = ["--steps", "1", "--no-sheet"] if command[0] == "tune" else []
        ran = vplab.run(*command, *extra, cwd=tmp_path, timeout_s=1200)
        assert ran.returncode == 0, (command, ran.stdout, ran.stderr)
        if command[0] == "tune":
            assert "moved artifacts/scratches-adapter/aliases/production to " in ran.stdout
    assert len(list((tmp_path / "better" / "masks").glob("*.png"))) == 6
    with zipfile.ZipFile(tmp_path / "line-2.zip") as bundle:
        assert "line-2/segment.py" in bundle.namelist()
