"""How good the adapter is that an alias serves now, on the images and prompts that a new one was validated with."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vplab.client.datasets import DatasetItem
from vplab.training.models.compare import open_graph
from vplab.training.tuning.schedule import mean_metrics, plan_runs
from vplab.training.tuning.validation import validate
from vplab.training.tuning.values import TuningExample, TuningMetrics, TuningOptions
from vplab.vision.adapters.spec import EARLY_INPUT
from vplab.vision.sam.onnx_decoder import INPUT_NAMES, OUTPUT_NAMES
from vplab.vision.specs import SegmenterSpec


class GraphDecoder:
    """A decoder's graph where a torch decoder is expected: what is measured is what is served."""

    def __init__(self, path: Path) -> None:
        """Open a graph. Raises FailedPrecondition for one that ONNX Runtime cannot load."""
        self._session = open_graph(path)
        self.needs_early_features = EARLY_INPUT in {value.name for value in self._session.get_inputs()}

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (N, M, h, w) and predicted IoU (N, M) for the inputs of the graph, on the CPU."""
        names = (*INPUT_NAMES, EARLY_INPUT) if self.needs_early_features else INPUT_NAMES
        feed = {name: np.ascontiguousarray(value.numpy()) for name, value in zip(names, inputs, strict=True)}
        logits, ious = self._session.run(list(OUTPUT_NAMES), feed)
        return torch.from_numpy(logits), torch.from_numpy(ious)


def validation_of(
    graph: Path, examples: Sequence[TuningExample], segmenter: SegmenterSpec, options: TuningOptions
) -> TuningMetrics:
    """Measure a decoder's graph as ``tune`` measured: the mean over its folds' left-out images, or all images."""
    decoder = GraphDecoder(graph)
    groups = [[e for e in examples if e.is_original and e.image_index in left] for left in _left_out(examples, options)]
    return mean_metrics([validate(decoder, group, segmenter)[0] for group in groups])  # type: ignore[arg-type]


def num_known(
    items: Sequence[DatasetItem], sha256s: frozenset[str], examples: Sequence[TuningExample], options: TuningOptions
) -> int:
    """Return how many of the validation images are among files that an adapter was tuned on."""
    validated = frozenset[int]().union(*_left_out(examples, options))
    return sum(hashlib.sha256(items[index].image).hexdigest() in sha256s for index in validated)


def _left_out(examples: Sequence[TuningExample], options: TuningOptions) -> Iterator[frozenset[int]]:
    images = [example.image_index for example in examples]
    folds = [run.left_out for run in plan_runs(images, False, options) if run.is_fold]
    return iter(folds or [frozenset(images)])
