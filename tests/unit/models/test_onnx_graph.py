"""What the exporter's graphs become in ONNX Runtime."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

from vplab.vision.sam.onnx_graph import batch_axis, to_onnx


@pytest.mark.parametrize("folds_constants", [True, False])
def test_a_gelu_is_one_operator_in_onnx_runtime(tmp_path: Path, folds_constants: bool) -> None:
    module = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4), nn.GELU()).eval()
    example = torch.zeros(2, 4)
    program = to_onnx(module, (example,), ({0: batch_axis("n")},), ("x",), ("y",), folds_constants=folds_constants)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    data = program.model_proto.SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    operators = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert "Erf" not in operators
    assert operators.count("Gelu") == 2
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    with torch.inference_mode():
        expected = module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, atol=1e-6)
