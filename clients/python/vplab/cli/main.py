"""The command line as a whole: what stands before the verb, and the verbs."""

from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated

import typer

from vplab.cli import dataset, exit_codes, jobs, models, running
from vplab.cli.bench import bench
from vplab.cli.connection import Where
from vplab.cli.demo import demo
from vplab.cli.evaluate import evaluate
from vplab.cli.home import Home, default_home
from vplab.cli.parameters import Context
from vplab.cli.prompt import prompt
from vplab.cli.segment import segment
from vplab.cli.serve import serve
from vplab.cli.status import status
from vplab.cli.tune import tune

app = typer.Typer(
    name="vplab",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Visual prompting for inspection: click on one image, segment all the others.",
    epilog=f"Exit codes:\n\n{exit_codes.table()}",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vplab {installed_version('vplab')}")
        raise typer.Exit


@app.callback()
def before_the_verb(
    context: typer.Context,
    home: Annotated[
        Path | None,
        typer.Option(
            envvar="VPLAB_HOME", metavar="FOLDER", help="Data of this machine's own services.", show_default=False
        ),
    ] = None,
    address: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="One address for every service, such as a gateway's.")
    ] = None,
    registry: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Of the registry alone: host:port or unix:/path.")
    ] = None,
    embedding: Annotated[str | None, typer.Option(metavar="ADDRESS", help="The same, of embedding.")] = None,
    segmentation: Annotated[str | None, typer.Option(metavar="ADDRESS", help="The same, of segmentation.")] = None,
    training: Annotated[str | None, typer.Option(metavar="ADDRESS", help="The same, of training.")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Find the services.

    Addresses come from these options or from VPLAB_REGISTRY_ADDRESS and its like; with none of them a verb uses the
    services of VPLAB_HOME, and starts them for its own duration if they are not running.
    """
    running.debug = debug
    context.obj = Context(
        Where(
            home=default_home() if home is None else Home(home.expanduser().absolute()),
            address=address,
            addresses={
                "registry": registry,
                "embedding": embedding,
                "segmentation": segmentation,
                "training": training,
            },
        )
    )


app.command()(bench)
app.command()(demo)
app.command()(evaluate)
app.command()(prompt)
app.command()(segment)
app.command()(serve)
app.command()(status)
app.command()(tune)
app.add_typer(dataset.app, name="dataset")
app.add_typer(jobs.app, name="jobs")
app.add_typer(models.app, name="models")


def main() -> None:
    """Run the command line; the entry point of ``vplab``."""
    app()


if __name__ == "__main__":
    main()
