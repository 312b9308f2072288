"""Segmenters as ONNX graphs."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vplab.errors import FailedPrecondition
from vplab.runtime.onnx_session import OnnxSettings, create_session, device_of, releasing_run
from vplab.segmentation.errors import ModelUnsupported
from vplab.vision.specs import SegmenterSpec

_INPUTS = ("image_embedding", "image_index", "point_coords", "point_labels", "mask_input", "has_mask_input")
_OUTPUTS = ("low_res_logits", "iou_predictions")
# Weights are stored in half precision and computed with in single; with the optimised graph that was measured as 2.2
# times the file (the nano segmenter, 9.3 MB: 20.6 MB more of memory for each session).
_BYTES_IN_MEMORY = 2.2


class OnnxSegmenter:
    """Implements LoadedSegmenter."""

    def __init__(self, session: Any, device: str, num_bytes: int) -> None:
        self._session = session
        self.device = device
        self.num_bytes = num_bytes

    def run(
        self,
        image_embedding: NDArray[np.float32],
        image_index: NDArray[np.int64],
        point_coords: NDArray[np.float32],
        point_labels: NDArray[np.float32],
        mask_input: NDArray[np.float32],
        has_mask_input: NDArray[np.float32],
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Decode a batch."""
        values = (image_embedding, image_index, point_coords, point_labels, mask_input, has_mask_input)
        logits, ious = self._session.run(list(_OUTPUTS), dict(zip(_INPUTS, values, strict=True)))
        return logits, ious


class OnnxSegmenterLoader:
    """Implements SegmenterLoader."""

    def __init__(self, settings: OnnxSettings) -> None:
        self._settings = settings

    def load(self, name: str, role: str, folder: Path, spec: SegmenterSpec) -> OnnxSegmenter:
        """Load the graph, check its names and run it once on two prompts, which also compiles its kernels."""
        path = folder / spec.graph
        if not path.is_file():
            raise ModelUnsupported(name, role, f"its files lack {spec.graph}")
        try:
            session = create_session(path, self._settings)
        except FailedPrecondition as error:
            raise ModelUnsupported(name, role, f"ONNX Runtime cannot load {spec.graph}") from error.__cause__ or error
        _check_names(name, role, session)
        low_res = spec.low_res_hw
        values = (
            np.zeros((1, *spec.embedding_shape), np.float32),
            np.zeros(2, np.int64),
            np.zeros((2, 2, 2), np.float32),
            np.array([[1, -1], [1, -1]], np.float32),
            np.zeros((2, 1, *low_res), np.float32),
            np.zeros(2, np.float32),
        )
        try:
            logits, ious = releasing_run(session, _OUTPUTS, dict(zip(_INPUTS, values, strict=True)))
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise ModelUnsupported(name, role, "its graph does not take the inputs that its spec says") from error
        expected = [(2, spec.num_planes, *low_res), (2, spec.num_planes)]
        if [logits.shape, ious.shape] != expected:
            found = f"{list(logits.shape)} and {list(ious.shape)}"
            raise ModelUnsupported(name, role, f"its graph returns {found}; model.json says {expected}")
        num_bytes = round(_BYTES_IN_MEMORY * path.stat().st_size)
        return OnnxSegmenter(session, device_of(session, self._settings), num_bytes)


def _check_names(name: str, role: str, session: Any) -> None:
    inputs, outputs = ({value.name for value in values} for values in (session.get_inputs(), session.get_outputs()))
    if inputs != set(_INPUTS):
        raise ModelUnsupported(name, role, f"its graph takes {sorted(inputs)}, not {sorted(_INPUTS)}")
    missing = sorted(set(_OUTPUTS) - outputs)
    if missing:
        raise ModelUnsupported(name, role, f"its graph has no output {', '.join(missing)}")
