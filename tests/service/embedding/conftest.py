"""An embedding service with tiny real graphs."""

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from fakes import tiny_models
from fakes.embedding_server import Serve, Serving, serve_embedding
from fakes.fake_models import FakeModelSource


@pytest.fixture
def source(tmp_path: Path) -> FakeModelSource:
    models = FakeModelSource()
    for number, name in enumerate(("tiny-encoder", "other-encoder")):
        tiny_models.write_encoder(tmp_path / name, seed=number)
        models.publish(name, 1, tmp_path / name)
    return models


@pytest.fixture
def serve(source: FakeModelSource, tmp_path: Path) -> Serve:
    return partial(serve_embedding, source, cache_dir=tmp_path / "cache")


@pytest.fixture
async def serving(serve: Serve) -> AsyncIterator[Serving]:
    async with serve() as running:
        yield running
