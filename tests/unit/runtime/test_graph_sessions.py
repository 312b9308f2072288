"""Which session a run gets: all cores alone, one core side by side, and one for threads that give way."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from vplab.runtime import graph_sessions, onnx_session
from vplab.runtime.at_work import at_work
from vplab.runtime.giving_way import give_way, gives_way
from vplab.runtime.graph_sessions import GraphSessions, open_sessions, serves_side_by_side
from vplab.runtime.onnx_session import OnnxSettings, num_cores, releasing_run
from vplab.runtime.server_info import resident_memory_bytes


def in_thread(work):
    found = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def take(sessions: GraphSessions):
    with sessions.turn() as session:
        return session


def test_a_run_that_is_alone_gets_all_cores_and_further_ones_get_one_each():
    sessions, other = GraphSessions("wide", "narrow"), GraphSessions("other wide", "other narrow")
    with sessions.turn() as first:
        assert (first, in_thread(lambda: take(sessions)), in_thread(lambda: take(other))) == (
            "wide",
            "narrow",
            "other narrow",
        )
    assert take(sessions) == "wide"


def test_a_thread_that_makes_something_of_a_run_needs_its_core_still():
    sessions = GraphSessions("wide", "narrow")
    with at_work():
        assert (take(sessions), in_thread(lambda: take(sessions)), take(sessions)) == ("wide", "narrow", "wide")
    assert in_thread(lambda: take(sessions)) == "wide"


def test_a_run_that_fails_leaves_the_cores_to_the_next():
    sessions = GraphSessions("wide", "narrow")
    with pytest.raises(RuntimeError), sessions.turn():
        raise RuntimeError
    assert take(sessions) == "wide"


def test_threads_that_give_way_get_one_core_and_take_none_from_others():
    sessions = GraphSessions("wide", "narrow")

    def in_background():
        give_way()
        with sessions.turn() as mine:
            return mine, in_thread(lambda: take(sessions))

    assert in_thread(in_background) == ("narrow", "wide")


def test_runs_of_a_graph_with_one_session_take_turns():
    sessions, order = GraphSessions("wide"), []

    def second():
        with sessions.turn():
            order.append("second")

    with sessions.turn():
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.05)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="threads have no niceness of their own elsewhere")
def test_giving_way_is_a_threads_own_affair():
    before = os.getpriority(os.PRIO_PROCESS, 0)

    def nice() -> int:
        give_way()
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    assert in_thread(nice) == min(before + 10, 19)
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
    assert not gives_way()


def test_large_graphs_are_loaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    opened = []

    def create(graph, settings):
        opened.append(settings.intra_op_threads)
        return object()

    monkeypatch.setattr(graph_sessions, "create_session", create)
    monkeypatch.setattr(graph_sessions, "_MAX_TWICE_BYTES", 100)
    settings = OnnxSettings(providers=("cpu",), intra_op_threads=4)
    (tmp_path / "small.onnx").write_bytes(b"0" * 100)
    assert open_sessions(tmp_path / "small.onnx", settings).num_sessions == 2
    (tmp_path / "large.onnx").write_bytes(b"0" * 10)
    (tmp_path / "large.onnx.data").write_bytes(b"0" * 91)
    assert open_sessions(tmp_path / "large.onnx", settings).num_sessions == 1
    assert opened == [4, 1, 4]


def test_versions_that_come_and_go_leave_no_memory_behind(tmp_path: Path):
    onnx = pytest.importorskip("onnx", reason="making a graph needs the training extra")
    side = 2000  # 15 MiB of weights
    weights = onnx.numpy_helper.from_array(np.ones((side, side), np.float32), "w")
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["B", side]) for name in ("x", "y"))
    nodes = [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])]
    graph = onnx.helper.make_graph(nodes, "product", [x], [y], [weights])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    (tmp_path / "product.onnx").write_bytes(model.SerializeToString())
    settings = OnnxSettings(providers=("cpu",), intra_op_threads=2)
    sizes = []
    for batch in (1, 300, 20) * 10:
        sessions = open_sessions(tmp_path / "product.onnx", settings)
        releasing_run(sessions.wide, ["y"], {"x": np.ones((1, side), np.float32)})
        with sessions.turn() as session:
            session.run(None, {"x": np.ones((batch, side), np.float32)})
        del sessions, session
        sizes.append(resident_memory_bytes())
    # The allocator may keep the place of one more copy of the weights; a leak would be of eighteen.
    assert max(sizes[-6:]) - max(sizes[6:12]) < 2 * weights.ByteSize()


def test_one_core_or_a_gpu_serves_one_run_at_a_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(onnx_session, "num_gpus", lambda: 1)
    assert not serves_side_by_side(OnnxSettings(providers=("cuda", "cpu")))
    assert not serves_side_by_side(OnnxSettings(providers=("cpu",), intra_op_threads=1))
    assert serves_side_by_side(OnnxSettings(providers=("cpu",), intra_op_threads=2))


def test_no_more_cores_are_counted_than_the_control_group_allows(monkeypatch: pytest.MonkeyPatch):
    files = {"/sys/fs/cgroup/cpu.max": "150000 100000"}
    monkeypatch.setattr(onnx_session, "_read", lambda path: files.get(path, ""))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    num_cores.cache_clear()
    try:
        assert num_cores() == 2
        files["/sys/fs/cgroup/cpu.max"] = "max 100000"
        num_cores.cache_clear()
        assert num_cores() == 4
        for index in range(4):
            files[f"/sys/devices/system/cpu/cpu{index}/topology/thread_siblings_list"] = f"{index % 2},{index % 2 + 2}"
        num_cores.cache_clear()
        assert num_cores() == 2
    finally:
        num_cores.cache_clear()
