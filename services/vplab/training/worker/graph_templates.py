"""The graph of an adapted decoder without its weights, exported once for each kind of adapter and base.

What the exporter makes depends on the modules' structure and sizes and not on the numbers in them, and making it takes
ten seconds and more. So it is made once without folding constants, which leaves every parameter under its name, and
kept; a job puts its weights in. ONNX Runtime folds when it loads the graph: it then runs as fast as a folded one.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from vplab.errors import Internal
from vplab.runtime.server_info import software
from vplab.training.models.half_weights import with_half_weights
from vplab.vision.adapters.adapt import AdaptedDecoder
from vplab.vision.adapters.onnx_adapted import further_features
from vplab.vision.sam.onnx_decoder import PromptDecoder, module_to_onnx
from vplab.vision.specs import canonical_json

_FORMAT = 2


class GraphTemplates:
    """Templates below a folder, which workers of a machine may share."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept: dict[str, bytes] = {}

    def prepare(self, adapted: AdaptedDecoder) -> None:
        """Make the template for adapters of this kind, unless it is there."""
        self._template(adapted, adapted.merged().eval(), lambda: None)

    def graph(self, adapted: AdaptedDecoder, merged: nn.Module, on_export: Callable[[], None]) -> onnx.ModelProto:
        """Return the graph of ``merged``, which is ``adapted.merged()`` with weights changed or not, float32.

        on_export: called before and after the slow export of a template that is not there yet.
        """
        return _filled(self._template(adapted, merged, on_export), _tensors(merged))

    def _template(self, adapted: AdaptedDecoder, merged: nn.Module, on_export: Callable[[], None]) -> onnx.ModelProto:
        key = _key(adapted, merged)
        path = self._folder / f"{key}.onnx"
        if key not in self._kept and path.is_file():
            self._kept[key] = path.read_bytes()
        if key not in self._kept:
            on_export()
            program = module_to_onnx(
                merged, adapted.base.prompt_encoder, further_features(adapted), folds_constants=False
            )
            on_export()
            self._kept[key] = _emptied(program.model_proto, _tensors(merged)).SerializeToString()
            _write(path, self._kept[key])
        return onnx.load_from_string(self._kept[key])


def half_precision(module: nn.Module) -> nn.Module:
    """Round a module's weights, in place, to float32 numbers that half precision holds; return it."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.data = parameter.data.half().float()
    return module


def save_graph(graph: onnx.ModelProto, path: Path) -> None:
    """Write a graph; weights that half precision holds exactly take half the space."""
    onnx.save(with_half_weights(graph), path)


def _key(adapted: AdaptedDecoder, merged: nn.Module) -> str:
    """Return what a template depends on: what of the adapter stays beside the weights, sizes, and the software.

    An adapter that is in the weights altogether leaves the base's own structure, which all such adapters share.
    """
    shapes = {name: list(tensor.shape) for name, tensor in _tensors(merged).items()}
    encoder = adapted.base.prompt_encoder
    said = {
        "format": _FORMAT,
        "adapter": None if type(merged) is PromptDecoder else json.loads(adapted.spec.model_dump_json()),
        "shapes": shapes,
        "sizes": [list(encoder.image_embedding_size), list(encoder.input_image_size)],
        "software": [software(), torch.__version__, onnx.__version__],
    }
    return hashlib.sha256(canonical_json(said)).hexdigest()


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _emptied(graph: onnx.ModelProto, tensors: Mapping[str, Tensor]) -> onnx.ModelProto:
    """Take the weights out; what the exporter made up itself stays."""
    for constant in graph.graph.initializer:
        if constant.name in tensors and tensors[constant.name].is_floating_point():
            constant.ClearField("raw_data")
    return graph


def _filled(template: onnx.ModelProto, tensors: Mapping[str, Tensor]) -> onnx.ModelProto:
    """Put weights in; they are there under their names, in the exporter's own layout."""
    for constant in template.graph.initializer:
        tensor = tensors.get(constant.name)
        if tensor is None or not tensor.is_floating_point():
            continue
        if list(constant.dims) != list(tensor.shape):
            raise Internal(f"the graph's {constant.name} is {list(constant.dims)}, the module's {list(tensor.shape)}")
        constant.CopyFrom(numpy_helper.from_array(tensor.detach().cpu().float().numpy(), constant.name))
    return template


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    part.write_bytes(data)
    os.replace(part, path)
