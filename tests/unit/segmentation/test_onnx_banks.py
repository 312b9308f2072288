"""Rows on the device: written in place, one at a time, and read by the graph."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from safetensors.numpy import save_file

from vplab.errors import DataLoss, InvalidInput
from vplab.runtime.onnx_session import OnnxSettings
from vplab.segmentation.backends import onnx_banks
from vplab.segmentation.backends.onnx_banks import OnnxBank, OnnxBankLoader
from vplab.segmentation.errors import ModelUnsupported
from vplab.vision.adapters.bank_layout import BANK_INPUT, INDEX_INPUT, LAYOUT_KEY, BankLayout, BankTensor
from vplab.vision.specs import AdapterBankSpec, SegmenterSpec

LAYOUT = BankLayout(
    tensors=(BankTensor(name="shift", shape=(2,), neutral=0.0), BankTensor(name="scale", shape=(2, 1), neutral=1.0))
)
SPEC = SegmenterSpec(
    family="t",
    architecture="t",
    input_size=64,
    embedding_shape=(2, 4, 4),
    low_res_hw=(16, 16),
    num_planes=4,
    adapter_bank=AdapterBankSpec(),
)


def bank_onnx(layout: str | None = LAYOUT.model_dump_json()) -> bytes:
    """Return a bank whose four planes are the four numbers of a prompt's row, and whose IoU predictions are too."""
    inputs = [
        ("image_embedding", TensorProto.FLOAT, ["B", 2, 4, 4]),
        ("image_index", TensorProto.INT64, ["N"]),
        ("point_coords", TensorProto.FLOAT, ["N", "P", 2]),
        ("point_labels", TensorProto.FLOAT, ["N", "P"]),
        ("mask_input", TensorProto.FLOAT, ["N", 1, 16, 16]),
        ("has_mask_input", TensorProto.FLOAT, ["N"]),
        (BANK_INPUT, TensorProto.FLOAT16, ["A", 4]),
        (INDEX_INPUT, TensorProto.INT64, ["N"]),
    ]
    nodes = [
        helper.make_node("Gather", [BANK_INPUT, INDEX_INPUT], ["rows"], axis=0),
        helper.make_node("Cast", ["rows"], ["iou_predictions"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["iou_predictions", "axes"], ["planes"]),
        helper.make_node("Mul", ["mask_input", "zero"], ["nothing"]),
        helper.make_node("Add", ["planes", "nothing"], ["low_res_logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "bank",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [
            helper.make_tensor_value_info("low_res_logits", TensorProto.FLOAT, ["N", 4, 16, 16]),
            helper.make_tensor_value_info("iou_predictions", TensorProto.FLOAT, ["N", 4]),
        ],
        [
            helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3]),
            helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    if layout is not None:
        helper.set_model_props(model, {LAYOUT_KEY: layout})
    return bytes(model.SerializeToString())


def loader(max_bytes: int = 80) -> OnnxBankLoader:
    return OnnxBankLoader(OnnxSettings(providers=("cpu",), intra_op_threads=1), max_bytes)


def load(folder: Path, graph: bytes) -> OnnxBank:
    (folder / "bank.onnx").write_bytes(graph)
    return loader().load("artifacts/s/versions/1", "a bank", folder, SPEC)


def planes(bank: OnnxBank, *index: int) -> list[list[float]]:
    count = len(index)
    logits, ious = bank.run(
        index,
        np.zeros((1, 2, 4, 4), np.float32),
        np.zeros(count, np.int64),
        np.zeros((count, 1, 2), np.float32),
        np.zeros((count, 1), np.float32),
        np.zeros((count, 1, 16, 16), np.float32),
        np.zeros(count, np.float32),
    )
    np.testing.assert_array_equal(logits[:, :, 0, 0], ious)
    return logits[:, :, 3, 5].tolist()  # type: ignore[no-any-return]


def test_a_row_is_written_in_place_and_the_others_stay(tmp_path: Path) -> None:
    bank = load(tmp_path, bank_onnx())
    assert (bank.capacity, bank.device) == (9, "cpu")  # ten rows of eight bytes, one of them the base
    address = bank._rows.data_ptr()
    bank.write(2, np.array([1, 2, 3, 4], np.float16))
    bank.write(9, np.array([5, 6, 7, 8], np.float16))
    assert planes(bank, 9, 2, 0, 3, 2) == [[5, 6, 7, 8], [1, 2, 3, 4], [0] * 4, [0] * 4, [1, 2, 3, 4]]
    bank.write(2, np.array([9, 9, 9, 9], np.float16))
    assert planes(bank, 2, 9, 0) == [[9] * 4, [5, 6, 7, 8], [0] * 4]
    assert bank._rows.data_ptr() == address


@pytest.mark.parametrize("index", [0, -1, 10])
def test_the_base_and_what_is_no_row_cannot_be_written(tmp_path: Path, index: int) -> None:
    with pytest.raises(ValueError, match=r"is not in 1\.\.9"):
        load(tmp_path, bank_onnx()).write(index, np.zeros(4, np.float16))


def test_files_become_rows_relative_to_the_base(tmp_path: Path) -> None:
    save_file({"scale": np.array([[1.5], [1]], np.float32)}, tmp_path / "adapter.safetensors")
    np.testing.assert_array_equal(loader().read_row(tmp_path, LAYOUT), [0, 0, 0.5, 0])


def test_files_that_make_no_row_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"lack adapter\.safetensors"):
        loader().read_row(tmp_path, LAYOUT)
    (tmp_path / "adapter.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00no json!")
    with pytest.raises(DataLoss, match=r"adapter\.safetensors cannot be read"):
        loader().read_row(tmp_path, LAYOUT)
    save_file({"shift": np.zeros(3, np.float32)}, tmp_path / "adapter.safetensors")
    with pytest.raises(InvalidInput, match=r"shift is \[3\]; the bank takes \[2\]"):
        loader().read_row(tmp_path, LAYOUT)


@pytest.mark.parametrize("layout", [None, "{}", "no json"])
def test_a_graph_that_does_not_say_what_a_row_holds_is_refused(tmp_path: Path, layout: str | None) -> None:
    with pytest.raises(ModelUnsupported, match=r"bank\.onnx: not a valid bank layout"):
        load(tmp_path, bank_onnx(layout))


def test_a_graph_whose_rows_are_of_another_width_is_refused(tmp_path: Path) -> None:
    wider = BankLayout(tensors=(*LAYOUT.tensors, BankTensor(name="more", shape=(1,), neutral=0.0)))
    with pytest.raises(ModelUnsupported, match="does not take the inputs that its spec says"):
        load(tmp_path, bank_onnx(wider.model_dump_json()))


def test_the_writer_is_one_scatter() -> None:
    """The service has no package that makes graphs, so this one lies beside the code; write it anew with this."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("ScatterND", ["rows", "index", "row"], ["written"])],
        "row_writer",
        [
            value("rows", TensorProto.FLOAT16, ["A", "W"]),
            value("index", TensorProto.INT64, ["K", 1]),
            value("row", TensorProto.FLOAT16, ["K", "W"]),
        ],
        [value("written", TensorProto.FLOAT16, ["A", "W"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    assert onnx.load(onnx_banks._WRITER) == model
