"""``vplab models``: a publisher's checkpoint gets in, is promoted, and can be rolled back."""

import functools
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fakes.vplab_command import Vplab
from vplab.cli.main import app
from vplab.training.models import catalogue

pytestmark = pytest.mark.slow

WRITE = "import sys; from pathlib import Path; from fakes.sam_checkpoints import write_sam_checkpoint as write; " + (
    "write(Path(sys.argv[1]), seed=int(sys.argv[2]), input_size=256)"
)


def checkpoint(folder: Path, seed: int) -> Path:
    """Write a checkpoint in another process: torch must not be loaded into this one, whose commands do without."""
    pytest.importorskip("torch", reason="making models needs the training extra")
    path = folder / f"sam_{seed}.pth"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", WRITE, str(path), str(seed)], check=True, env=environment)
    return path


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_imported_versions_are_promoted_and_rolled_back(vplab: Vplab, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    for seed in (1, 2):
        ran = vplab.run(
            "models", "import", checkpoint(tmp_path, seed), "--name", "tiny", "--json", figures, timeout_s=400
        )
        assert ran.returncode == 0, ran.stderr
        published = [version["name"] for version in read(figures)["versions"]]
        assert published == [f"artifacts/tiny-encoder/versions/{seed}", f"artifacts/tiny-segmenter/versions/{seed}"]

    vplab.run("models", "show", "tiny-segmenter", "--json", figures)
    shown = read(figures)
    assert shown["name"] == "artifacts/tiny-segmenter/versions/2"
    (lineage,) = shown["manifest"]["lineage"]
    assert (lineage["relation"], lineage["version"]) == ("image_encoder", "artifacts/tiny-encoder/versions/2")
    assert {file["path"] for file in shown["manifest"]["files"]} >= {"model.json", "decoder.onnx", "parity.json"}

    assert vplab.run("models", "rollback", "tiny-segmenter", "--json", figures).returncode == 0
    assert read(figures)["version"] == "artifacts/tiny-segmenter/versions/1"
    assert vplab.run("models", "rollback", "tiny-segmenter", "--json", figures).returncode == 0
    assert read(figures)["version"] == "artifacts/tiny-segmenter/versions/2"
    assert vplab.run("models", "promote", "tiny-segmenter@1", "--reason", "better").returncode == 0
    vplab.run("models", "history", "tiny-segmenter", "--json", figures)
    reasons = [change["reason"] for change in read(figures)["changes"]]
    assert reasons == [
        "better",
        "rolled back from tiny-segmenter@1",
        "rolled back from tiny-segmenter@2",
        "imported",
        "imported",
    ]
    assert vplab.run("models", "rollback", "nano-segmenter").returncode == 3


def test_a_model_is_pulled_checked_and_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = tmp_path / "served"
    served.mkdir()
    path = checkpoint(served, 3)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setenv("VPLAB_HOME", str(tmp_path / "home"))
    for name in [name for name in os.environ if name.startswith("VPLAB_") and name.endswith("ADDRESS")]:
        monkeypatch.delenv(name)
    with file_server(served) as url:
        entry = replace(
            catalogue.find_entry("sam-vit-b"), name="tiny", url=f"{url}/{path.name}", sha256=digest, size_bytes=None
        )
        monkeypatch.setattr(catalogue, "find_entry", lambda name: replace(entry, sha256="0" * 64))
        damaged = CliRunner().invoke(app, ["models", "pull", "tiny"])
        assert damaged.exit_code == 8, damaged.stderr
        monkeypatch.setattr(catalogue, "find_entry", lambda name: entry)
        ran = CliRunner().invoke(app, ["models", "pull", "tiny", "--json", str(tmp_path / "f.json")])
    assert ran.exit_code == 0, ran.stderr
    assert [version["name"] for version in read(tmp_path / "f.json")["versions"]] == [
        "artifacts/tiny-encoder/versions/1",
        "artifacts/tiny-segmenter/versions/1",
    ]


@contextmanager
def file_server(folder: Path) -> Iterator[str]:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
