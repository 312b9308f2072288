"""Options that several verbs share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from vplab.cli.connection import Where

JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures as JSON; - is stdout.")
]


@dataclass
class Context:
    """What stands before the verb on the command line."""

    where: Where


def where_of(context: typer.Context) -> Where:
    """Return where the services are."""
    found = context.obj
    assert isinstance(found, Context)
    return found.where
