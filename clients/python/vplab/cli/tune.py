"""``vplab tune``: corrected masks become an adapter."""

import asyncio
import contextlib
import hashlib
import json
import sys
import time
import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import typer

from vplab.cli.connection import Where, connected
from vplab.cli.dataset_sources import dataset_id_of, fetch_dataset, find_dataset, parse_class, read_source
from vplab.cli.exit_codes import ExitCode
from vplab.cli.field_flags import TUNING, told_by_flags
from vplab.cli.home import Home
from vplab.cli.missing_aliases import promote_command
from vplab.cli.model_names import model_name
from vplab.cli.option_checks import refuse_ignored
from vplab.cli.parameters import JsonFile, where_of
from vplab.cli.pictures import save_picture, write_whole
from vplab.cli.running import run_async, verb
from vplab.cli.terminal import messages, results, write_json
from vplab.cli.tune_preview import Compared, Comparing, before_after_sheet
from vplab.cli.tune_times import stage_times
from vplab.cli.tune_watch import JobProgress, follow_job, raise_unless_succeeded
from vplab.cli.typed_values import artifact_name
from vplab.client import AsyncClient
from vplab.client.datasets import Dataset, choose_shots, publish_dataset
from vplab.client.options import Area
from vplab.client.training.values import TuningJob, TuningMethodName, TuningOptions, TuningRequest
from vplab.errors import InvalidInput, ResourceExhausted, VPLabError

_METHODS: tuple[TuningMethodName, ...] = get_args(TuningMethodName)
_MAX_COMPARED = 12
_NOT_PROMOTED = "not promoted"
"""How the training service begins when an alias stayed where it was."""


@verb
@told_by_flags(TUNING)
def tune(
    context: typer.Context,
    dataset: Annotated[str, typer.Option(metavar="NAME|DIR", help="Data set in the registry, or a folder to push.")],
    adapter: Annotated[str, typer.Option(metavar="ID", help="Name of the adapter; an existing one gets a version.")],
    shots: Annotated[int | None, typer.Option(min=1, help="Use only this many of its images.")] = None,
    method: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"One of {', '.join(_METHODS)}; else e_peft.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of optimisation; else the method's.")] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0, help="Else the method's.")] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Rank of low-rank updates.")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Number of prompt tokens.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds and data give equal adapters.")] = 0,
    early_features: Annotated[
        bool | None,
        typer.Option("--early-features/--no-early-features", help="Of hq_token; else where the encoder gives them."),
    ] = None,
    segmenter: Annotated[str, typer.Option(metavar="NAME", help="What to tune; else the server's default.")] = "",
    prompt_set: Annotated[
        str, typer.Option(metavar="NAME", help="Whose matcher proposes what to train on; else softmatch.")
    ] = "",
    promote: Annotated[str, typer.Option(metavar="ALIAS", help="Move this alias of the adapter to the result.")] = "",
    only_if_better: Annotated[
        bool, typer.Option("--only-if-better", help="Promote only if the IoU is not below what it names now.")
    ] = False,
    classes: Annotated[
        list[str] | None, typer.Option("--class", metavar="ID=NAME", help="A class of a folder's masks.")
    ] = None,
    is_binary: Annotated[
        bool | None, typer.Option("--binary/--class-ids", help="What a folder's mask values mean.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Queue the job and do not wait for it.")] = False,
    cancels: Annotated[
        bool | None,
        typer.Option("--cancel-on-interrupt/--leave-on-interrupt", help="What Ctrl-C does to the job; else it asks."),
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Before and after, as a picture; else ID.jpg.")
    ] = None,
    no_sheet: Annotated[bool, typer.Option("--no-sheet", help="Make no picture.")] = False,
    json_file: JsonFile = None,
) -> ExitCode:
    """Tune the segmenter to a few corrected masks, publish the result as an adapter, and show what it changed.

    Interrupted, the job goes on by itself and the same command follows it again.

    Example: vplab tune --dataset ./result --shots 5 --adapter scratches-adapter --promote production
    """
    if only_if_better and not promote:
        raise InvalidInput("--only-if-better says when to promote: name the alias with --promote", field="--promote")
    if not Path(dataset).exists():
        why = "a data set of the registry has its classes, only a folder's masks need them"
        refuse_ignored(why, **{"class": classes, "binary": is_binary}, class_ids=is_binary is False)
    if detach:
        why = "with --detach nobody waits for the job's end"
        refuse_ignored(why, sheet=sheet)
        refuse_ignored(why, cancel_on_interrupt=cancels, leave_on_interrupt=cancels is False)
    if no_sheet:
        refuse_ignored("--no-sheet makes no picture", sheet=sheet)
    options = TuningOptions(
        num_steps=steps,
        learning_rate=learning_rate,
        lora_rank=rank,
        num_prompt_tokens=tokens,
        seed=seed,
        early_features=early_features,
    )
    request = TuningRequest(
        adapter_id=adapter,
        data=dataset,
        segmenter=artifact_name(segmenter),
        prompt_set=artifact_name(prompt_set),
        method=_method(method),
        options=options,
        promote_alias=promote,
        promote_only_if_better=only_if_better,
    )
    picture = None if no_sheet or detach else sheet or Path(f"{adapter}.jpg")
    where = where_of(context)
    given = [parse_class(text) for text in classes or ()]
    local = read_source(Path(dataset), given, is_binary=is_binary) if Path(dataset).exists() else None
    work = _Tuning(where, request, local, shots, picture, detach, cancels)
    began = time.monotonic()
    outlives_us = bool(where.named()) or where.home.running() is not None
    job, compared, interrupted = run_async(work.run())
    summary = _summary(job, compared, picture, time.monotonic() - began)
    _report(summary, job, promote)
    write_json(json_file, summary)
    if detach and not job.is_done and not outlives_us:
        commands = f"'vplab serve', or 'vplab jobs watch {job.name.rpartition('/')[2]}'"
        text = f"nobody works on it: the services ended with this command. Run {commands}"
        messages.print(text, style="yellow", markup=False)
    if interrupted:
        raise KeyboardInterrupt
    raise_unless_succeeded(job)
    return ExitCode.OK


@dataclass
class _Tuning:
    where: Where
    request: TuningRequest
    local: Dataset | None
    """The data set that is read from a folder; None where it is in the registry."""
    shots: int | None
    picture: Path | None
    detaches: bool
    cancels: bool | None

    async def run(self) -> tuple[TuningJob, list[Compared], bool]:
        needs: list[Area] = ["training", "registry"]
        if self.picture is not None:
            needs.append("segmentation")
        async with connected(self.where, needs) as client:
            segmenter = await model_name(client, self.request.segmenter, "segmenter", "--segmenter")
            whole, chosen, version = await self._data(client)
            request = replace(self.request, data=version, segmenter=segmenter)
            record = _Record(self.where.home, {"addresses": self.where.named(), "request": asdict(request)})
            job = await self._begin(client, request, record)
            if self.detaches:
                return job, [], False
            try:
                with JobProgress() as progress:
                    job = await follow_job(client, job, progress.show)
                compared: list[Compared] = []
                if self.picture is not None and job.adapter is not None:
                    with messages.status("comparing before and after"):
                        compared = await self._compare(client, job, whole, chosen)
                        await asyncio.to_thread(_save, compared, self.picture)
                record.forget()
                return job, compared, False
            except asyncio.CancelledError:
                return await self._interrupted(client, job), [], True

    async def _data(self, client: AsyncClient) -> tuple[Dataset, Dataset, str]:
        """Return all images, those to learn from, and the version that holds exactly these."""
        if self.local is not None:
            whole, name = self.local, dataset_id_of(Path(str(self.request.data)))
            version = ""
        else:
            found = await find_dataset(client, str(self.request.data))
            version, name = found.name, found.name.split("/")[1]
            if self.shots is None and self.picture is None:
                return _NOTHING, _NOTHING, version
            whole = await fetch_dataset(client, self.where.home, found)
        chosen = whole if self.shots is None else choose_shots(whole, self.shots, self.request.options.seed or 0)
        if version and self.shots is None:
            return whole, chosen, version
        with messages.status("publishing the data set"):
            if not version:
                version = (await publish_dataset(client, name, whole)).name
            if self.shots is not None:
                about = f"{self.shots} of {len(whole.items)} images of {version}"
                version = (await publish_dataset(client, f"{name[:55]}-shots", chosen, description=about)).name
        return whole, chosen, version

    async def _begin(self, client: AsyncClient, request: TuningRequest, record: "_Record") -> TuningJob:
        """Queue the job, or find the one that an earlier, interrupted run of this command queued."""
        earlier = record.request_id()
        if earlier is not None:
            job = await client.training.create_tuning_job(request, request_id=earlier)
            if job.state not in ("failed", "cancelled"):
                messages.print(f"going on with {job.name}", style="dim", markup=False)
                return job
        job = await client.training.create_tuning_job(request, request_id=record.new_request_id())
        messages.print(f"{job.name} queued", style="dim", markup=False)
        return job

    async def _compare(self, client: AsyncClient, job: TuningJob, whole: Dataset, chosen: Dataset) -> list[Compared]:
        assert job.adapter is not None
        comparing = Comparing(client, job.segmenter.name, job.adapter.name, self.request.prompt_set)
        names = frozenset(item.file_name for item in chosen.items)
        return await comparing.compare(whole, names, _MAX_COMPARED)

    async def _interrupted(self, client: AsyncClient, job: TuningJob) -> TuningJob:
        cancels = self.cancels
        if cancels is None:
            try:
                cancels = sys.stdin.isatty() and typer.confirm(f"Cancel {job.name}?", default=False, err=True)
            except typer.Abort:
                cancels = False
        if cancels:
            job = await client.training.cancel_tuning_job(job.name)
            messages.print(f"{job.name} is cancelled", style="yellow", markup=False)
        else:
            with contextlib.suppress(VPLabError):
                job = await client.training.get_tuning_job(job.name)
            text = f"{job.name} goes on wherever its services run; the same command follows it again"
            messages.print(text, style="yellow", markup=False)
        return job


_NOTHING = Dataset((), ())


class _Record:
    """The request id under which a command queued its job, so that a repeat finds the job instead of a second one."""

    def __init__(self, home: Home, content: dict[str, Any]) -> None:
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        self._home = home
        self._path = home.root / "tuning" / f"{digest}.json"

    def request_id(self) -> str | None:
        try:
            return str(uuid.UUID(json.loads(self._path.read_bytes())["request_id"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def new_request_id(self) -> str:
        request_id = str(uuid.uuid4())
        self._home.create()
        try:
            write_whole(self._path, json.dumps({"request_id": request_id}).encode())
        except OSError as error:
            message = f"cannot write {self._path}: {error.strerror or error}"
            raise ResourceExhausted(message, reason="STORAGE_FULL") from error
        return request_id

    def forget(self) -> None:
        self._path.unlink(missing_ok=True)


def _method(name: str | None) -> TuningMethodName | None:
    text = None if name is None else name.replace("-", "_")
    for method in _METHODS:
        if text == method:
            return method
    if text is None:
        return None
    raise InvalidInput(f"{name!r} is none of {', '.join(_METHODS)}", field="--method")


def _save(compared: list[Compared], picture: Path) -> None:
    if not compared:
        return
    try:
        save_picture(before_after_sheet(compared), picture)
    except OSError as error:
        raise InvalidInput(f"cannot write {picture}: {error.strerror or error}", field="--sheet") from error


def _summary(job: TuningJob, compared: list[Compared], picture: Path | None, seconds: float) -> dict[str, Any]:
    return {
        "job": job.name,
        "state": job.state,
        "stage": job.stage,
        "message": job.message,
        "method": job.method,
        "options": asdict(job.options),
        "adapter": None if job.adapter is None else asdict(job.adapter),
        "dataset": asdict(job.dataset),
        "segmenter": asdict(job.segmenter),
        "metrics": dict(job.metrics),
        "promotion": job.promotion,
        "compared": [
            {
                "file_name": pair.item.file_name,
                "iou_before": pair.iou_before,
                "iou_after": pair.iou_after,
                "was_tuned_on": pair.was_tuned_on,
            }
            for pair in compared
        ],
        "sheet": str(picture) if compared else None,
        "seconds": round(seconds, 3),
    }


def _report(summary: dict[str, Any], job: TuningJob, alias: str) -> None:
    if job.adapter is None:
        results.print(f"{job.name}: {job.state}", markup=False)
        return
    metrics = job.metrics
    validation = ""
    if {"validation_iou_before", "validation_iou_after"} <= set(metrics):
        validation = f": IoU {metrics['validation_iou_before']:.3f} -> {metrics['validation_iou_after']:.3f}"
        # Too few images to leave some out: what was measured on is what was learned from.
        is_unseen = metrics.get("validation_is_held_out", 1.0) > 0
        validation += " on validation images" if is_unseen else " on the images it was tuned on"
    results.print(f"{job.adapter.name} {job.adapter.digest[:12]}{validation}", markup=False)
    if job.promotion:
        results.print(job.promotion, markup=False)
    if not job.promotion or job.promotion.startswith(_NOT_PROMOTED):
        short = job.adapter.name.removeprefix("artifacts/").replace("/versions/", "@")
        command = promote_command(short, alias or "production")
        results.print(f"no alias names it yet: 'vplab {command}' lets services serve it", markup=False)
    compared = summary["compared"]
    if compared:
        before, after = (float(np.mean([pair[key] for pair in compared])) for key in ("iou_before", "iou_after"))
        unseen = sum(not pair["was_tuned_on"] for pair in compared)
        results.print(
            f"mIoU {before:.3f} -> {after:.3f} over {len(compared)} of the data set's images, {unseen} of them not "
            f"tuned on; see {summary['sheet']}",
            markup=False,
        )
    stages = stage_times(metrics)
    results.print(f"{summary['seconds']:.1f} s in all{': ' if stages else ''}{stages}", markup=False)
