"""From validated masks to the adapter that segmentation serves: seconds by stage, and what clicks notice of it.

``python tests/bench/teach_time.py --out OUT`` starts the four services as ``vplab`` does, in a new home, publishes
generated images with exact masks, tunes E-PEFT with its defaults, and asks segmentation by the adapter's alias until
the new version answers. It writes OUT/teach_time.json and .md, and with ``--readme`` the table between the README's
``teach time`` marks; ``--table-only`` measures nothing. Seconds by the clock are as good as the machine was idle, so
its load average is told, and processor seconds stand beside those of the worker's stages.
"""

import argparse
import asyncio
import contextlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from main_job import COMMIT, ROOT, write_between

from vplab.cli.connection import Where, connected
from vplab.cli.home import Home
from vplab.client import AsyncClient, ObjectPrompt, SegmentClass
from vplab.client.datasets import Dataset, DatasetItem, publish_dataset
from vplab.client.training.values import TuningJob, TuningOptions, TuningRequest
from vplab.errors import NotFound
from vplab.vision.synthesis import synthesize_inspection_set

SIDE = 512
DEFECT = "scratch"
ALIAS = "artifacts/teach-time/aliases/production"
PAUSE_S = 0.2
"""Between clicks: a fast person's."""
NUM_CLICKS = 60
BEHIND_S = 0.02
"""Between questions whether the new version serves."""
GOALS_S = {5: 60, 40: 150}
# What the table says of a stage, and the metric that holds it.
STAGES = (
    ("the data set is checked", "check"),
    ("queue", "queue"),
    ("a worker process starts", "start"),
    ("data and models are fetched and read", "fetch"),
    ("images and views are embedded", "embed"),
    ("proposals", "train_proposals"),
    ("folds", "train_folds"),
    ("graph exported", "export_graph"),
    ("compared with its export", "export_parity"),
    ("published", "publish"),
    ("promoted", "promote"),
    ("segmentation takes it up", "served"),
)


@dataclass(frozen=True)
class Run:
    """A job to be timed."""

    name: str
    num_images: int
    clicks: bool = False
    """Whether somebody clicks meanwhile, which takes time from the job."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, nargs="*", default=[5, 40])
    parser.add_argument("--steps", type=int, help="of each run, to try this script; else the method's")
    parser.add_argument("--readme", action="store_true", help="write the table into the README")
    parser.add_argument("--table-only", action="store_true", help="measure nothing, make the table again")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "teach_time.json"
    if not arguments.table_only:
        runs = [Run(f"{arguments.images[0]} images, at once after the start", arguments.images[0])]
        runs += [Run(f"{count} images", count) for count in arguments.images]
        runs.append(Run(f"{arguments.images[0]} images, with clicks", arguments.images[0], clicks=True))
        path.write_text(json.dumps(asyncio.run(measured(runs, arguments.steps)), indent=2) + "\n")
    table = table_of(json.loads(path.read_text()))
    (arguments.out / "teach_time.md").write_text(table + "\n")
    print(table)
    if arguments.readme:
        write_between(ROOT / "README.md", "teach time", table)


async def measured(runs: Sequence[Run], num_steps: int | None) -> dict[str, Any]:
    """Run the jobs one after another on one set of services, the first at once after their start."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="teach-time-") as folder:
        where = Where(Home(Path(folder)))
        async with connected(where, ("registry", "embedding", "segmentation", "training")) as client:
            # The first job is ordered while training still warms up, and nothing is cached.
            rows = [await timed(client, runs[0], 0, num_steps)]
            quiet = await clicked(client, NUM_CLICKS, lambda: True)
            rows += [await timed(client, run, seed, num_steps) for seed, run in enumerate(runs[1:], 1)]
    return {
        "rows": rows,
        "clicks": {"alone": quiet, "during_a_job": next(row["clicks"] for row in rows if row["clicks"])},
        "commit": COMMIT,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores",
        "load_average_before": load,
        "image_size": SIDE,
        "num_steps": num_steps,
    }


async def timed(client: AsyncClient, run: Run, seed: int, num_steps: int | None) -> dict[str, Any]:
    """Tune once; seconds count from the published data set to the first answer of the new version."""
    data = generated(run.num_images, seed)
    version = await publish_dataset(client, "teach-time-data", data)
    probe = data.items[0].image
    await predicted(client, probe, "")  # its embedding is there, as of any image that somebody works on
    began = time.monotonic()
    options = TuningOptions(num_steps=num_steps)
    request = TuningRequest("teach-time", version.name, options=options, promote_alias="production")
    job = await client.training.create_tuning_job(request)
    checked_s = time.monotonic() - began
    published, ended = asyncio.Event(), asyncio.Event()
    answers: list[tuple[float, str]] = []
    async with asyncio.TaskGroup() as group:
        asking = group.create_task(asked(client, probe, published, answers))
        clicking = group.create_task(clicked(client, 10**6, lambda: not ended.is_set())) if run.clicks else None
        async for event in client.training.watch_tuning_job(job.name):
            if isinstance(event.event, TuningJob):
                job = event.event
                if job.stage == "publish":
                    published.set()
        ended.set()
        if job.adapter is None:
            raise SystemExit(f"{job.name} {job.state}: {job.message}")
        while not any(digest == job.adapter.digest for _, digest in answers):
            await asyncio.sleep(BEHIND_S)
        asking.cancel()
    total_s = next(at for at, digest in answers if digest == job.adapter.digest) - began
    seconds = {name: job.metrics[f"seconds_{name}"] for _, name in STAGES if f"seconds_{name}" in job.metrics}
    seconds["check"] = checked_s
    seconds["served"] = max(0.0, total_s - sum(seconds.values()))
    return {
        "name": run.name,
        "num_images": run.num_images,
        "total_s": total_s,
        "seconds": seconds,
        "cpu_seconds": {n: job.metrics[f"cpu_seconds_{n}"] for n in seconds if f"cpu_seconds_{n}" in job.metrics},
        "peak_memory_bytes": job.metrics["peak_memory_bytes"],
        "validation_iou": [job.metrics[f"validation_iou_{when}"] for when in ("before", "after")],
        "load_average_after": os.getloadavg()[0],
        "clicks": await clicking if clicking else None,
    }


async def asked(client: AsyncClient, probe: bytes, begin: asyncio.Event, answers: list[tuple[float, str]]) -> None:
    """Ask by the alias again and again and note which version answered when."""
    await begin.wait()
    while True:
        with contextlib.suppress(NotFound):  # before the first job there is no such alias
            answers.append((time.monotonic(), await predicted(client, probe, ALIAS)))
        await asyncio.sleep(BEHIND_S)


async def predicted(client: AsyncClient, image: bytes, adapter: str) -> str:
    """Click once and return the digest of the adapter that answered; empty without one."""
    answer = await client.segmentation.predict_masks(image, click(0), adapter=adapter, multimask=True)
    return "" if answer.provenance.adapter is None else answer.provenance.adapter.digest


async def clicked(client: AsyncClient, most: int, goes_on: Callable[[], bool]) -> dict[str, float]:
    """Click on one image as a person would and return milliseconds of the answers."""
    image = generated(1, 999).items[0].image
    known = (await client.segmentation.predict_masks(image, click(0))).provenance.image_digest
    taken = []
    while len(taken) < most and goes_on():
        began = time.monotonic()
        await client.segmentation.predict_masks(image, click(len(taken)), multimask=True, known_digest=known)
        taken.append(1000 * (time.monotonic() - began))
        await asyncio.sleep(PAUSE_S)
    p50, p95 = np.percentile(taken, [50, 95]).tolist()
    return {"num_clicks": len(taken), "p50_ms": p50, "p95_ms": p95}


def click(seed: int) -> ObjectPrompt:
    point = np.random.default_rng(seed).integers(0, SIDE, (1, 2)).astype(np.float32)
    return ObjectPrompt(point, np.ones(1, np.int64))


def generated(count: int, seed: int) -> Dataset:
    """Return generated images with their true masks."""
    items = []
    for index, image in enumerate(synthesize_inspection_set(count, (SIDE, SIDE), DEFECT, 1000 + seed)):
        encoded = cv2.imencode(".png", image.image_rgb[..., ::-1])[1].tobytes()
        masks = {1: image.mask} if image.mask.any() else {}
        items.append(DatasetItem(f"{index:03}.png", encoded, (SIDE, SIDE), masks))
    return Dataset((SegmentClass(1, DEFECT),), tuple(items))


def table_of(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    rows = [row for row in report["rows"] if row["clicks"] is None]
    lines = ["| seconds | " + " | ".join(row["name"] for row in rows) + " |", "|---" + "|--:" * len(rows) + "|"]
    lines += [f"| {title} | {' | '.join(cell(row, name) for row in rows)} |" for title, name in STAGES]
    lines.append("| **served** | " + " | ".join(f"**{row['total_s']:.1f}**" for row in rows) + " |")
    peaks = (f"{row['peak_memory_bytes'] / 2**20:,.0f}" for row in rows)
    lines.append(f"| peak memory of the worker so far, MiB | {' | '.join(peaks)} |")
    lines += ["", "In brackets processor seconds of the worker, which embeds nothing itself."]
    for row in rows:
        wanted = GOALS_S.get(row["num_images"])
        if wanted is not None:
            met = "met" if row["total_s"] < wanted else "**not met**"
            lines.append(f"- {met}: {row['name']}: served {row['total_s']:.1f} s after the data set, wanted {wanted} s")
    alone, during = report["clicks"]["alone"], report["clicks"]["during_a_job"]
    lines.append(
        f"- a click takes {alone['p50_ms']:.0f} ms (95 % within {alone['p95_ms']:.0f} ms) without a job and "
        f"{during['p50_ms']:.0f} ms ({during['p95_ms']:.0f} ms) beside one, over {alone['num_clicks']} and "
        f"{during['num_clicks']} clicks"
    )
    steps = "its defaults" if report["num_steps"] is None else f"at most {report['num_steps']} steps a run"
    loads = [report["load_average_before"], *(row["load_average_after"] for row in report["rows"])]
    return "\n".join(
        [
            *lines,
            "",
            f"Nano models, E-PEFT with {steps}, generated images of {report['image_size']} pixels a side; commit "
            f"{report['commit']}, {report['machine']}, load average {min(loads):.1f} to {max(loads):.1f}.",
        ]
    )


def cell(row: dict[str, Any], name: str) -> str:
    if name not in row["seconds"]:
        return "-"
    cpu = row["cpu_seconds"].get(name)
    return f"{row['seconds'][name]:.1f}" + ("" if cpu is None else f" ({cpu:.1f})")


if __name__ == "__main__":
    main()
