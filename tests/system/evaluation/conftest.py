"""Commands with a home of their own, and a check that they leave nothing running."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.vplab_command import Vplab


@pytest.fixture
def vplab(tmp_path: Path) -> Iterator[Vplab]:
    # The verb has services of its own below its output folder; a home that is used would show here.
    yield Vplab(tmp_path / "home", {})
    assert not (tmp_path / "home").exists()
