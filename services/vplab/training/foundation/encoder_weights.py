"""The nano encoder's weights, read back from its graph.

The exporter keeps weights of convolutions under their names. Biases that are equal it merges into one, so each
convolution is asked for its own; normalisations and the projection's offset lose their names with their shapes.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vplab.training.models.graph_constants import GraphConstants
from vplab.vision.nano.architecture import FEATURE_DIM

_NORMS = ("neck.norm", "neck.mix.0.norm", "neck.mix.1.norm", "neck.out_norm")
"""In the order of the graph."""


def encoder_state(path: Path) -> dict[str, Tensor]:
    """Return the state dict of the ``NanoEncoder`` that a graph was exported from, float32.

    Raises ValueError for a graph that is no such export; what comes out is to be run beside it.
    """
    return {name: torch.from_numpy(values.copy()) for name, values in _Graph(path).weights()}


class _Graph(GraphConstants):
    def weights(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        for name, values in self.constants.items():
            if name.endswith(".weight"):
                yield name, values
        for node in self.nodes:
            if node.op_type == "Conv" and len(node.input) == 3 and node.input[1].endswith(".weight"):
                yield node.input[1].removesuffix("weight") + "bias", self.constants[node.input[2]]
        for name, (scale, offset) in zip(_NORMS, self.channel_norms(), strict=True):
            yield f"{name}.weight", scale
            yield f"{name}.bias", offset
        (offset,) = (v for v in self.constants.values() if v.shape == (1, FEATURE_DIM, 1, 1))
        yield "projection.offset", offset.reshape(-1)
