"""What decoder graphs of every kind have in common: their names, and a first run that shows they are what is said."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from vplab.errors import FailedPrecondition
from vplab.runtime.graph_sessions import GraphSessions, open_sessions
from vplab.runtime.onnx_session import OnnxSettings, releasing_run
from vplab.segmentation.errors import ModelUnsupported
from vplab.vision.specs import SegmenterSpec

INPUTS: Final = (
    "image_embedding",
    "image_index",
    "point_coords",
    "point_labels",
    "mask_input",
    "has_mask_input",
)
OUTPUTS: Final = ("low_res_logits", "iou_predictions")
# Weights are stored in half precision and computed with in single; with the optimised graph that was measured as 2.2
# times the file (the nano segmenter, 9.3 MB: 20.6 MB more of memory for each session).
_BYTES_IN_MEMORY = 2.2


def open_graph(
    name: str,
    role: str,
    path: Path,
    settings: OnnxSettings,
    further_inputs: tuple[str, ...] = (),
    optional_inputs: tuple[str, ...] = (),
) -> GraphSessions:
    """Return the sessions of a graph with INPUTS and ``further_inputs``, maybe ``optional_inputs`` too.

    Raises ModelUnsupported.
    """
    if not path.is_file():
        raise ModelUnsupported(name, role, f"its files lack {path.name}")
    try:
        sessions = open_sessions(path, settings)
    except FailedPrecondition as error:
        raise ModelUnsupported(name, role, f"ONNX Runtime cannot load {path.name}") from error.__cause__ or error
    session = sessions.wide
    inputs, outputs = ({value.name for value in values} for values in (session.get_inputs(), session.get_outputs()))
    expected = (*INPUTS, *further_inputs)
    if inputs - set(optional_inputs) != set(expected):
        raise ModelUnsupported(name, role, f"its graph takes {sorted(inputs)}, not {sorted(expected)}")
    missing = sorted(set(OUTPUTS) - outputs)
    if missing:
        raise ModelUnsupported(name, role, f"its graph has no output {', '.join(missing)}")
    return sessions


def warm_up(
    name: str, role: str, session: Any, spec: SegmenterSpec, further_values: Mapping[str, Any] | None = None
) -> None:
    """Run two prompts, which also compiles kernels, and compare the answer's shapes. Raises ModelUnsupported."""
    low_res = spec.low_res_hw
    values = (
        np.zeros((1, *spec.embedding_shape), np.float32),
        np.zeros(2, np.int64),
        np.zeros((2, 2, 2), np.float32),
        np.array([[1, -1], [1, -1]], np.float32),
        np.zeros((2, 1, *low_res), np.float32),
        np.zeros(2, np.float32),
    )
    feed = dict(zip(INPUTS, values, strict=True)) | dict(further_values or {})
    try:
        logits, ious = releasing_run(session, OUTPUTS, feed)
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise ModelUnsupported(name, role, "its graph does not take the inputs that its spec says") from error
    expected = [(2, spec.num_planes, *low_res), (2, spec.num_planes)]
    if [logits.shape, ious.shape] != expected:
        found = f"{list(logits.shape)} and {list(ious.shape)}"
        raise ModelUnsupported(name, role, f"its graph returns {found}; model.json says {expected}")


def bytes_in_memory(path: Path, sessions: GraphSessions) -> int:
    """Return about what a graph takes of memory, activations apart."""
    return round(_BYTES_IN_MEMORY * sessions.num_sessions * path.stat().st_size)
