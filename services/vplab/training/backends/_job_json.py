"""Plans, results and events as the JSON text that is kept in the job queue's database."""

import json
from dataclasses import asdict
from datetime import datetime
from typing import Any

from vplab.training.values import (
    Job,
    JobKind,
    JobState,
    ModelRef,
    Preview,
    Progress,
    Stage,
    TuningMethod,
    TuningOptions,
    TuningPlan,
)


def plan_to_json(plan: TuningPlan) -> str:
    """Return a plan as text; equal plans give equal texts."""
    return json.dumps(asdict(plan), sort_keys=True)


def plan_from_json(text: str) -> TuningPlan:
    """Return the plan of a text."""
    said = json.loads(text)
    said |= {"dataset": ModelRef(**said["dataset"]), "segmenter": ModelRef(**said["segmenter"])}
    for name in ("prompt_set", "feature_encoder"):
        model = said.get(name)  # jobs queued by an older release have no feature encoder
        said[name] = None if model is None else ModelRef(**model)
    said |= {"method": TuningMethod(said["method"]), "options": TuningOptions(**said["options"])}
    return TuningPlan(**said)


def event_to_json(event: Progress | Preview | Job) -> str:
    """Return an event as text."""
    return json.dumps({"type": type(event).__name__, **asdict(event)}, default=datetime.isoformat, sort_keys=True)


def event_from_json(text: str) -> Progress | Preview | Job:
    """Return the event of a text."""
    said: dict[str, Any] = json.loads(text)
    match said.pop("type"):
        case "Progress":
            return Progress(**said)
        case "Preview":
            return Preview(**{**said, "size_hw": tuple(said["size_hw"]), "runs": tuple(said["runs"])})
    adapter, end_time = said["adapter"], said["end_time"]
    return Job(
        job_id=said["job_id"],
        kind=JobKind(said["kind"]),
        state=JobState(said["state"]),
        stage=Stage(said["stage"]),
        plan=plan_from_json(json.dumps(said["plan"])),
        adapter=None if adapter is None else ModelRef(**adapter),
        metrics=said["metrics"],
        message=said["message"],
        promotion=said["promotion"],
        create_time=datetime.fromisoformat(said["create_time"]),
        end_time=None if end_time is None else datetime.fromisoformat(end_time),
    )
