"""Writing an exported graph as the files of a version."""

from pathlib import Path

import torch

from vplab.training.models.imported import MAX_SINGLE_FILE_BYTES


def write_graph(
    program: torch.onnx.ONNXProgram, path: Path, *, max_single_file_bytes: int = MAX_SINGLE_FILE_BYTES
) -> dict[str, Path]:
    """Write ``path`` and, for large models, ``<path>.data`` beside it; return the files by name.

    The graph names the data file without a folder, so the two must stay together under these names.
    """
    weights_bytes = sum(
        value.const_value.nbytes for value in program.model.graph.initializers.values() if value.const_value is not None
    )
    is_split = weights_bytes > max_single_file_bytes
    path.parent.mkdir(parents=True, exist_ok=True)
    program.save(path, external_data=is_split)
    files = [path]
    if is_split:
        files.append(path.with_name(path.name + ".data"))
    return {file.name: file for file in files}
