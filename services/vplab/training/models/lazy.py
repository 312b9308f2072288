"""Importing models for callers that run without torch: it is loaded on the call, or an error says what to install."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import cast

from vplab.errors import FailedPrecondition
from vplab.training.models.exported import read_exported
from vplab.training.models.imported import ImportedModel, ImportOptions

_NEEDED = ("torch", "timm", "segment_anything", "onnx", "onnxscript", "safetensors", "torchvision")


def import_model(
    path: Path,
    *,
    out_dir: Path,
    options: ImportOptions | None = None,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> ImportedModel:
    """Import a checkpoint, see ``vplab.training.models.importing.import_model``, or a folder, see ``read_exported``.

    Raises FailedPrecondition if the packages that make models are not installed.
    """
    if path.is_dir():
        return read_exported(path, options or ImportOptions())
    try:
        # By name, so that nothing which may be imported without torch depends on it.
        importing = importlib.import_module("vplab.training.models.importing")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in _NEEDED:
            raise
        raise FailedPrecondition(
            f"importing a model needs the package {error.name}, which is not installed; "
            "install VP Lab with its training extra: pip install 'vplab[training]'"
        ) from error
    run = cast(Callable[..., ImportedModel], importing.import_model)
    return run(path, out_dir=out_dir, options=options, on_stage=on_stage)
