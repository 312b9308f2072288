"""``vplab models bundle``: a prompt set as files that segment images without a service."""

import asyncio
import os
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Annotated

import typer

from vplab.cli.connection import connected
from vplab.cli.field_flags import BUNDLE, told_by_flags
from vplab.cli.parameters import JsonFile, where_of
from vplab.cli.running import run_async, verb
from vplab.cli.terminal import messages, results, size, write_json
from vplab.cli.typed_values import artifact_name
from vplab.client import AsyncClient
from vplab.client.models import ModelReference
from vplab.client.registry.values import Version
from vplab.errors import FailedPrecondition, Internal

_POLL_S = 0.2
_MAX_ID = 63
_SUFFIX = "-line"
# A zip keeps a time for each file; an equal one for all makes equal bundles equal files.
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)


@verb
@told_by_flags(BUNDLE)
def bundle(
    context: typer.Context,
    prompt_set: Annotated[str, typer.Option(metavar="NAME", help="NAME for the newest, NAME@NUMBER or NAME@ALIAS.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER|FILE.zip", help="Where to; a folder must be new or empty.")],
    adapter: Annotated[
        str, typer.Option(metavar="NAME", help="Adapter of the prompt set's segmenter; else the segmenter as it is.")
    ] = "",
    bundle_id: Annotated[
        str, typer.Option("--name", metavar="ID", help="Name in the registry; else PROMPTSET-line.")
    ] = "",
    json_file: JsonFile = None,
) -> None:
    """Make a line bundle: graphs, references and a program, which need no service.

    The bundle is also published in the registry. Its segment.py runs on numpy, OpenCV and ONNX Runtime alone and gives
    the masks that vplab segment gives.

    Example: vplab models bundle --prompt-set scratches --adapter scratches-adapter --out line-2.zip
    """
    _check_free(out)
    name, adapter_name = artifact_name(prompt_set), artifact_name(adapter) if adapter else ""
    artifact_id = bundle_id or f"{name.split('/')[1][: _MAX_ID - len(_SUFFIX)].rstrip('-')}{_SUFFIX}"

    async def work() -> Version:
        async with connected(where_of(context), ("training", "registry")) as client:
            with messages.status("making the bundle"):
                model = await _made(client, artifact_id, name, adapter_name)
            with messages.status("downloading"):
                version = await client.registry.get_version(model.name)
                await _write(client, version, out)
            return version

    version = run_async(work())
    files = version.manifest.files
    num_bytes = sum(file.size_bytes for file in files)
    results.print(
        f"{version.name} {version.digest[:12]}: {len(files)} files, {size(num_bytes)}, in {out}", markup=False
    )
    write_json(json_file, {"version": version.name, "digest": version.digest, "out": str(out), "bytes": num_bytes})


async def _made(client: AsyncClient, bundle_id: str, prompt_set: str, adapter: str) -> ModelReference:
    job = await client.training.create_export_job(bundle_id, prompt_set, adapter=adapter)
    while not job.is_done:
        await asyncio.sleep(_POLL_S)
        job = await client.training.get_export_job(job.name)
    if job.bundle is None:
        raise Internal(f"{job.name} {job.state}: {job.message}")
    return job.bundle


async def _write(client: AsyncClient, version: Version, out: Path) -> None:
    """Write a version's files beside the place first, so that nothing incomplete is ever there."""
    parent = out.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=parent))
    try:
        folder = part / (out.stem if _is_zip(out) else out.name)
        for file in version.manifest.files:
            await client.registry.download_file(file.sha256, folder / file.path)
        if _is_zip(out):
            await asyncio.to_thread(_zip, folder, part / out.name)
            os.replace(part / out.name, out)
        else:
            if out.exists():
                out.rmdir()
            os.replace(folder, out)
    finally:
        await asyncio.to_thread(shutil.rmtree, part, ignore_errors=True)


def _zip(folder: Path, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            entry = zipfile.ZipInfo(f"{folder.name}/{file.relative_to(folder).as_posix()}", _ZIP_TIME)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            with file.open("rb") as source, archive.open(entry, "w", force_zip64=True) as target:
                shutil.copyfileobj(source, target)


def _check_free(out: Path) -> None:
    if _is_zip(out):
        if out.exists():
            raise FailedPrecondition(f"{out} is already there")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FailedPrecondition(f"{out} is no empty folder")


def _is_zip(out: Path) -> bool:
    return out.suffix.lower() == ".zip"
