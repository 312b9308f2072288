"""The checkpoint of a tuning: bytes that continue it to the same adapter, and a file to keep them in.

No random state is in it. What a step draws depends on the seed, the run and the step alone, so a run that is taken up
anywhere goes on exactly as it would have.
"""

import hashlib
import io
import logging
import os
import pickle
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vplab.training.tuning.values import TuningExample, TuningOptions

_LOG = logging.getLogger(__name__)
_FORMAT = 2


class FileCheckpoint:
    """A CheckpointStore in one file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> bytes | None:
        return self._path.read_bytes() if self._path.is_file() else None

    def save(self, data: bytes) -> None:
        temporary = self._path.with_name(f"{self._path.name}.tmp")
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._path)


def job_digest(
    options: TuningOptions,
    examples: Sequence[TuningExample],
    validation: Sequence[TuningExample],
    initial_state: dict[str, Tensor],
) -> str:
    """Return what a checkpoint belongs to: sha256 hex of options, examples and the adapter's initial state."""
    digest = hashlib.sha256(repr(sorted(asdict(options).items())).encode())
    for example in (*examples, *validation):
        digest.update(repr((example.image_index, example.is_original, sorted(example.masks))).encode())
        digest.update(example.embedding.tobytes())
        for class_id in sorted(example.masks):
            digest.update(example.masks[class_id].tobytes())
            if class_id in example.proposals:
                digest.update(example.proposals[class_id].points_xy.tobytes())
    for name, value in sorted(initial_state.items()):
        digest.update(name.encode() + value.cpu().float().numpy().tobytes())
    return digest.hexdigest()


def pack(digest: str, content: dict[str, Any]) -> bytes:
    """Write tensors, numbers, strings, lists and dicts."""
    buffer = io.BytesIO()
    torch.save({"format": _FORMAT, "digest": digest, "content": content}, buffer)
    return buffer.getvalue()


def unpack(data: bytes, digest: str) -> dict[str, Any] | None:
    """Read what ``pack`` wrote; None, with a line in the log, where it is damaged or of another job.

    Training anew is always right, only slower; refusing would end a job that can still be done.
    """
    try:
        raw = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        if raw["format"] == _FORMAT and raw["digest"] == digest:
            content: dict[str, Any] = raw["content"]
            return content
    except (RuntimeError, ValueError, KeyError, EOFError, OSError, TypeError, pickle.UnpicklingError) as error:
        _LOG.warning("the checkpoint is damaged, training starts anew: %s", error)
        return None
    _LOG.warning("the checkpoint is of another job, training starts anew")
    return None
