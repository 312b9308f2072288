"""What ``vplab models`` refuses before it does anything slow."""

import pytest
from typer.testing import CliRunner

from vplab.cli.exit_codes import exit_code_of
from vplab.cli.main import app
from vplab.errors import InvalidInput
from vplab.training.models import download


def test_a_precision_that_does_not_exist_is_refused_before_anything_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(download, "download")
    ran = CliRunner().invoke(app, ["models", "pull", "mobile-sam", "--precision", "float8"])
    assert ran.exit_code == exit_code_of(InvalidInput("no"))
    assert "'float8' is none of float32, float16, float16-encoder" in ran.stderr
