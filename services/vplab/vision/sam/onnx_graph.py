"""How a torch module becomes an ONNX graph here: one exporter, one opset, nothing of this machine in the result."""

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

OPSET = 18


def batch_axis(name: str) -> torch.export.Dim:
    """Return an axis of any length, named so in the graph."""
    return torch.export.Dim(name, min=0)


def to_onnx(
    module: nn.Module,
    examples: tuple[Tensor, ...],
    axes: Sequence[Mapping[int, torch.export.Dim]],
    input_names: Sequence[str],
    output_names: Sequence[str],
    *,
    folds_constants: bool = True,
) -> torch.onnx.ONNXProgram:
    """Export ``module`` in evaluation mode.

    examples: one tensor per input; a free axis has length 2 or more there, since torch.export takes 0 and 1 as fixed.
    axes: per input, which axes are free.
    folds_constants: False leaves every parameter in the graph under its name and as it is.
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter warns about its own internals on every run
        program = torch.onnx.export(
            module.eval(),
            examples,
            input_names=list(input_names),
            output_names=list(output_names),
            dynamic_shapes=tuple(dict(a) for a in axes),
            opset_version=OPSET,
            dynamo=True,
            optimize=folds_constants,
            verbose=False,
        )
    assert program is not None
    _regroup_gelus(program)
    _strip_traces(program)
    return program


def _regroup_gelus(program: torch.onnx.ONNXProgram) -> None:
    """Multiply by one half last: the exporter writes x (0.5 (1 + erf)), ONNX Runtime knows a GELU as (x (1 + erf)) 0.5.

    One operator in place of five that each go through the tensor.
    """
    for erf in [node for node in program.model.graph.all_nodes() if node.op_type == "Erf"]:
        following = erf
        chain = []
        for op_type in ("Add", "Mul", "Mul"):
            users = list(following.outputs[0].uses())
            if len(users) != 1 or users[0].node.op_type != op_type:
                break
            following = users[0].node
            chain.append(following)
        scaled = erf.inputs[0].producer() if erf.inputs[0] is not None else None
        if len(chain) < 3 or scaled is None:
            continue
        summed, halved, product = chain
        x = scaled.inputs[0]
        if x not in product.inputs:
            continue
        half = next(value for value in halved.inputs if value is not summed.outputs[0])
        halved.replace_input_with(list(halved.inputs).index(half), x)
        product.replace_input_with(list(product.inputs).index(x), half)


def _strip_traces(program: torch.onnx.ONNXProgram) -> None:
    """Remove source paths and stack traces, which are of the exporting machine and would change the file's digest."""
    graph = program.model.graph
    for node in graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
    for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
        value.metadata_props.clear()
    graph.metadata_props.clear()
    program.model.metadata_props.clear()
