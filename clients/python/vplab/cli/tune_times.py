"""Where a tuning job's time went, in a line."""

from collections.abc import Mapping
from typing import Final

_STAGES: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    ("queue", ()),
    ("start", ()),
    ("fetch", ()),
    ("embed", ()),
    ("train", ("proposals", "folds", "all_images", "promoted")),
    ("export", ("graph", "parity")),
    ("publish", ()),
    ("promote", ()),
)
"""In their order, each with its parts."""


def stage_times(metrics: Mapping[str, float]) -> str:
    """Return the seconds of the stages that a job's metrics hold, with their parts; empty without any."""
    told = []
    for stage, parts in _STAGES:
        if f"seconds_{stage}" not in metrics:
            continue
        inner = [_told(f"{stage}_{part}", part, metrics) for part in parts if f"seconds_{stage}_{part}" in metrics]
        told.append(_told(stage, stage, metrics) + (f" ({', '.join(inner)})" if inner else ""))
    return ", ".join(told)


def _told(key: str, name: str, metrics: Mapping[str, float]) -> str:
    return f"{name.replace('_', ' ')} {metrics[f'seconds_{key}']:.1f}"
