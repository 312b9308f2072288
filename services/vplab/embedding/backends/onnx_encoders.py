"""Encoders as ONNX graphs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vplab.embedding.errors import ModelUnsupported
from vplab.errors import FailedPrecondition
from vplab.runtime.graph_sessions import GraphSessions, open_sessions
from vplab.runtime.onnx_session import OnnxSettings, releasing_run
from vplab.vision.specs import EncoderSpec

_INPUT_NAME = "image"


class OnnxEncoder:
    """Implements LoadedEncoder."""

    def __init__(self, sessions: GraphSessions, spec: EncoderSpec, num_bytes: int) -> None:
        self._sessions = sessions
        self._output_names = [output.name for output in spec.outputs]
        self.num_bytes = num_bytes

    @property
    def execution_provider(self) -> str:
        """The first of the session's providers; the others take what it cannot run."""
        return str(self._sessions.wide.get_providers()[0])

    def run(self, images: npt.NDArray[np.float32]) -> Sequence[npt.NDArray[np.float32]]:
        """Encode a batch."""
        with self._sessions.turn() as session:
            outputs: Sequence[npt.NDArray[np.float32]] = session.run(self._output_names, {_INPUT_NAME: images})
        return outputs


class OnnxEncoderLoader:
    """Implements EncoderLoader."""

    def __init__(self, settings: OnnxSettings) -> None:
        self._settings = settings

    def load(self, name: str, folder: Path, spec: EncoderSpec) -> OnnxEncoder:
        """Load the graph, check its names and run it once on zeros, which also compiles its kernels."""
        path = folder / spec.graph
        if not path.is_file():
            raise ModelUnsupported(name, f"its files lack {spec.graph}")
        try:
            sessions = open_sessions(path, self._settings)
        except FailedPrecondition as error:
            raise ModelUnsupported(name, f"ONNX Runtime cannot load {spec.graph}") from error.__cause__ or error
        _check_names(name, sessions.wide, spec)
        side, names = spec.preprocessing.size, [output.name for output in spec.outputs]
        zeros = np.zeros((1, 3, side, side), dtype=np.float32)
        try:
            outputs = releasing_run(sessions.wide, names, {_INPUT_NAME: zeros})
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise ModelUnsupported(name, f"its graph does not take (1, 3, {side}, {side})") from error
        _check_outputs(name, outputs, spec)
        num_bytes = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
        return OnnxEncoder(sessions, spec, sessions.num_sessions * num_bytes)


def _check_names(name: str, session: Any, spec: EncoderSpec) -> None:
    inputs, outputs = ({value.name for value in values} for values in (session.get_inputs(), session.get_outputs()))
    if inputs != {_INPUT_NAME}:
        raise ModelUnsupported(name, f"its graph takes {sorted(inputs)}, not {_INPUT_NAME}")
    missing = sorted({output.name for output in spec.outputs} - outputs)
    if missing:
        raise ModelUnsupported(name, f"its graph has no output {', '.join(missing)}")


def _check_outputs(name: str, outputs: Sequence[npt.NDArray[np.float32]], spec: EncoderSpec) -> None:
    for output, values in zip(spec.outputs, outputs, strict=True):
        if values.shape != (1, *output.shape) or values.dtype != np.float32:
            found = f"{list(values.shape)} {values.dtype.name}"
            raise ModelUnsupported(name, f"{output.name} is {found}; model.json says {[1, *output.shape]} float32")
