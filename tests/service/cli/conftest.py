"""The command line against a segmentation service without models."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fakes.command_bench import Bench, running_bench
from fakes.segmentation_server import FakeSegmentation, serving_in_threads
from vplab.cli.main import app


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


@pytest.fixture
def segmentation() -> FakeSegmentation:
    return FakeSegmentation()


@pytest.fixture
def vplab(
    segmentation: FakeSegmentation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[..., Ran]]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VPLAB_HOME", str(tmp_path / "home"))
    with serving_in_threads(segmentation) as address:

        def run(*arguments: object) -> Ran:
            result = CliRunner().invoke(app, ["--address", address, *map(str, arguments)])
            assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
            return Ran(result.exit_code, result.stdout, result.stderr)

        yield run


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.chdir(tmp_path)
    with running_bench(tmp_path) as bench:
        yield bench


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six grey images, each with a bright square; 3.png has none."""
    images = tmp_path / "images"
    images.mkdir()
    for number in range(6):
        pixels = np.full((40, 60), 40, np.uint8)
        if number != 3:
            pixels[5 : 15 + number, 10:30] = 200
        Image.fromarray(pixels).save(images / f"{number}.png")
    return images


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())
