"""Following a tuning job: its events resumed over broken connections, and a bar with loss and IoU."""

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vplab.cli.terminal import messages
from vplab.client import AsyncClient
from vplab.client.training.values import TuningEvent, TuningJob, TuningProgress
from vplab.errors import Cancelled, DeadlineExceeded, Internal, OutOfRange, ResourceExhausted, Unavailable

_PATIENCE_S = 60.0
"""How long the training service may be away before the command gives up; the job does not need it."""
_PAUSE_S = (0.5, 5.0)
_WORDS = {
    "queue": "waiting for a trainer",
    "fetch": "fetching data and models",
    "embed": "embedding the images",
    "train": "tuning",
    "export": "exporting",
    "publish": "publishing",
    "promote": "promoting",
}


async def follow_job(client: AsyncClient, job: TuningJob, on_event: Callable[[TuningEvent], None]) -> TuningJob:
    """Report each event of a job once, in order, and return the job as it ended.

    Raises Unavailable when the service stays away for a minute, and what it refuses.
    """
    sequence, give_up, pause_s = 0, time.monotonic() + _PATIENCE_S, _PAUSE_S[0]
    while True:
        try:
            async with aclosing(client.training.watch_tuning_job(job.name, from_sequence=sequence)) as events:  # type: ignore[type-var]
                async for event in events:
                    sequence, give_up, pause_s = event.sequence, time.monotonic() + _PATIENCE_S, _PAUSE_S[0]
                    on_event(event)
                    if isinstance(event.event, TuningJob):
                        job = event.event
            if job.is_done:
                return job
            job = await client.training.get_tuning_job(job.name)
            if job.is_done:
                return job
        except OutOfRange:
            sequence = 0  # the service keeps fewer events than were seen: show what it has
        except (Unavailable, DeadlineExceeded, ResourceExhausted) as error:
            if time.monotonic() > give_up:
                raise
            await asyncio.sleep(error.retry_after_s or pause_s)
            pause_s = min(pause_s * 2, _PAUSE_S[1])


def raise_unless_succeeded(job: TuningJob) -> None:
    """Raise Internal for a job that failed, Cancelled for one that was."""
    if job.state == "failed":
        raise Internal(f"{job.name} failed: {job.message or 'the training service does not say why'}")
    if job.state == "cancelled":
        raise Cancelled(f"{job.name} was cancelled; no adapter was published")


class JobProgress:
    """A bar on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        """Prepare the bar; nothing is shown before the context is entered."""
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=messages,
            transient=True,
        )
        self._task = self._bar.add_task(_WORDS["queue"], total=None, figures="")
        self._iou: float | None = None
        self._told = ""

    def __enter__(self) -> "JobProgress":
        """Show the bar."""
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Take the bar away."""
        self._bar.stop()

    def show(self, event: TuningEvent) -> None:
        """Show one event."""
        match event.event:
            case TuningProgress() as progress:
                self._show_progress(progress)
            case TuningJob() as job if not job.is_done:
                self._bar.update(self._task, description=_WORDS.get(job.stage, job.state))
                self._say(_WORDS.get(job.stage, job.state))
                if job.message:
                    messages.print(job.message, style="yellow", markup=False)

    def _show_progress(self, progress: TuningProgress) -> None:
        is_measured = progress.validation_iou is not None
        if is_measured:
            self._iou = progress.validation_iou
        figures = f"loss {progress.loss:.4f}" + ("" if self._iou is None else f"  IoU {self._iou:.3f}")
        self._bar.update(
            self._task,
            description=_WORDS["train"],
            total=progress.num_steps,
            completed=progress.step,
            figures=figures,
        )
        if is_measured:
            self._say(f"step {progress.step} of {progress.num_steps}: {figures}")

    def _say(self, text: str) -> None:
        if not messages.is_terminal and text != self._told:
            messages.print(text, markup=False)
            self._told = text
