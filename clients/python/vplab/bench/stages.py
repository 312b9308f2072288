"""Where the time went inside the servers, by what their Prometheus series gained between two readings."""

import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from vplab.errors import InvalidInput, Unavailable

_TIMEOUT_S = 5.0
_CPU = "process_cpu_seconds_total"
Key = tuple[str, tuple[tuple[str, str], ...]]
Reading = Mapping[Key, float]


def read_series(url: str) -> Reading:
    """Return the sums, counts and totals that a server exposes. Raises Unavailable, InvalidInput for another page."""
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
            text = answer.read().decode()
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name.endswith(("_sum", "_count", "_total"))
        }
    except (OSError, urllib.error.URLError) as error:
        raise Unavailable(f"cannot read {url}: {error}") from error
    except ValueError as error:  # no URL, no text, no series
        raise InvalidInput(f"{url} is no page of Prometheus series: {error}", field="--metrics") from error


def gained(before: Reading, after: Reading) -> dict[str, Any]:
    """Return what a server did between two readings.

    ``cpu_s`` is its processor time; ``mean`` has, for each histogram that was observed, its count and mean: seconds,
    or items for a batch's size; ``count`` has the counters that rose.
    """
    rise = {key: value - before.get(key, 0.0) for key, value in after.items()}
    mean, count = {}, {}
    for (name, labels), number in rise.items():
        if number <= 0:
            continue
        if name.endswith("_count"):
            stem = name.removesuffix("_count")
            total = rise.get((f"{stem}_sum", labels))
            if total is not None:
                mean[_label(stem, labels)] = {"count": round(number), "mean": total / number}
        elif name.endswith("_total") and not name.startswith(("process_", "python_")):
            count[_label(name.removesuffix("_total"), labels)] = round(number)
    return {"cpu_s": rise.get((_CPU, ())), "mean": mean, "count": count}


def _label(name: str, labels: tuple[tuple[str, str], ...]) -> str:
    said = ", ".join(value for _, value in labels)
    return f"{name}({said})" if said else name
