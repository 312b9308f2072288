"""Comparing an encoder's graph: what a single wrong run among good ones does."""

from pathlib import Path

import numpy as np
import pytest

from vplab.training.models import compare
from vplab.training.models.compare import TorchImages, compare_encoder
from vplab.vision.preprocessing import frame_transform
from vplab.vision.specs import EncoderSpec, OutputSpec, Preprocessing

SPEC = EncoderSpec(
    family="sam",
    architecture="vit_b",
    preprocessing=Preprocessing(resize="longest_side", size=16, mean_rgb=(0, 0, 0), std_rgb=(1, 1, 1)),
    outputs=(OutputSpec(name="image_embedding", role="image_embedding", shape=(3, 16, 16), stride=1),),
)


class Echo:
    """A session whose answer is the input, but for one run that is not a number."""

    def __init__(self, bad_run: int) -> None:
        self.bad_run = bad_run
        self.sizes: list[int] = []

    def run(self, session: "Echo", names: list[str], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        self.sizes.append(len(feed["image"]))
        return [feed["image"] * (np.nan if len(self.sizes) - 1 == self.bad_run else 1)]


@pytest.mark.parametrize(("bad_run", "failing"), [(-1, None), (3, "encode 1 at a time"), (5, "encode 3 at a time")])
def test_every_run_counts_and_one_that_is_not_a_number_fails_its_size(
    bad_run: int, failing: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.random.default_rng(0).normal(size=(20, 3, 16, 16)).astype(np.float32)
    transforms = tuple(frame_transform((16, width), SPEC.preprocessing) for width in range(1, 21))
    session = Echo(bad_run)
    monkeypatch.setattr(compare, "open_graph", lambda path: session)
    monkeypatch.setattr(compare, "releasing_run", session.run)
    encoded, cases = compare_encoder(Path("encoder.onnx"), SPEC, TorchImages(transforms, images, (images,)))
    assert session.sizes == [1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 1]
    assert sum(len(case.image_sizes_hw) for case in cases) == 20
    assert [case.name for case in cases if not case.passed] == ([failing] if failing else [])
    assert np.isnan(encoded.actual).any() == (failing is not None)
