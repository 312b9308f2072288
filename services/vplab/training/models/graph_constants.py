"""The weights of an exported graph and what they are used for, to have the torch modules back that it was made from."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, numpy_helper

Arrays = dict[str, NDArray[np.float32]]


class GraphConstants:
    """The constants of a graph by name, as float32, beside its operators in their order."""

    def __init__(self, path: Path) -> None:
        graph = onnx.load(path).graph
        self.nodes: list[NodeProto] = list(graph.node)
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        # Constants kept in half precision are cast back under their own names.
        casts = {n.output[0]: n.input[0] for n in self.nodes if n.op_type == "Cast" and n.input[0] in constants}
        constants |= {name: constants.pop(source) for name, source in casts.items()}
        self.constants: Arrays = {n: np.array(v, np.float32) for n, v in constants.items() if v.dtype.kind == "f"}
        self.maker = {output: node for node in self.nodes for output in node.output}

    def channel_norms(self) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Yield scale and offset of the normalisations over channels: a product and a sum with (C, 1, 1)."""
        for node in self.nodes:
            if node.op_type != "Add":
                continue
            offset = next((i for i in node.input if self._is_per_channel(i)), None)
            product = next((self.maker[i] for i in node.input if i in self.maker and i != offset), None)
            if offset is None or product is None or product.op_type != "Mul":
                continue
            scale = next((i for i in product.input if self._is_per_channel(i)), None)
            if scale is not None:
                yield self.constants[scale].reshape(-1), self.constants[offset].reshape(-1)

    def _is_per_channel(self, name: str) -> bool:
        constant = self.constants.get(name)
        return constant is not None and constant.ndim == 3 and constant.shape[1:] == (1, 1)
