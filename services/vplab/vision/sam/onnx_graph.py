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
    _strip_traces(program)
    return program


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
