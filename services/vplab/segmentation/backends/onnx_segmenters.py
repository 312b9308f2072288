"""Segmenters as ONNX graphs."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vplab.runtime.graph_sessions import GraphSessions
from vplab.runtime.onnx_session import OnnxSettings, device_of
from vplab.segmentation.backends._decoder_graph import INPUTS, OUTPUTS, bytes_in_memory, open_graph, warm_up
from vplab.segmentation.errors import ModelUnsupported
from vplab.vision.adapters.spec import EARLY_INPUT
from vplab.vision.specs import SegmenterSpec


class OnnxSegmenter:
    """Implements LoadedSegmenter."""

    def __init__(
        self, sessions: GraphSessions, device: str, num_bytes: int, refusal: ModelUnsupported | None = None
    ) -> None:
        """refusal: raised where a graph that takes early features is given none; None for any other graph."""
        self._sessions = sessions
        self.device = device
        self.num_bytes = num_bytes
        self._refusal = refusal

    def run(
        self,
        image_embedding: NDArray[np.float32],
        image_index: NDArray[np.int64],
        point_coords: NDArray[np.float32],
        point_labels: NDArray[np.float32],
        mask_input: NDArray[np.float32],
        has_mask_input: NDArray[np.float32],
        early_features: NDArray[np.float32] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Decode a batch."""
        values = (image_embedding, image_index, point_coords, point_labels, mask_input, has_mask_input)
        feed = dict(zip(INPUTS, values, strict=True))
        if early_features is None and self._refusal is not None:
            raise self._refusal.with_traceback(None)
        if early_features is not None:
            feed[EARLY_INPUT] = early_features
        with self._sessions.turn() as session:
            logits, ious = session.run(list(OUTPUTS), feed)
        return logits, ious


def _early_features(session: Any) -> dict[str, NDArray[np.float32]]:
    """Return zeros of one image for a graph that takes its early features, (E, h, w) as the graph says."""
    shapes = {value.name: value.shape for value in session.get_inputs()}
    return {EARLY_INPUT: np.zeros((1, *shapes[EARLY_INPUT][1:]), np.float32)} if EARLY_INPUT in shapes else {}


class OnnxSegmenterLoader:
    """Implements SegmenterLoader."""

    def __init__(self, settings: OnnxSettings) -> None:
        self._settings = settings

    def load(self, name: str, role: str, folder: Path, spec: SegmenterSpec) -> OnnxSegmenter:
        """Load the graph, check its names and run it once on two prompts, which also compiles its kernels."""
        path = folder / spec.graph
        sessions = open_graph(name, role, path, self._settings, optional_inputs=(EARLY_INPUT,))
        early = _early_features(sessions.wide)
        warm_up(name, role, sessions.wide, spec, early)
        device, num_bytes = device_of(sessions.wide, self._settings), bytes_in_memory(path, sessions)
        why = "its graph takes early features, and its adapter.json does not say so"
        return OnnxSegmenter(sessions, device, num_bytes, ModelUnsupported(name, role, why) if early else None)
