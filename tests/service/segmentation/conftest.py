"""The three services with tiny real graphs."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fakes.segmentation_site import Serving, Site, tiny_site


@pytest.fixture
async def site_and_serving(tmp_path: Path) -> AsyncIterator[tuple[Site, Serving]]:
    async with tiny_site(tmp_path) as running:
        yield running


@pytest.fixture
def site(site_and_serving: tuple[Site, Serving]) -> Site:
    return site_and_serving[0]


@pytest.fixture
def serving(site_and_serving: tuple[Site, Serving]) -> Serving:
    return site_and_serving[1]
