"""The Prometheus series of this service; every one exists from the start."""

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

from vplab.training.values import TERMINAL_STATES, Stage, TuningMethod

# From a fetch that finds everything to an hour of training.
_SECONDS: Final = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60, 150, 300, 600, 1800, 3600)

CREATED: Final = Counter("vplab_training_jobs_created", "Tuning jobs that were queued here, by method.", ("method",))
ENDED: Final = Counter(
    "vplab_training_jobs_ended", "Jobs that this replica brought to their end, by state.", ("state",)
)
TAKEN: Final = Counter("vplab_training_jobs_taken", "Jobs that this replica took up: first, or again.", ("how",))
PUT_BACK: Final = Counter("vplab_training_jobs_put_back", "Jobs that wait for another try, by cause.", ("cause",))
RUNNING: Final = Gauge("vplab_training_jobs_running", "Jobs that are worked on here.")
STAGE_SECONDS: Final = Histogram(
    "vplab_training_stage_seconds", "Seconds of each stage of jobs that succeeded.", ("stage",), buckets=_SECONDS
)
WORKERS_STARTED: Final = Counter("vplab_training_workers_started", "Worker processes that were started.")
WORKERS_KILLED: Final = Counter("vplab_training_workers_killed", "Worker processes that were killed.", ("cause",))

for _method in TuningMethod:
    CREATED.labels(_method)
for _state in TERMINAL_STATES:
    ENDED.labels(_state)
for _how in ("first", "again"):
    TAKEN.labels(_how)
for _cause in ("worker_died", "dependency", "shutdown"):
    PUT_BACK.labels(_cause)
for _stage in Stage:
    STAGE_SECONDS.labels(_stage)
for _cause in ("cancelled", "idle", "shutdown", "silent"):
    WORKERS_KILLED.labels(_cause)
