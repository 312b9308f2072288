"""Every method's adapter as the files of a version: its graph, out of a template, answers as the tuned decoder does."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from fakes.random_decoders import disturb
from fakes.tiny_tuning import SEGMENTER, discs, examples_of, tiny_decoder
from vplab.training.core.options import adapter_spec
from vplab.training.tuning.values import BASE, TuningMetrics, TuningResult
from vplab.training.values import ModelRef, TuningMethod, TuningOptions, TuningPlan
from vplab.training.worker.adapter_files import AdapterVersion, write_adapter
from vplab.training.worker.graph_templates import GraphTemplates
from vplab.training.worker.stopwatch import Stopwatch
from vplab.vision.adapters.adapt import adapt

MODEL = ModelRef("artifacts/tiny/versions/1", "0" * 64)


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> GraphTemplates:
    """One for all: methods that are folded whole share the base's."""
    return GraphTemplates(tmp_path_factory.mktemp("templates"))


@pytest.mark.slow  # exporting a template takes seconds
@pytest.mark.parametrize(("method", "early_channels"), [*((m, None) for m in TuningMethod), (TuningMethod.HQ_TOKEN, 6)])
def test_a_method_s_graph_equals_its_tuned_decoder(
    method: TuningMethod, early_channels: int | None, templates: GraphTemplates, tmp_path: Path
) -> None:
    options = TuningOptions(early_features=early_channels is not None)
    adapted = disturb(adapt(tiny_decoder(), adapter_spec(method, options, early_channels)), scale=0.05).eval()
    examples = examples_of(discs(2))
    if early_channels is not None:
        random = np.random.default_rng(0)
        features = [random.normal(size=(early_channels, 8, 8)).astype(np.float16) for _ in examples]
        examples = [replace(e, early_features=feature) for e, feature in zip(examples, features, strict=True)]
    plan = TuningPlan("scratches", MODEL, MODEL, None, method, TuningOptions(seed=0))
    metrics = TuningMetrics(0.5, 0.5, None, None)
    result = TuningResult(adapted.adapter_state(), BASE, metrics, metrics, "training")
    report = write_adapter(
        tmp_path,
        AdapterVersion(plan, MODEL, SEGMENTER, {"num_steps": 1}, 2),
        adapted,
        result,
        examples,
        templates,
        Stopwatch(),
        lambda: None,
    )
    assert report.passed, [case for case in report.cases if not case.passed]
    # Two passes of clicks and boxes, compared with the merged decoder and with the one that was tuned.
    assert {case.name for case in report.cases} >= {"one point", "one point, as tuned", "box and mask input"}
    assert load_file(tmp_path / "adapter.safetensors").keys() == adapted.adapter_state().keys()
    said = json.loads((tmp_path / "adapter.json").read_text())
    assert said["adapter"] == json.loads(adapted.spec.model_dump_json())
    assert said["num_parameters"] == adapted.num_adapter_parameters
    fused = {"hq_token": " with an early feature of 6 channels" if early_channels else " without an early feature"}
    assert f"| method | {method}{fused.get(method, '')}," in (tmp_path / "MODEL_CARD.md").read_text()
