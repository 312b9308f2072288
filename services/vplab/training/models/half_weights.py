"""Graphs whose weights take half the space where half precision holds them exactly."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_MIN_HALF_SIZE = 64
"""Smaller constants (shapes, epsilons, sizes) stay as they are."""


def with_half_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Store float32 initializers in half precision, each followed by a cast, which runtimes fold when they load."""
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        if values.size < _MIN_HALF_SIZE or not np.array_equal(values.astype(np.float16).astype(np.float32), values):
            continue
        name, stored = tensor.name, f"{tensor.name}.half"
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), stored))
        casts.append(helper.make_node("Cast", [stored], [name], name=f"{name}.cast", to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    kept = [v for v in model.graph.value_info if not v.name.endswith(".half")]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)
    onnx.checker.check_model(model)
    return model
