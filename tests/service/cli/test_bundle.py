"""``vplab models bundle`` against real services with a small SAM."""

import asyncio
import hashlib
import json
import subprocess
import zipfile
from pathlib import Path

from fakes.line_site import line_site
from fakes.vplab_command import Vplab
from vplab.cli.exit_codes import ExitCode


async def test_a_bundle_is_made_and_downloaded_as_a_folder_or_a_zip(tmp_path: Path) -> None:
    async with line_site(tmp_path) as training:
        addresses = training.client.addresses
        variables = {f"VPLAB_{area.upper()}_ADDRESS": addresses[area] for area in ("registry", "training")}
        command = Vplab(tmp_path / "home", variables)

        async def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
            return await asyncio.to_thread(command.run, "models", "bundle", "--prompt-set", *arguments)

        folder, archive, figures = tmp_path / "line", tmp_path / "line-b.zip", tmp_path / "figures.json"
        ran = await run("patches", "--out", folder, "--json", figures)
        assert ran.returncode == 0, ran.stderr
        assert json.loads(figures.read_text())["version"] == "artifacts/patches-line/versions/1"
        said = json.loads((folder / "bundle.json").read_text())
        for path, digest in said["files"].items():
            assert hashlib.sha256((folder / path).read_bytes()).hexdigest() == digest
        assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == {
            "bundle.json",
            *said["files"],
        }

        ran = await run("patches@1", "--out", archive, "--name", "patches-line")
        assert ran.returncode == 0, ran.stderr
        with zipfile.ZipFile(archive) as found:
            names = {f"line-b/{path}" for path in ("bundle.json", *said["files"])}
            assert set(found.namelist()) == names
            assert found.read("line-b/bundle.json") == (folder / "bundle.json").read_bytes()

        for out in (folder, archive):
            before = sorted(tmp_path.glob("*line*"))
            ran = await run("patches", "--out", out)
            assert ran.returncode == ExitCode.REFUSED
            assert str(out) in ran.stderr.replace("\n", "")
            assert sorted(tmp_path.glob("*line*")) == before
        ran = await run("none", "--out", tmp_path / "none")
        assert ran.returncode == ExitCode.NOT_FOUND
        assert "--prompt-set: " in ran.stderr
        assert not (tmp_path / "none").exists()
