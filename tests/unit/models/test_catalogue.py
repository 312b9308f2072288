"""Names of published models, and that everything needed to pull one works without torch."""

import re
import subprocess
import sys
from importlib import resources

import pytest

from vplab.errors import InvalidInput, NotFound
from vplab.training.models.catalogue import catalogue, find_entry
from vplab.training.models.names import dino_name, licence_of, model_name


def test_the_table_of_graphs_lists_every_published_model() -> None:
    """If it does not: ``python tests/bench/model_graphs.py``."""
    readme = (resources.files("vplab.training.models") / "README.md").read_text()
    _, table, _ = readme.split("graphs, by tests/bench/model_graphs.py -->")
    assert re.findall(r"^\| ([a-z][a-z0-9-]+) \| \d+ \|", table, re.M) == ["nano", *(e.name for e in catalogue())]


def test_every_name_is_unique_and_can_begin_an_artifact_id() -> None:
    names = [entry.name for entry in catalogue()]
    assert len(set(names)) == len(names)
    assert {"sam-vit-b", "sam-vit-l", "sam-vit-h", "mobile-sam", "dinov2-vits14", "dinov3-vits16"} <= set(names)
    for entry in catalogue():
        assert re.fullmatch(r"[a-z][a-z0-9-]{0,52}[a-z0-9]", entry.name)
        assert model_name(entry.family, entry.architecture) == entry.name
        assert entry.licence == licence_of(entry.family, entry.architecture)


def test_addresses_are_the_publishers_over_https() -> None:
    hosts = {re.match(r"https://([^/]+)/", entry.url)[1] for entry in catalogue()}  # type: ignore[index]
    assert hosts == {"dl.fbaipublicfiles.com", "raw.githubusercontent.com", "huggingface.co"}


def test_digests_are_whole_and_only_the_hubs_files_come_without() -> None:
    for entry in catalogue():
        if entry.sha256 is None:
            assert "huggingface.co" in entry.url
        else:
            assert re.fullmatch("[0-9a-f]{64}", entry.sha256)
            assert entry.size_bytes


def test_an_unknown_name_is_not_found_with_the_nearest() -> None:
    with pytest.raises(NotFound, match="did you mean sam-vit-b"):
        find_entry("sam-vitb")


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ("vit_small_patch14_dinov2.lvd142m", "dinov2-vits14"),
        ("vit_small_patch14_dinov2", "dinov2-vits14"),
        ("vit_giant_patch14_reg4_dinov2.lvd142m", "dinov2-vitg14-reg"),
        ("vit_small_plus_patch16_dinov3.lvd1689m", "dinov3-vits16plus"),
        ("vit_huge_plus_patch16_dinov3_qkvb.lvd1689m", "dinov3-vith16plus-qkvb"),
        ("vit_large_patch16_dinov3.sat493m", "dinov3-vitl16-sat493m"),
        ("vit_small_patch14_dinov2_depth2", "dinov2-vits14-depth2"),
    ],
)
def test_dino_names_are_short_and_keep_what_differs(architecture: str, name: str) -> None:
    assert dino_name(architecture) == name


@pytest.mark.parametrize("name", ["", "Sam", "sam_b", "1sam", "sam-", "s" * 53, "sam/b"])
def test_a_name_that_cannot_begin_an_artifact_id_is_invalid_input(name: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        model_name("sam", "vit_b", name)
    assert caught.value.violations[0].field == "name"


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_all_but_the_import_itself_runs_without_torch() -> None:
    modules = "lazy, catalogue, download, imported, names, parity, model_card"
    code = (
        f"from vplab.training.models import {modules}; import sys; print('torch' in sys.modules, 'timm' in sys.modules)"
    )
    assert run_python(code).split() == ["False", "False"]


def test_without_torch_an_import_says_what_to_install() -> None:
    code = """
import sys
from pathlib import Path
sys.modules["torch"] = None
from vplab.errors import FailedPrecondition
from vplab.training.models.lazy import import_model
try:
    import_model(Path("sam.pth"), out_dir=Path("out"))
except FailedPrecondition as error:
    print(error.message)
"""
    assert "pip install 'vplab[training]'" in run_python(code)
