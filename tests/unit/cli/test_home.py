import os
from pathlib import Path

import pytest

from vplab.cli.home import Deployment, Home, default_home
from vplab.errors import InvalidInput


def test_an_announced_deployment_is_found_until_it_is_withdrawn(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert home.running() is None
    deployment = Deployment(os.getpid(), "1", {"registry": "unix:/a"})
    home.announce(deployment)
    assert home.running() == deployment
    home.withdraw()
    assert home.running() is None


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"pid": "x", "nonce": "", "addresses": {}}', '{"pid": 4194999, "nonce": "", "addresses": {}}'],
)
def test_a_record_that_is_broken_or_of_a_dead_process_is_no_deployment(tmp_path: Path, content: str) -> None:
    (tmp_path / "deployment.json").write_text(content)
    assert Home(tmp_path).running() is None


def test_the_home_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VPLAB_HOME", str(tmp_path))
    assert default_home() == Home(tmp_path)
    monkeypatch.delenv("VPLAB_HOME")
    assert default_home().root.name == "vplab"


def test_a_home_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="cannot use"):
        Home(tmp_path / "file" / "home").create()
