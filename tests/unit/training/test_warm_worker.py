"""What a worker keeps between jobs, and how many threads it takes."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fakes.fake_worker import SETTINGS as WORKER_SETTINGS
from fakes.tiny_tuning import SEGMENTER, tiny_decoder
from vplab.training.values import ModelRef
from vplab.training.worker import job
from vplab.training.worker.job import TuningWorker
from vplab.vision.sam.onnx_decoder import PromptDecoder

SETTINGS = replace(WORKER_SETTINGS, niceness=0)  # that of the tests is not to be changed


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_torch_has_the_worker_s_number_of_threads() -> None:
    TuningWorker(SETTINGS)
    assert torch.get_num_threads() == 3


def test_the_two_bases_used_last_stay_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    loaded: list[Path] = []

    def load(folder: Path, spec: object) -> PromptDecoder:
        loaded.append(folder)
        return tiny_decoder()

    monkeypatch.setattr(job, "load_decoder", load)
    worker = TuningWorker(SETTINGS)

    def base(name: str) -> PromptDecoder:
        return worker._base(ModelRef(f"artifacts/{name}/versions/1", name), tmp_path / name, SEGMENTER)

    first = base("a")
    assert base("a") is first
    base("b")
    assert base("a") is first
    base("c")
    assert base("a") is first, "b was used least recently"
    base("b")
    assert [folder.name for folder in loaded] == ["a", "b", "c", "b"]
