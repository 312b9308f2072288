"""``vplab evaluate``: how good every method is on a folder with true masks."""

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table as RichTable

from vplab.cli.connection import Where
from vplab.cli.evaluation_sheets import write_sheets
from vplab.cli.exit_codes import ExitCode
from vplab.cli.home import Home
from vplab.cli.model_names import model_name
from vplab.cli.option_checks import refuse_ignored
from vplab.cli.parameters import JsonFile, where_of
from vplab.cli.pictures import write_whole
from vplab.cli.running import verb
from vplab.cli.terminal import describe, messages, results, write_json
from vplab.cli.typed_values import artifact_name
from vplab.cli.waiting_client import interruptible, waiting_client
from vplab.client import AsyncClient, Client
from vplab.client.options import Area
from vplab.errors import InvalidInput, ResourceExhausted, Unimplemented, VPLabError
from vplab.evaluation.folder import FolderOptions, LabelledFolder, read_folder
from vplab.evaluation.methods import (
    MethodNames,
    adapter_names,
    choose_methods,
    click_method_names,
    shot_method_names,
)
from vplab.evaluation.plan import Plan, make_plan
from vplab.evaluation.plot import plot_shots, plot_tuned
from vplab.evaluation.results import Results
from vplab.evaluation.run import Measuring
from vplab.evaluation.scores import BOUNDARY_TOLERANCE
from vplab.evaluation.served import Services
from vplab.evaluation.software import describe_software
from vplab.evaluation.splits import Splits, make_splits
from vplab.evaluation.summary import (
    MEASURES,
    list_unlearned,
    summarize_clicks,
    summarize_learned_clicks,
    summarize_shots,
    summarize_tunings,
)
from vplab.evaluation.tables import Table, tables_of
from vplab.evaluation.tuned import Tuner

_SHOTS = "0,1,5,10,40"
_ALL = "all"
"""The number of shots that is every image not tested."""
_MAX_SHOTS = 10_000


@verb
def evaluate(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="A folder with images/ and masks/.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where results go; a second run goes on here.")],
    methods: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help=f"With commas between. From shots: {', '.join(shot_method_names())}. "
            f"From a box or clicks: {', '.join(click_method_names())}. From a box or clicks after tuning on the "
            f"shots: {', '.join(adapter_names())}. Tuned and matched: softmatch+e-peft and the like. "
            "All that are installed, without tuning, unless given.",
        ),
    ] = None,
    shots: Annotated[
        str, typer.Option(metavar="NUMBERS", help="Validated images to learn from; 'all' is every one not tested.")
    ] = _SHOTS,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Different choices of shots.")] = 3,
    max_test: Annotated[int, typer.Option(min=1, help="Most images that are tested; half of the folder at most.")] = 40,
    classes: Annotated[
        str | None, typer.Option(metavar="VALUES", help="Mask values to look for, such as 1,2; else all but 0.")
    ] = None,
    binary: Annotated[bool, typer.Option("--binary", help="Any mask value but 0 is the one class.")] = False,
    segments: Annotated[
        bool, typer.Option("--segments", help="Values number segments without a meaning: box and clicks only.")
    ] = False,
    mask_suffix: Annotated[str, typer.Option(metavar="TEXT", help="What masks have after the image's name.")] = "",
    ids: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Only these images: a name without its ending on each line.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=2, help="At most this many images, evenly from the folder.")] = None,
    max_side: Annotated[int | None, typer.Option(min=32, help="Reduce images above this side, for all.")] = None,
    segmenter: Annotated[str, typer.Option(metavar="NAME", help="Such as sam-vit-b; else the server's default.")] = "",
    feature_encoder: Annotated[
        str,
        typer.Option("--features", "--encoder", metavar="NAME", help="Such as dinov2-vits14; else the server's."),
    ] = "",
    tuning_steps: Annotated[
        int | None, typer.Option(min=1, metavar="NUMBER", help="Steps of every tuning; else each method's own.")
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Forget what an earlier run did in OUT.")] = False,
    json_file: JsonFile = None,
) -> ExitCode:
    """Measure matchers, the segmenter, tuned adapters and what people use instead, on images with true masks.

    OUT gets results.json, results.md, shots.png, tuned.png, splits.json, sheets/ (best and worst images of each method)
    and journal.jsonl (every image, every tuning). Shots and tested images are the same for every method. Killed at any
    moment, the same command goes on where it stopped; with other --methods, --shots or --seeds it adds to what is
    there. Services of its own below OUT are used unless addresses or models are named.

    Example: vplab evaluate ./parts --out ./accuracy --methods e-peft,softmatch+e-peft --shots 0,1,5
    """
    if segments:
        refuse_ignored("segments have no classes", binary=binary, classes=classes)
    names = choose_methods(None if methods is None else _words(methods))
    options = FolderOptions(
        values=() if classes is None else _numbers(classes, "--classes", 65535),
        is_binary=binary,
        is_segments=segments,
        mask_suffix=mask_suffix,
        ids=None if ids is None else _read_ids(ids),
        limit=limit,
        max_side=max_side,
    )
    with interruptible():
        with messages.status("looking at the images"):
            found = read_folder(folder, options)
        splits = make_splits(found, max_test, seeds)
        job = _Job(
            where=where_of(context),
            names=names,
            num_shots=_num_shots(shots, splits),
            folder=found,
            splits=splits,
            out=out,
            segmenter=artifact_name(segmenter),
            feature_encoder=artifact_name(feature_encoder),
            max_test=max_test,
            tuning_steps=tuning_steps,
        )
        if restart:
            job.forget()
        summary = job.run()
    write_json(json_file, summary)
    return ExitCode.PARTLY_FAILED if _num_failed(summary) else ExitCode.OK


@dataclass(frozen=True)
class _Job:
    where: Where
    names: MethodNames
    num_shots: tuple[int, ...]
    folder: LabelledFolder
    splits: Splits
    out: Path
    segmenter: str
    feature_encoder: str
    max_test: int
    tuning_steps: int | None

    def run(self) -> dict[str, Any]:
        """Measure what is left and write everything; also what there is when it is interrupted."""
        began = time.monotonic()
        with self._results() as journal:
            self._write("splits.json", self.splits.to_json())
            measuring = Measuring(self.folder, self.splits, journal, self.out / "predictions")
            plan, about = Plan(), dict[str, Any]()
            try:
                with self._services(journal) as (services, tuner):
                    plan = make_plan(
                        self.names,
                        self.num_shots,
                        self.splits,
                        services,
                        tuner,
                        is_segments=self.folder.options.is_segments,
                    )
                    _measure(plan, measuring, services, tuner)
                    about = {} if services is None else _devices(services.client)
            except BaseException as error:
                if journal.shots or journal.clicks:
                    self._report(plan, measuring, about, time.monotonic() - began, is_complete=False)
                if isinstance(error, KeyboardInterrupt):
                    messages.print("stopped: the same command goes on from here", style="yellow")
                raise
            summary = self._report(plan, measuring, about, time.monotonic() - began, is_complete=True)
            write_sheets(measuring, self.out / "sheets")
        shutil.rmtree(self._own_home, ignore_errors=True)
        results.print(f"written to {self.out}", markup=False)
        return summary

    def forget(self) -> None:
        """Remove what an earlier run left."""
        try:
            (self.out / "journal.jsonl").unlink(missing_ok=True)
        except OSError as error:
            raise InvalidInput(f"cannot write to {self.out}: {error.strerror or error}", field="--out") from error
        for part in ("predictions", "sheets"):
            shutil.rmtree(self.out / part, ignore_errors=True)

    @property
    def _own_home(self) -> Path:
        return self.out / "services"

    @property
    def _has_own_services(self) -> bool:
        # Models that were imported are in the registry of the user's home; the built-in ones are in every one.
        return not self.where.named() and not self.segmenter and not self.feature_encoder

    def _settings(self) -> dict[str, Any]:
        """What results must have in common to stand in one table."""
        options = asdict(self.folder.options)
        ids = options.pop("ids")
        return {
            "folder": self.folder.digest,
            "max_test": self.max_test,
            "test_images": self.splits.test_digest,
            "segmenter": self.segmenter,
            "encoder": self.feature_encoder,
            "boundary_tolerance": BOUNDARY_TOLERANCE,
            "num_ids": None if ids is None else len(ids),
            **options,
            # Only where it is said: figures of nothing tuned do not depend on it.
            **({} if self.tuning_steps is None else {"tuning_steps": self.tuning_steps}),
        }

    def _results(self) -> Results:
        try:
            return Results.open(self.out / "journal.jsonl", self._settings())
        except OSError as error:
            raise InvalidInput(f"cannot write to {self.out}: {error.strerror or error}", field="--out") from error

    @contextmanager
    def _services(self, journal: Results) -> Iterator[tuple[Services | None, Tuner | None]]:
        if not self.names.are_served:
            yield None, None
            return
        where = Where(Home(self._own_home.absolute())) if self._has_own_services else self.where
        needs: list[Area] = ["segmentation", "registry"]
        if self.names.are_tuned:
            needs.append("training")
        with ExitStack() as stack:
            client = stack.enter_context(waiting_client(where, needs, "batch"))
            encoded = lru_cache(maxsize=64)(self.folder.encoded)
            try:
                segmenter, encoder = client.wait_for(self._models)
            except VPLabError:
                if not (journal.shots or journal.clicks or journal.tunings):
                    self.forget()  # a misspelt name must not keep the right one out of a folder without results
                raise
            services = Services(client, encoded, segmenter, encoder, journal.note_model, journal.begin_run())
            tuner = Tuner(services, journal, self.tuning_steps) if self.names.are_tuned else None
            try:
                yield services, tuner
            except BaseException:
                if tuner is None:  # adapters, also those under way, are kept for whoever goes on from here
                    self._forget(journal, services)
                raise
            self._forget(journal, services)

    async def _models(self, client: AsyncClient) -> tuple[str, str]:
        return (
            await model_name(client, self.segmenter, "segmenter", "--segmenter"),
            await model_name(client, self.feature_encoder, "encoder", "--features"),
        )

    def _forget(self, journal: Results, services: Services) -> None:
        """Remove what was published for this evaluation; services of its own are removed with all they have."""
        if not self._has_own_services:
            try:
                Tuner(services, journal).forget()
            except VPLabError as error:
                message = f"artifacts/evaluation-{services.run_id}-* stay: {describe(error)}"
                messages.print(message, style="yellow", markup=False)
            journal.end_run()

    def _report(
        self, plan: Plan, measuring: Measuring, about: dict[str, Any], wall_s: float, *, is_complete: bool
    ) -> dict[str, Any]:
        journal = measuring.results
        summary: dict[str, Any] = {
            "folder": str(self.folder.root),
            "is_complete": is_complete,
            "classes": [asdict(target) for target in self.folder.classes],
            "num_images": len(self.folder.images),
            "num_test": len(self.splits.test),
            "num_shot_candidates": self.splits.num_candidates,
            "num_all": self.splits.num_all,
            "num_seeds": len(self.splits.shots),
            "measures": MEASURES,
            "settings": journal.lines.settings,
            "shots": summarize_shots(journal, self.splits, [target.class_id for target in self.folder.classes]),
            "clicks": summarize_clicks(journal, measuring.click_keys),
            "tuned": summarize_learned_clicks(journal, measuring.click_keys, self.splits.shots),
            "tunings": summarize_tunings(journal),
            "skipped": [asdict(skipped) for skipped in plan.skipped],
            "not_learned": list_unlearned(journal),
            "models": journal.models,
            **about,
            **describe_software(),
            "wall_s": round(wall_s, 1),
        }
        tables = tables_of(summary)
        self._write("results.json", json.dumps(summary, indent=1) + "\n")
        notes = "\n".join(f"- {text}" for text in _not_learned(summary))
        parts = [*(table.to_markdown() for table in tables), *([notes] if notes else [])]
        self._write("results.md", "\n\n".join(parts) + "\n")
        title = self.folder.root.resolve().name
        try:
            if summary["shots"]:
                self._write("shots.png", plot_shots(summary, title))
            if summary["tuned"]:
                self._write("tuned.png", plot_tuned(summary, title))
        except Unimplemented as error:
            messages.print(error.message, style="yellow", markup=False)
        _print(tables, summary)
        return summary

    def _write(self, name: str, content: str | bytes) -> None:
        try:
            write_whole(self.out / name, content.encode() if isinstance(content, str) else content)
        except OSError as error:
            message = f"cannot write {self.out / name}: {error.strerror or error}"
            raise ResourceExhausted(message, reason="STORAGE_FULL") from error


def _measure(plan: Plan, measuring: Measuring, services: Services | None, tuner: Tuner | None) -> None:
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns, console=messages, transient=True) as progress:
        doing = ""
        total, done = plan.count(measuring)
        task = progress.add_task("measuring", total=total, completed=done)

        def on_image(message: str) -> None:
            progress.advance(task)
            if message:
                progress.console.print(message, style="red", markup=False)

        def on_method(name: str) -> None:
            nonlocal doing
            doing = name
            progress.update(task, description=name)

        if tuner is not None:
            tuner.on_stage = lambda stage: progress.update(task, description=f"{doing}: {stage}")
        plan.run(measuring.telling(on_image), services, on_method)


def _devices(client: Client) -> dict[str, Any]:
    try:
        served = client.replica("segmentation").info().served_models
    except VPLabError:  # a gateway may not say what stands behind it
        return {}
    return {"devices": sorted({model.device for model in served if model.device})}


def _print(tables: Sequence[Table], summary: dict[str, Any]) -> None:
    for table in tables:
        shown = RichTable("method", *table.columns, title=f"{table.title}, %", title_justify="left", box=None)
        for name, cells in table.rows:
            shown.add_row(name, *(f"[bold]{cell.text}[/]" if cell.is_best else cell.text for cell in cells))
        results.print(shown)
        results.print()
    for method, made in summary["tunings"].items():
        for number, took in made["shots"].items():
            stages = {name.removeprefix("seconds_"): s for name, s in took.items() if name.startswith("seconds_")}
            listed = ", ".join(f"{name} {seconds:.1f}" for name, seconds in stages.items())
            shots = "1 shot" if number == "1" else f"{number} shots"
            results.print(f"{method}, {shots}: {took['wall_s']:.1f} s a job ({listed})", style="dim")
    results.print(
        f"{summary['num_test']} of {summary['num_images']} images tested, the same for all; ± is the standard "
        f"deviation over {summary['num_seeds']} seeds, for marked objects the standard error"
    )
    reasons: dict[tuple[str, str], list[str]] = {}
    for skipped in summary["skipped"]:
        number = skipped["num_shots"]
        reasons.setdefault((skipped["method"], skipped["reason"]), []).append("" if number is None else str(number))
    for (method, reason), numbers in reasons.items():
        which = "" if numbers == [""] else f" with {', '.join(numbers)} shots"
        messages.print(f"{method}{which} left out: {reason}", style="dim", markup=False)
    for text in _not_learned(summary):
        messages.print(text, style="yellow", markup=False)
    if failed := _num_failed(summary):
        messages.print(f"{failed} answers failed: see journal.jsonl", style="yellow")


def _not_learned(summary: dict[str, Any]) -> list[str]:
    return [
        f"{found['method']} with {found['num_shots']} shot{'' if found['num_shots'] == 1 else 's'} was not measured "
        f"for seed {', '.join(map(str, found['seeds']))}, it could not learn: {found['reason']}"
        for found in summary["not_learned"]
    ]


def _num_failed(summary: dict[str, Any]) -> int:
    learned = (*summary["shots"].items(), *summary["tuned"].items())
    # A matcher's figures without a shot stand beside its adapters' again.
    shots = (found for name, by in learned for number, found in by.items() if number != "0" or "+" not in name)
    return sum(figures["num_failed"] for figures in (*shots, *summary["clicks"].values()))


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _num_shots(text: str, splits: Splits) -> tuple[int, ...]:
    words = _words(text)
    numbers = [word for word in words if word != _ALL]
    counts = _numbers(",".join(numbers), "--shots", _MAX_SHOTS) if numbers or not words else ()
    return (*counts, splits.num_all) if _ALL in words else counts


def _numbers(text: str, flag: str, most: int) -> tuple[int, ...]:
    words = _words(text)
    if not words or not all(word.isdecimal() and int(word) <= most for word in words):
        raise InvalidInput(f"{text!r} is no list of numbers up to {most}, such as 1,5", field=flag)
    return tuple(int(word) for word in words)


def _read_ids(path: Path) -> tuple[str, ...]:
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"cannot read {path}: {error}", field="--ids") from error
    if not names:
        raise InvalidInput(f"{path} names no image", field="--ids")
    return names
