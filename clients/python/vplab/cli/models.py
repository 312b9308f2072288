"""``vplab models``: what the registry holds, which version is served, and how new models get in."""

import asyncio
import importlib
import tempfile
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from vplab.cli.bundle import bundle
from vplab.cli.connection import Where, connected
from vplab.cli.parameters import JsonFile, where_of
from vplab.cli.running import run_async, verb
from vplab.cli.terminal import messages, results, size, write_json
from vplab.cli.typed_values import artifact_name
from vplab.client import AsyncClient
from vplab.client.registry.values import Alias, AliasChange, Artifact, ArtifactKind, Lineage, Version
from vplab.errors import FailedPrecondition, InvalidInput, NotFound

PRODUCTION = "production"
_KINDS: tuple[ArtifactKind, ...] = ("encoder", "segmenter", "adapter", "prompt_set", "dataset", "bundle")

app = typer.Typer(no_args_is_help=True, help="Look at, import, promote and roll back models and prompt sets.")

app.command()(bundle)

AliasOption = Annotated[str, typer.Option("--alias", metavar="ALIAS", help="The alias to move.")]
_NEWEST_KINDS = ("prompt_set", "dataset")
"""Kinds whose own name means their newest version: nothing waits for an alias to serve them."""
PrecisionOption = Annotated[
    str,
    typer.Option(
        help="What the graphs compute in: float32; for GPUs float16 (names end in -fp16), or float16-encoder (-fp16e), "
        "which leaves the mask decoder as adapters need it."
    ),
]
EarlyFeaturesOption = Annotated[
    bool,
    typer.Option(
        "--early-features",
        help="Let a SAM's encoder return its early feature too, for the method hq_token; cached embeddings then take "
        "up to 6 times the space. The names hold -early.",
    ),
]
ReasonOption = Annotated[str, typer.Option(help="Why, for the history.")]


@app.command("list")
@verb
def list_models(
    context: typer.Context,
    kind: Annotated[str | None, typer.Option(metavar="KIND", help=f"Only one of {', '.join(_KINDS)}.")] = None,
    json_file: JsonFile = None,
) -> None:
    """List what the registry holds and where each alias points.

    Example: vplab models list --kind segmenter
    """

    async def work() -> tuple[list[Artifact], tuple[Alias, ...]]:
        async with _registry(where_of(context)) as client:
            artifacts = [artifact async for artifact in client.registry.list_artifacts(kind=_kind(kind))]
            return artifacts, (await client.registry.list_aliases()).aliases

    artifacts, aliases = run_async(work())
    table = Table("name", "kind", "serves", "description", box=None, pad_edge=False)
    rows = []
    for artifact in artifacts:
        mine = {a.name.rpartition("/")[2]: a for a in aliases if a.name.startswith(f"{artifact.name}/")}
        serves = ", ".join(f"{alias} {_short(a.version)}" for alias, a in sorted(mine.items()))
        table.add_row(artifact.name.removeprefix("artifacts/"), artifact.kind, serves, artifact.display_name)
        versions = {alias: {"version": a.version, "digest": a.version_digest} for alias, a in mine.items()}
        rows.append({"name": artifact.name, "kind": artifact.kind, "aliases": versions})
    results.print(table)
    write_json(json_file, {"artifacts": rows})


@app.command()
@verb
def show(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="NAME for what is served, NAME@NUMBER or NAME@ALIAS.")],
    json_file: JsonFile = None,
) -> None:
    """Show one version: its files, what it was made from, its figures and its licence.

    Of prompt sets and data sets NAME is the newest version.

    Example: vplab models show nano-segmenter@production
    """

    async def work() -> Version:
        async with _registry(where_of(context)) as client:
            return await _version(client, artifact_name(name))

    version = run_async(work())
    manifest = version.manifest
    results.print(f"{version.name}  {version.kind}  {version.digest}", markup=False)
    results.print(f"published {version.create_time:%Y-%m-%d %H:%M} UTC, licence {manifest.licence or 'not stated'}")
    table = Table("file", "size", "sha256", box=None, pad_edge=False)
    for file in manifest.files:
        table.add_row(file.path, size(file.size_bytes), file.sha256[:16])
    results.print(table)
    for lineage in manifest.lineage:
        results.print(f"{lineage.relation}: {lineage.version} {lineage.digest[:12]}", markup=False)
    for metric, value in sorted(manifest.metrics.items()):
        results.print(f"{metric}: {value:g}", markup=False)
    write_json(json_file, asdict(version))


@app.command()
@verb
def history(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="NAME.")],
    alias: Annotated[str, typer.Option("--alias", metavar="ALIAS", help="The alias to look at.")] = PRODUCTION,
    json_file: JsonFile = None,
) -> None:
    """Show where an alias pointed, when, and why it was moved; the newest first.

    Example: vplab models history nano-segmenter
    """

    async def work() -> list[AliasChange]:
        async with _registry(where_of(context)) as client:
            artifact = _artifact(name)
            try:
                return [c async for c in client.registry.list_alias_changes(f"{artifact}/aliases/{alias}")]
            except NotFound:
                kind = (await client.registry.get_artifact(artifact)).kind
                if kind not in _NEWEST_KINDS:
                    raise
                text = f"nobody ever set {artifact}/aliases/{alias}: of a {kind} the newest version is used"
                raise NotFound(text) from None

    changes = run_async(work())
    table = Table("when (UTC)", "version", "before", "by", "reason", box=None, pad_edge=False)
    for change in changes:
        when = f"{change.change_time:%Y-%m-%d %H:%M:%S}" if change.change_time else ""
        before = _short(change.previous_version) if change.previous_version else "-"
        table.add_row(
            when, _short(change.version) if change.version else "removed", before, change.actor, change.reason
        )
    results.print(table)
    write_json(json_file, {"changes": [asdict(change) for change in changes]})


@app.command()
@verb
def promote(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="NAME@NUMBER: the version to serve.")],
    alias: AliasOption = PRODUCTION,
    reason: ReasonOption = "",
    json_file: JsonFile = None,
) -> None:
    """Point an alias at a version; every service that serves the alias takes it up by itself.

    Example: vplab models promote scratches-adapter@4 --reason "fewer false alarms on line 2"
    """

    async def work() -> Alias:
        async with _registry(where_of(context)) as client:
            if artifact_name(name).count("/") == 1:
                newest = await _newest(client, _artifact(name))
                known = "it has none" if newest is None else f"{_short(newest.name)} is the newest"
                raise InvalidInput(f"{name!r} does not say which version: {known}", field="NAME")
            version = await client.registry.get_version(artifact_name(name))
            return await _move(client, f"{_artifact(name)}/aliases/{alias}", version.name, reason)

    moved = run_async(work())
    results.print(f"{moved.name} is {_short(moved.version)} now", markup=False)
    write_json(json_file, asdict(moved))


@app.command()
@verb
def rollback(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="NAME.")],
    alias: AliasOption = PRODUCTION,
    reason: ReasonOption = "",
    json_file: JsonFile = None,
) -> None:
    """Point an alias back at the version it had before; a second rollback takes the first one back.

    Example: vplab models rollback scratches-adapter --reason "line 2 stopped"
    """

    async def work() -> Alias:
        async with _registry(where_of(context)) as client:
            alias_name = f"{_artifact(name)}/aliases/{alias}"
            current = await _alias(client, alias_name)
            if current is None:
                raise NotFound(f"{alias_name} does not exist")
            # The change that made it what it is: with repeated moves to one version in between, the one before those.
            async for change in client.registry.list_alias_changes(alias_name):
                if change.version == current.version and change.previous_version not in ("", current.version):
                    text = reason or f"rolled back from {_short(current.version)}"
                    return await client.registry.set_alias(
                        alias_name, change.previous_version, etag=current.etag, reason=text
                    )
            raise FailedPrecondition(f"{alias_name} had no other version before {_short(current.version)}")

    moved = run_async(work())
    results.print(f"{moved.name} is {_short(moved.version)} again", markup=False)
    write_json(json_file, asdict(moved))


@app.command("import")
@verb
def import_checkpoint(
    context: typer.Context,
    path: Annotated[
        Path,
        typer.Argument(
            help="SAM or MobileSAM .pth, DINOv2/DINOv3 safetensors in timm's layout, or a folder of the nano recipe."
        ),
    ],
    name: Annotated[str | None, typer.Option(help="First part of the names; else the publisher's name.")] = None,
    architecture: Annotated[str | None, typer.Option(help="timm's name of a DINO model; else found from it.")] = None,
    input_size: Annotated[int | None, typer.Option(min=1, help="Input side of a DINO encoder, in pixels.")] = None,
    licence: Annotated[str | None, typer.Option(help="Terms of the weights; else the publisher's.")] = None,
    precision: PrecisionOption = "float32",
    early_features: EarlyFeaturesOption = False,
    promote_alias: Annotated[
        str, typer.Option("--alias", metavar="ALIAS", help="Alias for the new versions; empty moves none.")
    ] = PRODUCTION,
    json_file: JsonFile = None,
) -> None:
    """Turn a publisher's checkpoint into ONNX, compare it with the original, and publish it.

    Needs the training extra (torch), but for a folder of graphs that the nano recipe exported. A graph that does not
    match its torch model is not published.

    Example: vplab models import sam_vit_b_01ec64.pth
    """
    if not path.exists():
        raise InvalidInput(f"{path} does not exist", field="path")
    options = _lazy("imported").ImportOptions(
        name=name,
        architecture=architecture,
        input_size=input_size,
        licence=licence,
        precision=_precision(precision),
        has_early_features=early_features,
    )
    versions = run_async(_import_and_publish(where_of(context), path, options, promote_alias))
    _report_published(versions, json_file)


@app.command()
@verb
def pull(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="Name of a published model; none lists them.")] = None,
    promote_alias: Annotated[
        str, typer.Option("--alias", metavar="ALIAS", help="Alias for the new versions; empty moves none.")
    ] = PRODUCTION,
    precision: PrecisionOption = "float32",
    early_features: EarlyFeaturesOption = False,
    accept: Annotated[
        bool, typer.Option("--accept-licence", help="I have read and accept the publisher's terms.")
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Fetch a model from its publisher, check its sha256, import and publish it. A broken download is resumed.

    Example: vplab models pull mobile-sam
    """
    catalogue = _lazy("catalogue")
    if name is None:
        table = Table("name", "licence", "published at", box=None, pad_edge=False)
        for entry in catalogue.catalogue():
            table.add_row(entry.name, entry.licence, entry.page)
        results.print(table)
        return
    entry = catalogue.find_entry(name)
    chosen = _precision(precision)
    if entry.needs_consent and not accept:
        message = f"{name} comes under {entry.licence}: read {entry.page}, then add --accept-licence"
        raise FailedPrecondition(message)
    where = where_of(context)
    where.home.create()
    path = where.home.root / "downloads" / entry.file_name
    with _download_progress() as progress:
        task = progress.add_task(entry.file_name, total=entry.size_bytes)

        def on_bytes(received: int, total: int | None) -> None:
            progress.update(task, completed=received, total=total)

        _lazy("download").download(entry.url, path, sha256=entry.sha256, size_bytes=entry.size_bytes, progress=on_bytes)
    # timm's name carries the training data, which decides the normalisation and is not in the file.
    architecture = entry.architecture if entry.family == "timm" else None
    options = _lazy("imported").ImportOptions(
        family=entry.family,
        name=entry.name,
        architecture=architecture,
        source_url=entry.url,
        precision=chosen,
        has_early_features=early_features,
    )
    versions = run_async(_import_and_publish(where, path, options, promote_alias))
    _report_published(versions, json_file)


async def _import_and_publish(where: Where, path: Path, options: Any, alias: str) -> list[Version]:
    with tempfile.TemporaryDirectory(prefix="vplab-import-") as folder:
        with messages.status("importing") as status:
            imported = await asyncio.to_thread(
                _lazy("lazy").import_model, path, out_dir=Path(folder), options=options, on_stage=status.update
            )
        async with _registry(where) as client:
            published: dict[str, Version] = {}
            for artifact in imported.artifacts:
                with messages.status(f"publishing {artifact.artifact_id}"):
                    published[artifact.artifact_id] = await _publish(client, artifact, published, alias)
    return list(published.values())


async def _publish(client: AsyncClient, artifact: Any, published: dict[str, Version], alias: str) -> Version:
    lineage = [
        Lineage(link.relation, published[link.artifact_id].name, published[link.artifact_id].digest)
        for link in artifact.lineage
    ]
    return await client.registry.publish_files(
        artifact.files,
        artifact.artifact_id,
        artifact.kind,
        lineage=lineage,
        metrics=artifact.metrics,
        licence=artifact.licence,
        description=artifact.description[:10_000],
        display_name=artifact.display_name,
        labels=artifact.labels,
        alias=alias or None,
        reason="imported",
    )


def _report_published(versions: list[Version], json_file: Path | None) -> None:
    for version in versions:
        results.print(f"published {version.name} {version.digest[:12]}", markup=False)
        for metric, value in sorted(version.manifest.metrics.items()):
            results.print(f"  {metric}: {value:g}", markup=False)
    write_json(json_file, {"versions": [asdict(version) for version in versions]})


async def _move(client: AsyncClient, alias_name: str, version: str, reason: str) -> Alias:
    current = await _alias(client, alias_name)
    etag = "" if current is None else current.etag
    return await client.registry.set_alias(alias_name, version, etag=etag, reason=reason)


async def _version(client: AsyncClient, name: str) -> Version:
    try:
        return await client.registry.get_version(name)
    except NotFound:
        newest = await _newest(client, name) if name.count("/") == 1 else None
        if newest is None or newest.kind not in _NEWEST_KINDS:
            raise
        return newest


async def _newest(client: AsyncClient, artifact: str) -> Version | None:
    async with aclosing(client.registry.list_versions(artifact)) as newest_first:  # type: ignore[type-var]
        return await anext(newest_first, None)


async def _alias(client: AsyncClient, alias_name: str) -> Alias | None:
    found = await client.registry.list_aliases(alias_name.partition("/aliases/")[0])
    return next((alias for alias in found.aliases if alias.name == alias_name), None)


@asynccontextmanager
async def _registry(where: Where) -> AsyncIterator[AsyncClient]:
    async with connected(where, ("registry",)) as client:
        yield client


def _lazy(module: str) -> Any:
    # Making models has dependencies of its own: nothing of it is loaded for the other verbs.
    return importlib.import_module(f"vplab.training.models.{module}")


def _kind(text: str | None) -> ArtifactKind | None:
    for kind in _KINDS:
        if text == kind:
            return kind
    if text is None:
        return None
    raise InvalidInput(f"{text!r} is none of {', '.join(_KINDS)}", field="--kind")


def _precision(text: str) -> str:
    known: tuple[str, ...] = get_args(_lazy("imported").ImportPrecision)
    if text not in known:
        raise InvalidInput(f"{text!r} is none of {', '.join(known)}", field="--precision")
    return text


def _artifact(text: str) -> str:
    return "/".join(artifact_name(text).split("/")[:2])


def _short(version: str) -> str:
    artifact, _, number = version.removeprefix("artifacts/").partition("/versions/")
    return f"{artifact}@{number}"


def _download_progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=messages,
        transient=True,
    )
