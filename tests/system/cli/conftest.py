"""Commands with a home of their own, and a check that they leave nothing running."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.vplab_command import Vplab, wait_for


@pytest.fixture
def vplab(tmp_path: Path) -> Iterator[Vplab]:
    command = Vplab(tmp_path / "home", {})
    yield command
    wait_for(lambda: not command.services(), timeout_s=45)
