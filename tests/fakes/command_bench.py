"""The command against a real registry, a training service that follows a script, and masks from brightness."""

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from fakes.registry_process import registry_in_a_thread
from fakes.segmentation_server import FakeSegmentation, serving_in_threads
from fakes.training_server import FakeTraining, training_in_threads
from vplab.cli.main import app
from vplab.client import Client
from vplab.client.registry.values import ArtifactKind, Version

ADAPTER = "artifacts/tuned/versions/1"
DARK = 100
"""Grey of the objects: below the base segmenter's threshold, above that of the adapter."""


@dataclass
class Bench:
    """The three services and the command."""

    training: FakeTraining
    segmentation: FakeSegmentation
    arguments: list[str]
    folder: Path

    def run(self, *arguments: object) -> Any:
        result = CliRunner().invoke(app, [*self.arguments, *map(str, arguments)])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    def tune(self, *arguments: object) -> Any:
        return self.run("tune", "--adapter", "tuned", "--json", "f.json", *arguments)

    def publish(self, name: str, kind: ArtifactKind, **content: Any) -> Version:
        """Publish another version of an artifact, of one small file that no other version has."""
        file = self.folder / f"{uuid.uuid4()}.bin"
        file.write_bytes(file.name.encode())
        with Client(registry=self.arguments[self.arguments.index("--registry") + 1]) as client:
            return client.registry.publish_files({"content.bin": file}, name, kind, **content)

    @property
    def figures(self) -> Any:
        return json.loads((self.folder / "f.json").read_text())


@contextmanager
def running_bench(folder: Path) -> Iterator[Bench]:
    """Run the services."""
    training, segmentation = FakeTraining(), FakeSegmentation()
    segmentation.adapter_thresholds[ADAPTER] = DARK - 10
    with (
        registry_in_a_thread(folder / "registry") as registry,
        serving_in_threads(segmentation) as masks,
        training_in_threads(training) as tuning,
    ):
        where = ["--home", str(folder / "home"), "--registry", registry]
        yield Bench(training, segmentation, [*where, "--segmentation", masks, "--training", tuning], folder)
