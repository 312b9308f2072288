"""``vplab jobs``: tuning jobs that are queued, running or over."""

from contextlib import aclosing
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.table import Table

from vplab.cli.connection import connected
from vplab.cli.parameters import JsonFile, where_of
from vplab.cli.running import run_async, verb
from vplab.cli.terminal import results, write_json
from vplab.cli.tune_times import stage_times
from vplab.cli.tune_watch import JobProgress, follow_job, raise_unless_succeeded
from vplab.client.training.values import TuningJob

app = typer.Typer(no_args_is_help=True, help="Tuning jobs: list, look at, follow and cancel them.")

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="As vplab tune and vplab jobs list name it.")]
_PREFIX = "tuningJobs/"


@app.command("list")
@verb
def list_jobs(
    context: typer.Context,
    most: Annotated[int, typer.Option("--most", min=1, help="At most this many, the newest.")] = 20,
    is_active: Annotated[bool, typer.Option("--active", help="Only those that are queued or running.")] = False,
    json_file: JsonFile = None,
) -> None:
    """List tuning jobs, the newest first.

    Example: vplab jobs list --active
    """

    async def work() -> list[TuningJob]:
        found: list[TuningJob] = []
        async with (
            connected(where_of(context), ("training",)) as client,
            aclosing(client.training.list_tuning_jobs()) as newest_first,  # type: ignore[type-var]
        ):
            async for job in newest_first:
                if not (is_active and job.is_done):
                    found.append(job)
                if len(found) == most:
                    break
        return found

    jobs = run_async(work())
    table = Table("job", "state", "stage", "method", "data set", "adapter", "made (UTC)", box=None, pad_edge=False)
    for job in jobs:
        adapter = "" if job.adapter is None else _short(job.adapter.name)
        when = f"{job.create_time:%Y-%m-%d %H:%M}" if job.create_time else ""
        stage = "" if job.is_done else job.stage
        cells = (job.name.removeprefix(_PREFIX), job.state, stage, job.method, _short(job.dataset.name), adapter, when)
        table.add_row(*cells)
    results.print(table)
    write_json(json_file, {"jobs": [asdict(job) for job in jobs]})


@app.command()
@verb
def show(context: typer.Context, job: JobArgument, json_file: JsonFile = None) -> None:
    """Show one job: what it tunes on what, how far it is, and what came of it.

    Example: vplab jobs show 3f0c1d2e-5a6b-4c7d-8e9f-0a1b2c3d4e5f
    """

    async def work() -> TuningJob:
        async with connected(where_of(context), ("training",)) as client:
            return await client.training.get_tuning_job(_name(job))

    _report(run_async(work()), json_file)


@app.command()
@verb
def watch(context: typer.Context, job: JobArgument, json_file: JsonFile = None) -> None:
    """Follow a job to its end, as vplab tune does; Ctrl-C leaves the job alone. Ends as the job did.

    Example: vplab jobs watch 3f0c1d2e-5a6b-4c7d-8e9f-0a1b2c3d4e5f
    """

    async def work() -> TuningJob:
        async with connected(where_of(context), ("training",)) as client:
            found = await client.training.get_tuning_job(_name(job))
            with JobProgress() as progress:
                return found if found.is_done else await follow_job(client, found, progress.show)

    ended = run_async(work())
    _report(ended, json_file)
    raise_unless_succeeded(ended)


@app.command()
@verb
def cancel(context: typer.Context, job: JobArgument, json_file: JsonFile = None) -> None:
    """End a job; no adapter is published. One that is over stays as it is.

    Example: vplab jobs cancel 3f0c1d2e-5a6b-4c7d-8e9f-0a1b2c3d4e5f
    """

    async def work() -> TuningJob:
        async with connected(where_of(context), ("training",)) as client:
            return await client.training.cancel_tuning_job(_name(job))

    _report(run_async(work()), json_file)


def _report(job: TuningJob, json_file: Any) -> None:
    results.print(f"{job.name}: {job.state}" + ("" if job.is_done else f", {job.stage}"), markup=False)
    results.print(f"{job.method} of {_short(job.segmenter.name)} on {_short(job.dataset.name)}", markup=False)
    for text in (job.message, "" if job.adapter is None else job.adapter.name, job.promotion, stage_times(job.metrics)):
        if text:
            results.print(text, markup=False)
    write_json(json_file, asdict(job))


def _name(text: str) -> str:
    return text if text.startswith(_PREFIX) else f"{_PREFIX}{text}"


def _short(version: str) -> str:
    return version.removeprefix("artifacts/").replace("/versions/", "@")
