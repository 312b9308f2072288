import subprocess
import sys
from pathlib import Path

import pytest

from vplab.cli.exit_codes import MEANINGS, ExitCode, exit_code_of, table
from vplab.cli.terminal import describe
from vplab.errors import FieldViolation, InvalidInput, NotFound, VPLabError
from vplab.wire.status import KIND_TO_CODE


@pytest.mark.parametrize("kind", list(KIND_TO_CODE), ids=lambda kind: kind.__name__)
def test_every_kind_of_error_has_a_code_that_is_not_success(kind: type[VPLabError]) -> None:
    class Special(kind):  # type: ignore[misc, valid-type]
        pass

    assert exit_code_of(kind("x")) not in (ExitCode.OK, ExitCode.PARTLY_FAILED, ExitCode.USAGE)
    assert exit_code_of(Special("x")) == exit_code_of(kind("x"))


def test_every_code_is_documented_in_help_and_readme() -> None:
    assert set(MEANINGS) == set(ExitCode)
    readme = (Path(__file__).parents[3] / "clients" / "README.md").read_text()
    for code, meaning in MEANINGS.items():
        assert f"{code.value}: {meaning}" in table()
        assert f"| {code.value} | {meaning} |" in readme


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (NotFound("no such thing"), "no such thing"),
        (InvalidInput("is wrong", field="a.b"), "a.b: is wrong"),
        (InvalidInput("no"), "no"),
        (InvalidInput("two", violations=[FieldViolation("a", "x"), FieldViolation("b", "y")]), "two (a: x; b: y)"),
    ],
)
def test_an_error_is_one_line_that_names_the_field(error: VPLabError, text: str) -> None:
    assert describe(error) == text


def test_every_verb_shows_an_example_in_its_help() -> None:
    from typer.main import get_command

    from vplab.cli.main import app

    def verbs(command, path):  # type: ignore[no-untyped-def]
        for name, inner in getattr(command, "commands", {}).items():
            if hasattr(inner, "commands"):
                yield from verbs(inner, [*path, name])
            else:
                yield " ".join([*path, name]), inner.help

    found = dict(verbs(get_command(app), ["vplab"]))
    assert {"vplab serve", "vplab prompt", "vplab segment", "vplab status", "vplab demo", "vplab models list"} <= set(
        found
    )
    for verb, text in found.items():
        assert f"Example: {verb}" in text, verb


def test_the_command_loads_neither_torch_nor_a_service() -> None:
    code = "import sys, vplab.cli.main; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "vplab" in loaded
    assert not {"torch", "onnxruntime", "sqlalchemy"} & set(loaded)
