"""Weight files: what is read, what is refused, and what is found to be damaged."""

import hashlib
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vplab.errors import DataLoss, InvalidInput
from vplab.training.models.checkpoint_files import read_state_dict, sha256_of

STATE = {"a.weight": torch.arange(20_000.0), "b": torch.ones(3, dtype=torch.int64)}


@pytest.fixture
def pth(tmp_path: Path) -> Path:
    torch.save(STATE, tmp_path / "model.pth")
    return tmp_path / "model.pth"


@pytest.fixture
def safetensors(tmp_path: Path) -> Path:
    save_file(STATE, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def damage(path: Path, *, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(content)


def test_both_formats_give_the_tensors_by_name(pth: Path, safetensors: Path) -> None:
    for path in (pth, safetensors):
        state = read_state_dict(path)
        assert state.keys() == STATE.keys()
        torch.testing.assert_close(state["a.weight"], STATE["a.weight"])


def test_the_content_decides_not_the_extension(safetensors: Path) -> None:
    renamed = safetensors.rename(safetensors.with_suffix(".pth"))
    assert read_state_dict(renamed).keys() == STATE.keys()


def test_files_of_the_format_before_zip_are_read(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.testing.assert_close(read_state_dict(tmp_path / "old.pth")["a.weight"], STATE["a.weight"])


class Explosive:
    """What unpickling would run."""

    def __reduce__(self) -> tuple[object, ...]:
        return (pytest.fail, ("code of the file was run",))


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_file_that_would_run_code_is_refused_and_not_run(tmp_path: Path, is_zip: bool) -> None:
    torch.save({"a": Explosive()}, tmp_path / "evil.pth", _use_new_zipfile_serialization=is_zip)
    with pytest.raises(InvalidInput, match=r"evil\.pth holds more than tensors"):
        read_state_dict(tmp_path / "evil.pth")


def test_a_plain_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Explosive()))
    with pytest.raises(InvalidInput):
        read_state_dict(tmp_path / "evil.pkl")


@pytest.mark.parametrize("content", [{"model": STATE, "epoch": 3}, [torch.ones(1)], torch.ones(2), {1: torch.ones(1)}])
def test_anything_but_a_plain_state_dict_is_invalid_input(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(InvalidInput, match="not a plain state dict"):
        read_state_dict(tmp_path / "other.pth")


def test_an_empty_state_dict_is_invalid_input(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "empty.pth")
    with pytest.raises(InvalidInput, match="holds no tensors"):
        read_state_dict(tmp_path / "empty.pth")


def test_a_flipped_bit_in_a_weight_is_data_loss(pth: Path) -> None:
    damage(pth, at=pth.stat().st_size // 2)
    with pytest.raises(DataLoss, match=r"model\.pth is damaged: the checksum"):
        read_state_dict(pth)


@pytest.mark.parametrize("kept", [0.98, 0.5, 0.01])
def test_a_file_that_was_cut_off_is_data_loss_or_invalid(pth: Path, kept: float) -> None:
    content = pth.read_bytes()
    pth.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises((DataLoss, InvalidInput), match=r"model\.pth"):
        read_state_dict(pth)


@pytest.mark.parametrize("kept", [0.98, 0.001])
def test_safetensors_that_were_cut_off_are_data_loss(safetensors: Path, kept: float) -> None:
    content = safetensors.read_bytes()
    safetensors.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(DataLoss, match=r"model\.safetensors"):
        read_state_dict(safetensors)


@pytest.mark.parametrize("content", [b"", b"x", b"<html>Not found</html>", b"\x80\x04N.", b"PK\x03\x04" + b"\0" * 60])
def test_bytes_that_are_no_weights_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "page.pth").write_bytes(content)
    with pytest.raises((DataLoss, InvalidInput), match=r"page\.pth"):
        read_state_dict(tmp_path / "page.pth")


def test_a_file_that_is_not_there_is_invalid_input(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_state_dict(tmp_path / "nowhere.pth")
    assert caught.value.violations[0].field == "path"


def test_the_digest_is_that_of_the_whole_file(pth: Path) -> None:
    assert sha256_of(pth) == hashlib.sha256(pth.read_bytes()).hexdigest()
