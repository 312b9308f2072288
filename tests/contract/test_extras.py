"""Services and the command start where no extra is installed, as after the README's first command."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REFUSES = """
import importlib, sys
refused, module = set(sys.argv[1].split(",")), sys.argv[2]
class Refusal:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in refused:
            raise ModuleNotFoundError(f"{name} belongs to an extra", name=name)
sys.meta_path.insert(0, Refusal())
importlib.import_module(module)
"""


def distributions(requirements: list[str]) -> set[str]:
    """Return the distributions of requirements, names normalised."""
    names = (re.match(r"[\w.-]+", requirement) for requirement in requirements)
    return {re.sub(r"[-_.]+", "-", name[0]).lower() for name in names if name}


def modules_of_extras() -> list[str]:
    """Return the top-level modules that only an extra brings."""
    extras = PROJECT["optional-dependencies"]
    optional = {n for extra, listed in extras.items() if extra != "all" for n in distributions(listed)}
    only = optional - distributions(PROJECT["dependencies"])
    by_module = packages_distributions()
    return [module for module, owners in by_module.items() if distributions(owners) and distributions(owners) <= only]


MODULES = (
    "vplab.cli.main",
    *(f"vplab.{service}.__main__" for service in ("registry", "embedding", "segmentation", "training")),
    "vplab.training.worker.process",
)


@pytest.mark.parametrize("module", MODULES)
def test_starts_without_extras(module: str) -> None:
    refused = modules_of_extras()
    assert {"torch", "onnx", "timm"} <= set(refused)
    command = [sys.executable, "-c", REFUSES, ",".join(refused), module]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
