"""The layout's promises: three source roots of one namespace, current stubs, layers that import downwards only."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE_ROOTS = ("services", "clients/python", "protos/generated")


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.mark.parametrize("root", SOURCE_ROOTS)
def test_no_source_root_hides_the_others(root):
    """A vplab/__init__.py in one root turns the namespace into a package that has only this root."""
    assert (ROOT / root / "vplab").is_dir()
    assert not (ROOT / root / "vplab" / "__init__.py").exists()
    assert not (ROOT / root / "vplab" / "api" / "__init__.py").exists()


def test_the_namespace_spans_every_source_root():
    import vplab

    found = {Path(path).resolve() for path in vplab.__path__}
    assert {(ROOT / root / "vplab").resolve() for root in SOURCE_ROOTS} <= found


def test_the_build_names_every_source_root(project):
    """Without dev-mode-dirs an editable install silently keeps only the last root."""
    build = project["tool"]["hatch"]["build"]
    assert set(build["dev-mode-dirs"]) == set(SOURCE_ROOTS)
    assert set(build["targets"]["wheel"]["only-include"]) == {f"{root}/vplab" for root in SOURCE_ROOTS}
    assert set(project["tool"]["mypy"]["mypy_path"]) == set(SOURCE_ROOTS)


def test_no_module_exists_in_two_roots():
    names: dict[Path, str] = {}
    for root in SOURCE_ROOTS:
        for path in sorted((ROOT / root / "vplab").rglob("*.py")):
            relative = path.relative_to(ROOT / root)
            assert relative not in names, f"{relative} is in {root} and in {names[relative]}"
            names[relative] = root


def test_stubs_are_current():
    command = [sys.executable, str(ROOT / "protos" / "generate.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_layers_import_downwards_only():
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


def test_tests_have_no_packages():
    """With importmode=importlib an __init__.py would give two tests of one name one module."""
    assert list((ROOT / "tests").rglob("__init__.py")) == []


@pytest.mark.parametrize("service", ["registry", "embedding", "segmentation", "training"])
def test_a_service_has_the_anatomy(service):
    folder = ROOT / "services" / "vplab" / service
    missing = [
        name for name in ("__init__.py", "__main__.py", "config.py", "servicer.py") if not (folder / name).exists()
    ]
    assert missing == []


@pytest.mark.parametrize("service", ["registry", "embedding", "segmentation", "training"])
def test_a_service_reads_variables_of_its_own_prefix(service):
    import importlib

    from vplab.runtime.settings import ServerSettings

    config = importlib.import_module(f"vplab.{service}.config")
    own = [
        kind
        for kind in vars(config).values()
        if isinstance(kind, type) and issubclass(kind, ServerSettings) and kind is not ServerSettings
    ]
    assert [kind.model_config["env_prefix"] for kind in own] == [f"VPLAB_{service.upper()}_"]
