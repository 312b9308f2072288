"""Reading a publisher's weight file: tensors only, never code, damage found before anything is built."""

import hashlib
import pickle
import warnings
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vplab.errors import DataLoss, InvalidInput

_READ_BYTES = 1 << 22


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a ``.pth``, ``.pt`` or ``.safetensors`` file by name, on the CPU.

    Tensors of large files stay mapped to the file, which must not change while they are used. A pickle is read with
    ``weights_only``, which refuses everything but tensors in plain containers.
    Raises InvalidInput (field ``path``) if there is no such file or it is not a state dict, DataLoss if it is damaged.
    """
    if not path.is_file():
        raise InvalidInput(f"there is no file {path}", field="path")
    state = _read_safetensors(path) if _is_safetensors(path) else _read_pickle(path)
    if not state:
        raise InvalidInput(f"{path.name} holds no tensors", field="path")
    return state


def sha256_of(path: Path) -> str:
    """Return the sha256 hex of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _is_safetensors(path: Path) -> bool:
    # A safetensors file is a little-endian header length followed by a JSON object.
    with path.open("rb") as file:
        head = file.read(9)
    return path.suffix == ".safetensors" or (len(head) == 9 and head[8:] == b"{")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise DataLoss(f"{path.name} is not a whole safetensors file: {error}") from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    is_zip = zipfile.is_zipfile(path)
    if is_zip:
        _check_zip(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; what matters is whether the tensors come out
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        raise InvalidInput(
            f"{path.name} holds more than tensors, or is no PyTorch file, and was not loaded", field="path"
        ) from error
    except Exception as error:  # reading arbitrary bytes as a pickle ends in any kind of exception
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataLoss(f"{path.name} is damaged, cut off or no PyTorch file: {first_line}") from error
    if not isinstance(content, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    ):
        found = ", ".join(map(str, list(content)[:4])) if isinstance(content, dict) else type(content).__name__
        raise InvalidInput(f"{path.name} is not a plain state dict of tensors; it holds {found}", field="path")
    return dict(content)


def _check_zip(path: Path) -> None:
    # torch.load does not compare the archive's checksums, and never does so for a mapped file.
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError) as error:
        raise DataLoss(f"{path.name} is damaged or cut off: {error}") from error
    if damaged is not None:
        raise DataLoss(f"{path.name} is damaged: the checksum of {damaged} does not match")
