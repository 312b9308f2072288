"""Segmenters as ONNX graphs."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vplab.runtime.graph_sessions import GraphSessions
from vplab.runtime.onnx_session import OnnxSettings, device_of
from vplab.segmentation.backends._decoder_graph import INPUTS, OUTPUTS, bytes_in_memory, open_graph, warm_up
from vplab.vision.specs import SegmenterSpec


class OnnxSegmenter:
    """Implements LoadedSegmenter."""

    def __init__(self, sessions: GraphSessions, device: str, num_bytes: int) -> None:
        self._sessions = sessions
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
        with self._sessions.turn() as session:
            logits, ious = session.run(list(OUTPUTS), dict(zip(INPUTS, values, strict=True)))
        return logits, ious


class OnnxSegmenterLoader:
    """Implements SegmenterLoader."""

    def __init__(self, settings: OnnxSettings) -> None:
        self._settings = settings

    def load(self, name: str, role: str, folder: Path, spec: SegmenterSpec) -> OnnxSegmenter:
        """Load the graph, check its names and run it once on two prompts, which also compiles its kernels."""
        path = folder / spec.graph
        sessions = open_graph(name, role, path, self._settings)
        warm_up(name, role, sessions.wide, spec)
        return OnnxSegmenter(sessions, device_of(sessions.wide, self._settings), bytes_in_memory(path, sessions))
