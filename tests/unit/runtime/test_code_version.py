"""What is made says which commit made it, from a checkout and from a wheel."""

import json
import shutil
import subprocess
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from vplab.runtime import code_version as module
from vplab.runtime.code_version import code_version, commit_of

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    code_version.cache_clear()
    yield
    code_version.cache_clear()


def git(folder: Path, *arguments: str) -> str:
    person = ("-c", "user.name=one", "-c", "user.email=one@example.org")
    done = subprocess.run(["git", "-C", str(folder), *person, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_a_checkout_is_told_by_its_commit_and_whether_it_was_changed(tmp_path: Path) -> None:
    file = tmp_path / "code.py"
    file.write_text("1")
    git(tmp_path, "init", "-q")
    assert commit_of(file) == "", "a file that is not of the repository it lies in"
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-qm", "one")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert commit_of(file) == head
    file.write_text("2")
    assert commit_of(file) == f"{head}-dirty"


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no checkout")
def test_these_tests_run_code_whose_commit_is_told() -> None:
    assert f", commit {git(ROOT, 'rev-parse', 'HEAD')}" in code_version()


@pytest.mark.parametrize(
    ("origin", "suffix"),
    [
        ({"url": "https://example.org", "vcs_info": {"vcs": "git", "commit_id": "a" * 40}}, f", commit {'a' * 40}"),
        ({"url": "file:///wheels/vplab.whl", "archive_info": {}}, ""),
        (None, ""),
    ],
)
def test_a_wheel_is_told_by_what_it_was_installed_from(
    monkeypatch: pytest.MonkeyPatch, origin: dict[str, object] | None, suffix: str
) -> None:
    files = {} if origin is None else {"direct_url.json": json.dumps(origin)}
    installed = types.SimpleNamespace(read_text=files.get)
    monkeypatch.setattr(module, "commit_of", lambda _: "")
    monkeypatch.setattr(module, "distribution", lambda _: installed)
    monkeypatch.setattr(module, "software", lambda: "0.1.0")
    assert code_version() == f"0.1.0{suffix}"
