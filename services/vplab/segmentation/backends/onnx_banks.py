"""Segmenters' banks as ONNX graphs, their rows resident on the device through IO binding.

A row is put in place by a second graph, one ScatterND whose output is bound to its input's memory, so that nothing but
the row travels and nothing is copied, on CUDA as on the CPU. On the CPU memory of rows that nobody has written is never
touched, so it costs nothing.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from vplab.errors import DataLoss, InvalidInput
from vplab.runtime.graph_sessions import GraphSessions
from vplab.runtime.onnx_session import OnnxSettings, create_session, device_of
from vplab.segmentation.backends._decoder_graph import INPUTS, OUTPUTS, bytes_in_memory, open_graph, warm_up
from vplab.segmentation.errors import ModelUnsupported
from vplab.segmentation.ports import Decoded, Row
from vplab.vision.adapters.bank_layout import BANK_INPUT, INDEX_INPUT, LAYOUT_KEY, BankLayout
from vplab.vision.specs import SegmenterSpec

_WRITER: Final = Path(__file__).parent / "row_writer.onnx"
_TENSORS: Final = "adapter.safetensors"
_ITEM_BYTES: Final = np.dtype(np.float16).itemsize


class OnnxBank:
    """Implements LoadedBank."""

    def __init__(
        self, sessions: GraphSessions, writer: Any, device: str, layout: BankLayout, capacity: int, graph_bytes: int
    ) -> None:
        """sessions: of the bank's graph. writer: of _WRITER. graph_bytes: memory of the graph."""
        import onnxruntime as ort

        self._sessions = sessions
        self._writer = writer
        self.device = device
        self.layout = layout
        self.capacity = capacity
        memory = np.zeros((1 + capacity, layout.width), np.float16)
        self.num_bytes = graph_bytes + memory.nbytes
        kind, _, number = device.partition(":")
        # On the CPU this shares numpy's memory; on a GPU the zeros are copied there, once.
        self._rows = ort.OrtValue.ortvalue_from_numpy(memory, kind, int(number or 0))

    def write(self, index: int, row: Row) -> None:
        """Put an adapter in a row."""
        if not 1 <= index <= self.capacity:
            raise ValueError(f"row {index} is not in 1..{self.capacity}")
        binding = self._writer.io_binding()
        binding.bind_ortvalue_input("rows", self._rows)
        binding.bind_cpu_input("index", np.array([[index]], np.int64))
        binding.bind_cpu_input("row", np.ascontiguousarray(row[None]))
        binding.bind_ortvalue_output("written", self._rows)
        self._writer.run_with_iobinding(binding)

    def run(
        self,
        adapter_index: Sequence[int],
        image_embedding: NDArray[np.float32],
        image_index: NDArray[np.int64],
        point_coords: NDArray[np.float32],
        point_labels: NDArray[np.float32],
        mask_input: NDArray[np.float32],
        has_mask_input: NDArray[np.float32],
    ) -> Decoded:
        """Decode a batch."""
        values = (image_embedding, image_index, point_coords, point_labels, mask_input, has_mask_input)
        with self._sessions.turn() as session:
            binding = session.io_binding()
            for name, value in zip(INPUTS, values, strict=True):
                binding.bind_cpu_input(name, np.ascontiguousarray(value))
            binding.bind_cpu_input(INDEX_INPUT, np.array(adapter_index, np.int64))
            binding.bind_ortvalue_input(BANK_INPUT, self._rows)
            for name in OUTPUTS:
                binding.bind_output(name, "cpu")
            session.run_with_iobinding(binding)
        logits, ious = binding.copy_outputs_to_cpu()
        return logits, ious


class OnnxBankLoader:
    """Implements BankLoader."""

    def __init__(self, settings: OnnxSettings, max_bytes: int) -> None:
        """max_bytes: of the rows of one bank; there are as many as fit, and one at least."""
        self._settings = settings
        self._max_bytes = max_bytes

    def load(self, name: str, role: str, folder: Path, spec: SegmenterSpec) -> OnnxBank:
        """Load the graph, check its names and run it once on two prompts of the base."""
        assert spec.adapter_bank is not None
        path = folder / spec.adapter_bank.graph
        sessions = open_graph(name, role, path, self._settings, (BANK_INPUT, INDEX_INPUT))
        try:
            layout = BankLayout.from_json(sessions.wide.get_modelmeta().custom_metadata_map.get(LAYOUT_KEY, ""))
        except InvalidInput as error:
            raise ModelUnsupported(name, role, f"{path.name}: {error.message}") from error
        base = {BANK_INPUT: np.zeros((1, layout.width), np.float16), INDEX_INPUT: np.zeros(2, np.int64)}
        warm_up(name, role, sessions.wide, spec, base)
        writer = create_session(_WRITER, self._settings)
        capacity = max(1, self._max_bytes // (_ITEM_BYTES * layout.width) - 1)
        device = device_of(sessions.wide, self._settings)
        return OnnxBank(sessions, writer, device, layout, capacity, bytes_in_memory(path, sessions))

    def read_row(self, folder: Path, layout: BankLayout) -> Row:
        """Read an adapter's tensors and lay them out."""
        try:
            return layout.row(load_file(folder / _TENSORS))
        except FileNotFoundError as error:
            raise InvalidInput(f"its files lack {_TENSORS}", field="adapter") from error
        except (SafetensorError, OSError) as error:
            raise DataLoss(f"{_TENSORS} cannot be read: {error}") from error
