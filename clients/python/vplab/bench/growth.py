"""How the cost of a call grows with what is in it, one thing at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vplab.bench.measuring import Measuring, Row
from vplab.bench.names import AxisName
from vplab.bench.pictures import make_pictures
from vplab.bench.site import Site
from vplab.bench.works import Work

_ADAPTER_CALLERS = 4
"""Enough that calls with different adapters wait for each other."""


@dataclass(frozen=True)
class Axis:
    """One thing that grows."""

    what: str
    values: tuple[int, ...]
    make: Callable[[int], Work]
    num_callers: int = 1
    unit: Callable[[int], float] = float
    """What the cost is expected to be proportional to."""
    unit_name: str = ""


def axes_of(site: Site, names: Sequence[AxisName], num_images: int, side_px: int) -> Iterator[tuple[AxisName, Axis]]:
    """Give each axis when its turn comes, so that nothing is prepared for those after a Ctrl-C."""
    pictures = make_pictures(num_images, side_px, num_points=16)
    references = make_pictures(max(_REFERENCES), side_px, num_points=1, seed=1)
    called = site.called

    def sized(side: int) -> Work:
        few = make_pictures(2, side, num_points=16)
        return called.clicks(few, site.digests(few))

    def referenced(number: int) -> Work:
        return called.segmentations(pictures, site.prompt_set(references[:number]))

    makers: Mapping[AxisName, Callable[[], Axis]] = {
        "objects": lambda: Axis(
            "objects of a click's image", (1, 2, 4, 8, 16, 32),
            lambda number: called.clicks(pictures, site.digests(pictures), num_objects=number), unit_name="object",
        ),
        "images": lambda: Axis(
            "images of one embedding call", (1, 2, 4, 8, 16),
            lambda number: called.embedding_streams(pictures, number), unit_name="image",
        ),
        "references": lambda: Axis(
            "references of a prompt set", _REFERENCES, referenced, unit_name="reference"
        ),
        "image-size": lambda: Axis(
            "side of a clicked image, pixels", _SIDES, sized, unit=_megapixels, unit_name="megapixel"
        ),
        "embed-size": lambda: Axis(
            "side of an embedded image, pixels", _SIDES,
            lambda side: called.embeddings(make_pictures(2, side, num_points=1)),
            unit=_megapixels, unit_name="megapixel",
        ),
        "adapters": lambda: _adapters_axis(site, pictures),
    }  # fmt: skip
    for name in names:
        yield name, makers[name]()


_REFERENCES = (1, 2, 4, 8, 16)
_SIDES = (256, 512, 1024, 2048, 4096)
_ADAPTERS = (1, 2, 4, 8, 16)


def _adapters_axis(site: Site, pictures: Any) -> Axis:
    all_adapters = site.some_adapters(max(_ADAPTERS))
    site.load(all_adapters)

    def mixed(number: int) -> Work:
        return site.called.clicks(pictures, site.digests(pictures), all_adapters[:number])

    return Axis("adapters that calls name in turn", _ADAPTERS, mixed, _ADAPTER_CALLERS, unit_name="adapter")


def grow(measuring: Measuring, name: AxisName, axis: Axis) -> Iterator[Row]:
    """Measure every value of an axis."""
    for value in axis.values:
        about = {"axis": name, "what": axis.what, "value": value, "units": axis.unit(value), "unit": axis.unit_name}
        with measuring.calling(axis.make(value)):
            row = measuring.closed(axis.num_callers, about)
        yield row


def straight_line(units: Sequence[float], seconds: Sequence[float]) -> dict[str, float | None]:
    """Return the line that comes nearest: seconds that every call costs, seconds of a unit, and the share explained.

    The share is R squared: 1 where all values lie on the line.
    """
    if len(units) < 2:
        return {"fixed_s": None, "unit_s": None, "r2": None}
    x, y = np.array(units, np.float64), np.array(seconds, np.float64)
    # Not by a decomposition, which on some processors leaves equal seconds a slope of minus nothing.
    unit_s = ((x - x.mean()) @ (y - y.mean())) / ((x - x.mean()) @ (x - x.mean()))
    fixed_s = y.mean() - unit_s * x.mean()
    spread = float(((y - y.mean()) ** 2).sum())
    left = float(((y - fixed_s - unit_s * x) ** 2).sum())
    return {"fixed_s": float(fixed_s), "unit_s": float(unit_s), "r2": 1 - left / spread if spread else None}


def _megapixels(side: int) -> float:
    return side * side / 1e6
