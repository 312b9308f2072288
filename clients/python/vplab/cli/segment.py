"""``vplab segment``: a prompt set and a folder become masks."""

import asyncio
import csv
import io
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vplab.cli.agreement import compare_run, figures
from vplab.cli.connection import Where, connected
from vplab.cli.exit_codes import ExitCode
from vplab.cli.field_flags import SEGMENT, told_by_flags
from vplab.cli.folder_run import FolderRun, mask_path
from vplab.cli.image_files import ImageFile, find_images
from vplab.cli.journal import Entry, Journal
from vplab.cli.parameters import JsonFile, where_of
from vplab.cli.pictures import Cell, contact_sheet, overlay, save_picture, thumbnail, write_whole
from vplab.cli.running import run_async, verb
from vplab.cli.terminal import messages, results, write_json
from vplab.cli.typed_values import artifact_name
from vplab.client import AsyncClient, SegmentOptions
from vplab.client.segmentation.values import MatcherName, PromptSet
from vplab.errors import InvalidInput, ResourceExhausted
from vplab.vision.images import decode_image
from vplab.vision.label_images import read_labels

_MAX_CELLS = 40
_MAX_LISTED = 20


@verb
@told_by_flags(SEGMENT)
def segment(
    context: typer.Context,
    prompt_set: Annotated[str, typer.Argument(help="Id or name of a prompt set, as vplab prompt --save made it.")],
    images: Annotated[list[Path], typer.Argument(help="Folders or image files.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where results go; a second run goes on here.")],
    adapter: Annotated[str, typer.Option(metavar="NAME", help="Tuned adapter; none is the base segmenter.")] = "",
    matcher: Annotated[
        str | None, typer.Option(metavar="NAME", help="softmatch, prototype or graph; else the prompt set's.")
    ] = None,
    presence: Annotated[
        float | None, typer.Option(min=-1, max=1, help="Similarity a class must reach to be present.")
    ] = None,
    tile_side: Annotated[
        int | None, typer.Option(min=0, help="Cut images above this side into tiles; 0 never.")
    ] = None,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Also look into the folders' folders.")] = False,
    in_flight: Annotated[int, typer.Option(min=1, max=64, help="Images worked on at a time.")] = 4,
    timeout_s: Annotated[float | None, typer.Option("--timeout", min=0.1, help="Seconds for one image.")] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Forget what an earlier run did in this folder.")] = False,
    truth: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Label images to compare with; reports mIoU.")
    ] = None,
    truth_is_binary: Annotated[
        bool, typer.Option("--truth-is-binary", help="Any value but 0 of a label image is the one class.")
    ] = False,
    json_file: JsonFile = None,
) -> ExitCode:
    """Segment every image of a folder with a prompt set.

    OUT gets masks/NAME.png (class ids, with colours), images/NAME.* (links), classes.csv, results.csv,
    contact_sheet.jpg and failures.csv. Killed at any moment, the same command goes on where it stopped.

    Example: vplab segment scratches ./parts --out ./result
    """
    options = SegmentOptions(
        matcher=_matcher(matcher), presence_threshold=presence, tile_side=tile_side, include_instances=True
    )
    files = find_images(images, recursive=recursive)
    if truth is not None and not truth.is_dir():
        raise InvalidInput(f"{truth} is no folder", field="--truth")
    job = _Job(where_of(context), prompt_set, adapter, options, files, out, in_flight, timeout_s, restart)
    began = time.monotonic()
    found, journal, interrupted = run_async(job.run())
    entries = [journal.entries[file.key] for file in files if file.key in journal.entries]
    done = [entry for entry in entries if entry.is_done]
    failed = [entry for entry in entries if not entry.is_done]
    summary: dict[str, Any] = {
        "prompt_set": asdict(found.model),
        "num_images": len(files),
        "num_done": len(done),
        "num_failed": len(failed),
        "failures": [{"image": entry.image, "error": entry.error} for entry in failed],
        "wall_s": round(time.monotonic() - began, 3),
        "median_s": round(float(np.median([entry.seconds for entry in done])), 4) if done else None,
    }
    _write_tables(out, done, failed)
    _write_csv(out / "classes.csv", ["class_id", "class"], [[c.class_id, c.display_name] for c in found.classes])
    if truth is not None:
        agreements, missing = compare_run(
            out, done, truth, [c.class_id for c in found.classes], is_binary=truth_is_binary
        )
        summary["agreement"] = {**figures(agreements), "num_without_truth": len(missing)}
    _write_sheet(out, [file for file in files if file.key in {entry.image for entry in done}], journal)
    _report(summary, out)
    write_json(json_file, summary)
    if interrupted:
        messages.print(f"stopped after {len(done)} of {len(files)}: the same command goes on from here", style="yellow")
        raise KeyboardInterrupt
    return ExitCode.PARTLY_FAILED if failed else ExitCode.OK


class _Job:
    def __init__(
        self,
        where: Where,
        prompt_set: str,
        adapter: str,
        options: SegmentOptions,
        files: Sequence[ImageFile],
        out: Path,
        num_in_flight: int,
        timeout_s: float | None,
        restart: bool,
    ) -> None:
        self.where, self.prompt_set, self.adapter, self.options = where, prompt_set, adapter, options
        self.files, self.out, self.num_in_flight = files, out, num_in_flight
        self.timeout_s, self.restart = timeout_s, restart

    async def run(self) -> tuple[PromptSet, Journal, bool]:
        async with connected(self.where, ("segmentation", "registry"), "batch") as client:
            found = await client.segmentation.get_prompt_set(artifact_name(self.prompt_set))
            adapter = await self._exact_adapter(client)
            run = FolderRun(
                client, self.out, found.model.name, adapter, self.options, self.num_in_flight, self.timeout_s
            )
            with self._journal(found, adapter) as journal, _progress() as progress:
                task = progress.add_task("segmenting", total=len(self.files))

                def on_entry(entry: Entry) -> None:
                    progress.advance(task)
                    if not entry.is_done:
                        progress.console.print(f"{entry.image}: {entry.error}", style="red", markup=False)

                done = sum(run.is_done(file, journal) for file in self.files)
                progress.update(task, completed=done)
                try:
                    await run.run(self.files, journal, on_entry)
                except asyncio.CancelledError:
                    return found, journal, True
            return found, journal, False

    async def _exact_adapter(self, client: AsyncClient) -> str:
        return (await client.registry.get_version(artifact_name(self.adapter))).name if self.adapter else ""

    def _journal(self, found: PromptSet, adapter: str) -> Journal:
        path = self.out / "journal.jsonl"
        try:
            if self.restart:
                path.unlink(missing_ok=True)
            return Journal.open(
                path,
                {
                    "prompt_set": found.model.name,
                    "digest": found.model.digest,
                    "adapter": adapter,
                    "options": asdict(self.options),
                },
            )
        except OSError as error:
            raise InvalidInput(f"cannot write to {self.out}: {error.strerror or error}", field="--out") from error


def _matcher(name: str | None) -> MatcherName | None:
    match name:
        case None | "softmatch" | "prototype" | "graph":
            return name
    raise InvalidInput(f"{name!r} is none of softmatch, prototype, graph", field="--matcher")


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=messages,
        transient=True,
    )


def _write_tables(out: Path, done: Sequence[Entry], failed: Sequence[Entry]) -> None:
    rows = [
        [
            entry.image,
            f"masks/{entry.name}.png",
            entry.width,
            entry.height,
            found.class_id,
            found.display_name,
            int(found.present),
            found.score,
            found.presence_score,
            found.area_px,
            round(found.area_px / (entry.width * entry.height), 6),
            found.num_instances,
            entry.seconds,
        ]
        for entry in done
        for found in entry.classes
    ]
    header = (
        "image,mask,width,height,class_id,class,present,score,presence_score,area_px,area_share,num_instances,seconds"
    )
    _write_csv(out / "results.csv", header.split(","), rows)
    _write_csv(out / "failures.csv", ["image", "error"], [[entry.image, entry.error] for entry in failed])


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    try:
        write_whole(path, text.getvalue().encode())
    except OSError as error:
        raise ResourceExhausted(f"cannot write {path}: {error.strerror or error}", reason="STORAGE_FULL") from error


def _write_sheet(out: Path, files: Sequence[ImageFile], journal: Journal) -> None:
    if not files:
        return
    # Spread over the folder: the first forty of a thousand images of a line would all look alike.
    chosen = [
        files[index] for index in np.unique(np.linspace(0, len(files) - 1, min(len(files), _MAX_CELLS)).astype(int))
    ]
    cells = []
    for file in chosen:
        entry = journal.entries[file.key]
        picture = overlay(decode_image(file.path.read_bytes()), read_labels(mask_path(out, entry.name)))
        scores = ", ".join(f"{c.display_name} {c.score:.2f}" for c in entry.classes if c.present) or "nothing found"
        cells.append(Cell(thumbnail(picture, 320), f"{file.key}  {scores}"))
    save_picture(contact_sheet(cells), out / "contact_sheet.jpg")


def _report(summary: dict[str, Any], out: Path) -> None:
    results.print(f"{summary['num_done']} of {summary['num_images']} images segmented into {out}", markup=False)
    if summary["num_failed"]:
        listed = [f"  {failure['image']}: {failure['error']}" for failure in summary["failures"][:_MAX_LISTED]]
        rest = summary["num_failed"] - len(listed)
        more = [f"  and {rest} more in {out / 'failures.csv'}"] if rest else []
        results.print("\n".join([f"{summary['num_failed']} failed:", *listed, *more]), markup=False, style="red")
    for agreement in summary.get("agreement", {}).get("classes", []):
        miou = "no image holds it" if agreement["miou"] is None else f"mIoU {agreement['miou']:.3f}"
        results.print(
            f"class {agreement['class_id']}: {miou} over {agreement['num_with_class']} images, "
            f"{agreement['num_missed']} missed, {agreement['num_false_alarms']} false alarms"
        )
