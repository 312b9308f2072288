"""``vplab dataset``: corrected masks go in, and come out again for other tools."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from vplab.cli.connection import connected
from vplab.cli.dataset_sources import (
    dataset_id_of,
    fetch_dataset,
    find_dataset,
    is_coco,
    parse_class,
    read_source,
)
from vplab.cli.field_flags import DATASET, told_by_flags
from vplab.cli.option_checks import refuse_ignored
from vplab.cli.parameters import JsonFile, where_of
from vplab.cli.running import run_async, verb
from vplab.cli.terminal import messages, results, size, write_json
from vplab.client.datasets import Dataset, publish_dataset, write_coco, write_folder
from vplab.client.models import ModelReference
from vplab.client.registry.values import Version
from vplab.errors import NotFound

app = typer.Typer(no_args_is_help=True, help="Validated masks: check and publish them, look at them, export them.")

ClassOptions = Annotated[
    list[str] | None, typer.Option("--class", metavar="ID=NAME", help="A class; else as classes.csv or the masks say.")
]
BinaryOption = Annotated[
    bool | None, typer.Option("--binary/--class-ids", help="What mask values mean; found out unless given.")
]
ImagesOption = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Where a COCO file's images are; else beside it.")
]


@app.command()
@verb
@told_by_flags(DATASET)
def push(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(help="A folder with images/ and masks/, or COCO annotations.")],
    name: Annotated[str | None, typer.Option(metavar="ID", help="Name in the registry; else the folder's.")] = None,
    classes: ClassOptions = None,
    is_binary: BinaryOption = None,
    images: ImagesOption = None,
    description: Annotated[str, typer.Option(metavar="TEXT", help="For people.")] = "",
    check_only: Annotated[bool, typer.Option("--check-only", help="Check the files and publish nothing.")] = False,
    json_file: JsonFile = None,
) -> None:
    """Check pairs of images and masks and publish them as a new version of a data set.

    A folder that vplab segment wrote can be pushed as it is, once its masks are corrected in any image editor. So can
    an export of CVAT or Label Studio in COCO's format. Every file that is wrong is named.

    Example: vplab dataset push ./result --name scratches-checked
    """
    if is_coco(path):
        refuse_ignored("a COCO file says what its masks are", binary=is_binary, class_ids=is_binary is False)
    else:
        refuse_ignored(f"{path} is a folder of pairs, whose images are in images/", images=images)
    with messages.status("checking"):
        dataset = read_source(path, [parse_class(text) for text in classes or ()], is_binary=is_binary, images=images)
    summary = _summary(dataset)
    if check_only:
        _report(summary, f"{path} is a data set")
        write_json(json_file, summary)
        return
    dataset_id = name or dataset_id_of(path)

    async def work() -> ModelReference:
        async with connected(where_of(context), ("registry",)) as client:
            with messages.status("publishing"):
                return await publish_dataset(client, dataset_id, dataset, description=description)

    model = run_async(work())
    _report(summary, f"{model.name} {model.digest[:12]}")
    write_json(json_file, {"version": model.name, "digest": model.digest, **summary})


@app.command("list")
@verb
def list_datasets(context: typer.Context, json_file: JsonFile = None) -> None:
    """List the data sets, each with its newest version.

    Example: vplab dataset list
    """

    async def work() -> list[Version]:
        newest = []
        async with connected(where_of(context), ("registry",)) as client:
            async for artifact in client.registry.list_artifacts(kind="dataset"):
                try:
                    newest.append(await find_dataset(client, artifact.name))
                except NotFound:
                    continue  # made, but nothing was published yet
        return newest

    versions = run_async(work())
    table = Table("name", "newest", "images", "classes", "published (UTC)", box=None, pad_edge=False)
    for version in versions:
        _, artifact, _, number = version.name.split("/")
        spec = version.manifest.spec
        when = f"{version.create_time:%Y-%m-%d %H:%M}" if version.create_time else ""
        table.add_row(artifact, number, f"{spec.get('num_images', '?'):g}", _classes_text(spec), when)
    results.print(table)
    rows = [{"version": v.name, "digest": v.digest, "summary": dict(v.manifest.spec)} for v in versions]
    write_json(json_file, {"datasets": rows})


@app.command()
@verb
def show(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="NAME for the newest, NAME@NUMBER or NAME@ALIAS.")],
    json_file: JsonFile = None,
) -> None:
    """Show what a data set holds: its classes and how much of each image they cover.

    Example: vplab dataset show scratches-checked
    """

    async def work() -> tuple[Version, Dataset]:
        where = where_of(context)
        async with connected(where, ("registry",)) as client:
            version = await find_dataset(client, name)
            return version, await fetch_dataset(client, where.home, version)

    version, dataset = run_async(work())
    results.print(f"{version.name}  {version.digest}", markup=False)
    if version.manifest.description:
        results.print(version.manifest.description, markup=False)
    _report(_summary(dataset), "")
    table = Table("image", "width", "height", "size", *(_label(c.display_name) for c in dataset.classes), box=None)
    rows = []
    for item in dataset.items:
        shares = {c.class_id: _share(item.masks[c.class_id]) for c in dataset.classes if c.class_id in item.masks}
        cells = [f"{shares[c.class_id]:.2%}" if c.class_id in shares else "-" for c in dataset.classes]
        height, width = item.size_hw
        table.add_row(item.file_name, str(width), str(height), size(len(item.image)), *cells)
        rows.append({"file_name": item.file_name, "width": width, "height": height, "area_shares": shares})
    results.print(table)
    write_json(json_file, {"version": version.name, "digest": version.digest, **_summary(dataset), "images": rows})


@app.command()
@verb
def export(
    context: typer.Context,
    source: Annotated[
        str, typer.Argument(metavar="NAME|DIR", help="NAME for the newest, NAME@NUMBER or NAME@ALIAS; or a folder.")
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="An empty or new folder.")],
    coco: Annotated[bool, typer.Option("--coco", help="As COCO annotations instead of label images.")] = False,
    tolerance_px: Annotated[
        float, typer.Option("--tolerance", min=0, help="Pixels that COCO outlines may deviate, to save corners.")
    ] = 0.0,
    json_file: JsonFile = None,
) -> None:
    """Write a data set's images and masks into a folder, to be corrected and pushed again.

    The data set may be a folder, such as one that vplab segment wrote: its masks go to CVAT or Label Studio without
    being published as checked.

    Example: vplab dataset export ./result --out ./for-cvat --coco --tolerance 1
    """
    if not coco:
        refuse_ignored("only COCO outlines, with --coco, can deviate", tolerance=tolerance_px)

    async def fetch() -> tuple[Version, Dataset]:
        where = where_of(context)
        async with connected(where, ("registry",)) as client:
            version = await find_dataset(client, source)
            return version, await fetch_dataset(client, where.home, version)

    if Path(source).is_dir():
        version, dataset = None, read_source(Path(source))
    else:
        version, dataset = run_async(fetch())
    if coco:
        write_coco(dataset, out, tolerance_px=tolerance_px)
    else:
        write_folder(dataset, out)
    results.print(
        f"{len(dataset.items)} images of {source if version is None else version.name} written to {out}", markup=False
    )
    origin = {"folder": source} if version is None else {"version": version.name, "digest": version.digest}
    write_json(json_file, {**origin, "out": str(out), **_summary(dataset)})


def _summary(dataset: Dataset) -> dict[str, Any]:
    counts = Counter(class_id for item in dataset.items for class_id in item.masks)
    return {
        "num_images": len(dataset.items),
        "classes": [
            {"class_id": c.class_id, "display_name": c.display_name, "num_images": counts[c.class_id]}
            for c in dataset.classes
        ],
    }


def _report(summary: dict[str, Any], what: str) -> None:
    head = f"{what}: " if what else ""
    results.print(f"{head}{summary['num_images']} images; {_classes_text(summary)}", markup=False)


def _classes_text(summary: Any) -> str:
    classes = summary.get("classes", [])
    return ", ".join(f"{c['class_id']:g} {c['display_name']} on {c['num_images']:g}" for c in classes)


def _share(mask: Any) -> float:
    return round(float(mask.mean()), 6)


def _label(text: str) -> str:
    return text.replace("[", "\\[")
