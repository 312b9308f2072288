"""``vplab bench``: how fast a deployment is, under a load of generated images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from vplab.bench.names import AXES, BULKS, SECTIONS, WORKS
from vplab.cli.bench_plan import Plan
from vplab.cli.exit_codes import ExitCode
from vplab.cli.parameters import JsonFile, where_of
from vplab.cli.running import verb
from vplab.cli.terminal import write_json
from vplab.cli.typed_values import artifact_name
from vplab.cli.waiting_client import interruptible
from vplab.errors import InvalidInput

_CONCURRENCY = "1,2,4,8,16"
_MAX_CALLERS = 4096
_OWN = " Measures your own services, which have it."

Name = TypeVar("Name", bound=str)


@verb
def bench(
    context: typer.Context,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where bench.json, bench.md and bench.png go.")],
    work: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What callers and rates do: "
            + "; ".join(f"{name}: {what}" for name, what in WORKS.items())
            + ". Else click.",
        ),
    ] = None,
    concurrency: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBERS",
            help=f"Callers that each wait for their answer; {_CONCURRENCY} unless anything else is to be measured.",
        ),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBERS",
            help="Calls per second that arrive at random and wait for nobody; latency counts from when each was due.",
        ),
    ] = None,
    beside: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Clicks on the idle machine and beside bulk work: "
            + "; ".join(f"{name}: {what}" for name, what in BULKS.items())
            + ".",
        ),
    ] = None,
    growth: Annotated[
        str | None, typer.Option(metavar="NAMES", help=f"How the cost of a call grows: all, or {', '.join(AXES)}.")
    ] = None,
    adapters: Annotated[
        str | None,
        typer.Option(metavar="NUMBER|NAMES", help=f"Calls and clicks name these adapters in turn; else none.{_OWN}"),
    ] = None,
    objects: Annotated[
        int | None, typer.Option(min=1, max=256, help="Objects that each click call asks for; else 1.")
    ] = None,
    segmenter: Annotated[str, typer.Option(metavar="NAME", help=f"Segmenter; else the server's default.{_OWN}")] = "",
    encoder: Annotated[
        str, typer.Option(metavar="NAME", help=f"Encoder of images; else one for mask decoding.{_OWN}")
    ] = "",
    prompt_set: Annotated[
        str, typer.Option(metavar="NAME", help=f"Prompt set to segment by; else a generated one.{_OWN}")
    ] = "",
    seconds: Annotated[float, typer.Option(min=0.1, max=3600, help="Measured in each step.")] = 10.0,
    warm_up: Annotated[float, typer.Option(min=0, max=600, help="Seconds before each step that do not count.")] = 2.0,
    timeout: Annotated[float, typer.Option(min=0.1, max=600, help="Seconds after which a call has failed.")] = 30.0,
    images: Annotated[int, typer.Option(min=1, max=256, help="Different images.")] = 8,
    image_size: Annotated[int, typer.Option(min=64, max=8192, help="Their side, in pixels.")] = 512,
    beside_rate: Annotated[float | None, typer.Option(min=0.1, help="Clicks per second of --beside; else 5.")] = None,
    pairs: Annotated[
        int | None, typer.Option(min=1, max=100, help="How often --beside is measured idle and busy; else 3 times.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, max=64, help="Processes that call; else more as soon as one is saturated.")
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL", help="Prometheus page of a service that this command does not start itself; may be repeated."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of images, clicks and arrivals.")] = 0,
    json_file: JsonFile = None,
) -> ExitCode:
    """Measure latency and throughput of a deployment with generated images.

    Without addresses, services of its own below OUT are started for the run, with what it needs in them. Whoever names
    models of theirs (--segmenter, --encoder, --prompt-set, --adapters by name) measures the services of VPLAB_HOME
    instead, which have them. The first line says what is measured. Figures come with the generator's own share of a
    processor: where that is saturated they are too low. Ctrl-C keeps what was measured. What is
    published in a deployment that is not its own is deleted afterwards.

    Example: vplab bench --out ./speed --concurrency 1,4,16 --rate 5,20 --beside precompute
    """
    from vplab.cli.bench_run import BenchRun  # the load generator, which no other verb needs

    plan = Plan(
        work=None if work is None else _name(work, tuple(WORKS), "--work"),
        concurrency=_concurrency(concurrency, is_default=rate is beside is growth is None),
        rates=_rates(rate),
        beside=None if beside is None else _name(beside, tuple(BULKS), "--beside"),
        growth=_axes(growth),
        adapters=adapters,
        num_objects=objects,
        segmenter=artifact_name(segmenter),
        encoder=artifact_name(encoder),
        prompt_set=artifact_name(prompt_set),
        seconds=seconds,
        warm_up_s=warm_up,
        timeout_s=timeout,
        num_images=images,
        side_px=image_size,
        beside_rate=beside_rate,
        num_pairs=pairs,
        num_processes=processes,
        metrics_urls=tuple(metrics or ()),
        seed=seed,
    )
    plan.check()
    with interruptible():
        report = BenchRun(where_of(context), out, plan).run()
    write_json(json_file, report)
    if not report["is_complete"]:
        return ExitCode.INTERRUPTED
    return ExitCode.PARTLY_FAILED if _has_failures(report) else ExitCode.OK


def _name(word: str, names: Sequence[Name], flag: str) -> Name:
    for name in names:
        if word == name:
            return name
    raise InvalidInput(f"{word!r} is none of {', '.join(names)}", field=flag)


def _axes(text: str | None) -> tuple[Any, ...]:
    if text is None:
        return ()
    words = [word.strip() for word in text.split(",") if word.strip()]
    if words == ["all"]:
        return AXES
    if not words:
        raise InvalidInput(f"takes all, or some of {', '.join(AXES)}", field="--growth")
    return tuple(_name(word, AXES, "--growth") for word in words)


def _concurrency(text: str | None, *, is_default: bool) -> tuple[int, ...]:
    if text is None:
        if not is_default:
            return ()
        text = _CONCURRENCY
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(word.isdecimal() and 1 <= int(word) <= _MAX_CALLERS for word in words):
        message = f"{text!r} is no list of numbers from 1 to {_MAX_CALLERS}, such as 1,4,16"
        raise InvalidInput(message, field="--concurrency")
    return tuple(int(word) for word in words)


def _rates(text: str | None) -> tuple[float, ...]:
    if text is None:
        return ()
    words = [word.strip() for word in text.split(",") if word.strip()]
    try:
        rates = tuple(float(word) for word in words)
    except ValueError:
        rates = (0.0,)
    if not rates or not all(0 < rate < 1e6 for rate in rates):
        raise InvalidInput(f"{text!r} is no list of rates above 0, such as 5,20", field="--rate")
    return rates


def _has_failures(report: dict[str, Any]) -> bool:
    return any(row["errors"] for section in SECTIONS for row in report[section])
