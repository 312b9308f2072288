"""Sessions on the CPU, and clear errors for what cannot be run."""

import subprocess
import sys

import numpy as np
import pytest

from vplab.errors import FailedPrecondition, Unavailable
from vplab.runtime import onnx_session
from vplab.runtime.onnx_session import OnnxSettings, create_session, device_of

onnx = pytest.importorskip("onnx", reason="making a graph needs the training extra")


@pytest.fixture
def graph() -> bytes:
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["B", 3]) for name in ("x", "y")]
    nodes = [onnx.helper.make_node("Add", ["x", "x"], ["y"])]
    model = onnx.helper.make_graph(nodes, "double", values[:1], values[1:])
    opset = [onnx.helper.make_opsetid("", 18)]
    return onnx.helper.make_model(model, opset_imports=opset, ir_version=9).SerializeToString()


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(onnx_session, "num_gpus", lambda: 0)


def test_a_graph_runs_from_its_bytes(graph, no_gpu):
    session = create_session(graph, OnnxSettings(intra_op_threads=1))
    (y,) = session.run(None, {"x": np.ones((2, 3), np.float32)})
    np.testing.assert_array_equal(y, np.full((2, 3), 2, np.float32))
    assert device_of(session) == "cpu"


def test_a_graph_runs_from_its_file(graph, no_gpu, tmp_path):
    (tmp_path / "double.onnx").write_bytes(graph)
    session = create_session(tmp_path / "double.onnx")
    assert [value.name for value in session.get_inputs()] == ["x"]


def test_the_choices_reach_the_session(graph, no_gpu):
    options = create_session(graph, OnnxSettings(intra_op_threads=1)).get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
    assert options.enable_cpu_mem_arena
    said = {
        "session.use_env_allocators": "1",
        "session.use_device_allocator_for_initializers": "1",
        "session.intra_op.allow_spinning": "0",
        "session.force_spinning_stop": "1",
    }
    assert {key: options.get_session_config_entry(key) for key in said} == said


def test_threads_may_wait_busily_but_within_a_run_only(graph, no_gpu):
    options = create_session(graph, OnnxSettings(spins=True)).get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "1"
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


SHARE_AND_RELEASE = """
import os, sys
from pathlib import Path
import numpy as np
from vplab.runtime.onnx_session import OnnxSettings, create_session, releasing_run

def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

graph = sys.stdin.buffer.read()
one, many = ({"x": np.ones((count, 3), np.float32)} for count in (1, 4_000_000))  # 46 MiB and as much again
first, second = (create_session(graph, OnnxSettings(providers=("cpu",))) for _ in range(2))
first.run(None, one)  # an arena never gives its first piece back
first.run(None, many)
kept = resident_bytes()
second.run(None, many)
assert resident_bytes() - kept < 10e6, "the second session took memory of its own"
(y,) = releasing_run(second, ["y"], one)
np.testing.assert_array_equal(y, [[2, 2, 2]])
assert kept - resident_bytes() > 40e6, "nothing was given back"
"""


def test_sessions_share_an_arena_that_a_run_can_empty(graph):
    # In a process of its own: what ran before would have left room in the arena, which then need not grow.
    ran = subprocess.run([sys.executable, "-c", SHARE_AND_RELEASE], input=graph, capture_output=True, check=False)
    assert ran.returncode == 0, ran.stderr.decode()


@pytest.mark.parametrize("content", [b"", b"no graph", b"\x00" * 100])
def test_bytes_that_are_no_graph_are_unsupported(content, no_gpu):
    with pytest.raises(FailedPrecondition) as refusal:
        create_session(content)
    assert refusal.value.reason == "MODEL_UNSUPPORTED"


def test_a_file_that_is_missing_is_unsupported(no_gpu, tmp_path):
    with pytest.raises(FailedPrecondition, match="does not exist"):
        create_session(tmp_path / "none.onnx")


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_is_named_is_not_replaced_in_silence(graph, no_gpu, provider):
    with pytest.raises(Unavailable, match=f"{provider} was asked for|built without {provider}"):
        create_session(graph, OnnxSettings(providers=(provider,)))
