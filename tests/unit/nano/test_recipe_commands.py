"""The commands the recipe's README tells to run are commands it has."""

import shlex
from importlib import resources

import pytest

pytest.importorskip("torch", reason="making models needs the training extra")
pytest.importorskip("segment_anything", reason="making models needs the training extra")

from vplab.errors import FailedPrecondition
from vplab.training.foundation import __main__ as recipe

PREFIX = "python -m vplab.training.foundation "


def readme_commands():
    text = (resources.files("vplab.training.foundation") / "README.md").read_text()
    return [line.removeprefix(PREFIX) for line in text.splitlines() if line.startswith(PREFIX)]


def test_the_readme_names_every_step_in_its_order():
    assert [c.split()[0] for c in readme_commands()] == [
        "prepare",
        "train",
        "export",
        "segmenter",
        "bank",
        "early",
        "parity",
        "evaluate",
        "card",
        "compare",
        "ablate",
    ]


@pytest.mark.parametrize("command", readme_commands())
def test_a_command_of_the_readme_is_understood(command):
    assert callable(recipe.command_line().parse_args(shlex.split(command)).call)


def test_training_without_a_cache_says_which_step_comes_first(tmp_path):
    arguments = recipe.command_line().parse_args(["train", "--cache", str(tmp_path), "--run", str(tmp_path / "run")])
    with pytest.raises(FailedPrecondition, match="prepare"):
        arguments.call(arguments)


def test_preparing_without_data_names_the_missing_file(tmp_path):
    arguments = recipe.command_line().parse_args(
        ["prepare", "--data", str(tmp_path), "--cache", str(tmp_path / "cache"), "--sources", "ecssd"]
    )
    with pytest.raises(FailedPrecondition, match=r"ecssd/filelist\.csv"):
        arguments.call(arguments)
