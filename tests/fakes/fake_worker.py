"""A worker that counts, for tests of the process around it. What it does is the adapter id of its job."""

import os
import signal
import time
from pathlib import Path

from threadpoolctl import threadpool_info

from vplab.errors import FailedPrecondition, NotFound, Unavailable
from vplab.training.values import Checkpoint, Claim, ModelRef, Progress, Stage, TuningResult
from vplab.training.worker.messages import WorkerSettings
from vplab.training.worker.process import Link

NUM_STEPS = 5
SETTINGS = WorkerSettings(
    registry_address="localhost:1",
    embedding_address="localhost:1",
    cache_dir=Path("unused"),
    device="cpu",
    num_threads=3,
    niceness=3,
    embedding_precision="float16",
    max_image_bytes=1,
    max_image_pixels=1,
    max_message_bytes=1,
    worker_class="fakes.fake_worker:FakeWorker",
    log_format="json",
)


class FakeWorker:
    """Implements Worker."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._graphs = settings.graphs
        self._num_jobs = 0
        self._num_warm_ups = 0

    def warm_up(self, segmenter: str, *, exports: bool) -> None:
        self._num_warm_ups += 1
        if segmenter == "not there":
            raise NotFound("no segmenter")
        if segmenter == "there later" and self._num_warm_ups < 3:
            raise Unavailable("no registry")
        if exports:
            self._graphs.mkdir(exist_ok=True)
            (self._graphs / f"{os.getpid()}.onnx").touch()

    def work_on(self, claim: Claim, link: Link) -> TuningResult:
        self._num_jobs += 1
        what = claim.job.plan.adapter_id
        if what == "refuses":
            raise FailedPrecondition("not today", reason="MODEL_MISMATCH", metadata={"expected": "a"})
        if what == "breaks":
            raise ZeroDivisionError
        link.tell(Stage.TRAIN)
        for step in range(claim.checkpoint.step if claim.checkpoint else 0, NUM_STEPS):
            link.tell(Progress(step + 1, NUM_STEPS, 0.5))
            link.tell(Checkpoint(step + 1, bytes(100_000)))
        if what == "hangs":
            time.sleep(600)
        if what == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        link.commit()
        threads = [float(os.environ[f"{library}_NUM_THREADS"]) for library in ("OMP", "MKL")]
        figures = {"pid": float(os.getpid()), "num_jobs": float(self._num_jobs), "niceness": float(os.nice(0))}
        figures["num_threads"] = max(threads)
        figures["num_warm_ups"] = float(self._num_warm_ups)
        figures["num_blas_threads"] = max(
            pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"
        )
        return TuningResult(ModelRef(f"artifacts/{what}/versions/1", "a" * 64), figures, parity_passed=True)
