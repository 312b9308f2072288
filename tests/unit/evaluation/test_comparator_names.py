"""The comparators by name: makers that load nothing before they are called."""

import subprocess
import sys

import pytest

from vplab.evaluation.comparators import CLICK_METHODS, SHOT_METHODS


@pytest.mark.parametrize("name", [*SHOT_METHODS, *CLICK_METHODS])
def test_each_maker_gives_the_method_of_its_name(name):
    for makers in (SHOT_METHODS, CLICK_METHODS):
        if name in makers:
            assert makers[name]().name == name


def test_names_are_known_without_loading_what_is_heavy():
    heavy = {"torch", "skimage", "sklearn"}
    code = f"import sys; import vplab.evaluation.comparators; print(sorted({heavy} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_a_missing_library_surfaces_as_an_import_error(monkeypatch):
    monkeypatch.delitem(sys.modules, "vplab.evaluation.comparators.random_forest", raising=False)
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    with pytest.raises(ImportError, match="sklearn"):
        SHOT_METHODS["random_forest"]()
