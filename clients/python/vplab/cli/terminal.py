"""What people and scripts get to see: messages on stderr, results on stdout, figures as JSON."""

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from vplab.errors import FieldViolation, InvalidInput, VPLabError

messages = Console(stderr=True, highlight=False, soft_wrap=True)
results = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
"""Tables that go into a file or a pipe are not cut to the width of a terminal that is not there."""


def describe(error: VPLabError) -> str:
    """Return an error as one line that names the field at fault."""
    violations = error.violations if isinstance(error, InvalidInput) else ()
    named = [violation for violation in violations if violation.field]
    if not named:
        return error.message
    if len(named) == 1 and named[0].description == error.message:
        return _line(named[0])
    return f"{error.message} ({'; '.join(map(_line, named))})"


def write_json(path: Path | None, content: dict[str, Any]) -> None:
    """Write a verb's figures where ``--json`` says; ``-`` is stdout. Raises InvalidInput when it cannot."""
    if path is None:
        return
    text = json.dumps(content, indent=2, default=str) + "\n"
    if str(path) == "-":
        sys.stdout.write(text)
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InvalidInput(f"cannot write {path}: {error.strerror or error}", field="--json") from error


def size(num_bytes: int) -> str:
    """Return a size for people."""
    return f"{num_bytes / (1 << 20):,.0f} MiB" if num_bytes >= 10 << 20 else f"{num_bytes / 1024:,.1f} KiB"


def _line(violation: FieldViolation) -> str:
    return f"{violation.field}: {violation.description}"
