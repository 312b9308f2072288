"""Memory while versions come and go: loads, runs and unloads what the services serve, for as long as wanted.

``python tests/bench/version_soak.py --minutes 60 --out OUT`` takes turns with the loaders of the services: an encoder,
a segmenter, an adapter with a graph of its own, and a segmenter's bank, each loaded in a thread beside the one that
runs, and before the version it replaces leaves; adapters are read into rows of the bank and evicted all the while.
After each turn a line is added to OUT/version_soak.jsonl, so a run that is killed loses nothing: ``--judge`` says what
the lines found so far mean. OUT/version_soak.json has the verdict, which ``--readme`` writes into services/README.md.
"""

import argparse
import json
import logging
import platform
import statistics
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime as ort
import safetensors.numpy
import structlog
from main_job import write_between
from numpy.typing import NDArray

from vplab.embedding.backends.onnx_encoders import OnnxEncoder, OnnxEncoderLoader
from vplab.runtime.onnx_session import OnnxSettings, runs_on_cpu
from vplab.runtime.server_info import resident_memory_bytes
from vplab.segmentation.backends.onnx_banks import OnnxBank, OnnxBankLoader
from vplab.segmentation.backends.onnx_segmenters import OnnxSegmenter, OnnxSegmenterLoader
from vplab.vision.specs import EncoderSpec, SegmenterSpec, spec_from_json

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "services" / "vplab" / "registry" / "builtin"
ENCODER, SEGMENTER = "nano-encoder", "nano-segmenter"
BATCHES = (1, 2, 1, 4)
"""Sizes that take turns: a batch larger than the one before makes the arena grow."""
ROWS_EACH_TURN = 8
BANK_BYTES = 32 << 20
"""Some 70 rows of the nano segmenter: all of them are written, evicted and written again within a minute."""
MIB = 1 << 20
MOST_MIB_PER_THOUSAND = 8.0
"""Growth with a thousand loads: two pages of 4 KiB that every load leaves behind."""
LEAST_MINUTES = 10.0
"""Of samples in the second half: in less, what caches and arenas still gather looks like a leak of MiB an hour."""
_MOST_POINTS = 200

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--judge", action="store_true", help="measure nothing; judge the samples that are there")
    parser.add_argument("--readme", action="store_true", help="write the table into services/README.md")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    samples = arguments.out / "version_soak.jsonl"
    if not arguments.judge:
        # A line for each graph that is loaded would bury the verdict.
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
        measure(samples, 60 * arguments.minutes)
    head, rows = read(samples)
    report = {**head, **verdict(rows)}
    (arguments.out / "version_soak.json").write_text(json.dumps(report, indent=1) + "\n")
    table = table_of(report)
    print(table)
    if arguments.readme:
        write_between(ROOT / "services" / "README.md", "version soak", table)


def measure(path: Path, seconds: float) -> None:
    """Write what made the figures, then a line for each turn, until the time is up or Ctrl-C."""
    settings = OnnxSettings()
    with path.open("w") as file, tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(described(settings)), file=file, flush=True)
        began = time.monotonic()
        try:
            for kind in serving(settings, Path(scratch)):
                row: Row = {"seconds": round(time.monotonic() - began, 2), "loaded": kind}
                row["host_mib"] = round(resident_memory_bytes() / MIB, 3)
                if not runs_on_cpu(settings):
                    row["device_mib"] = device_mib(settings.device_id)
                print(json.dumps(row), file=file, flush=True)
                if row["seconds"] >= seconds:
                    return
        except KeyboardInterrupt:
            return


def read(path: Path) -> tuple[Row, list[Row]]:
    """Return what made the figures, and the samples; a line that a kill has cut is left out."""
    found = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    if len(found) < 2:
        raise SystemExit(f"{path} has no samples")
    return found[0], found[1:]


@dataclass
class Served:
    """What a process of each kind has in memory."""

    encoder: OnnxEncoder
    segmenter: OnnxSegmenter
    adapter: OnnxSegmenter
    bank: OnnxBank
    row_files: Path
    """An adapter that is a row: every tensor as the base has it."""
    next_row: int = 0
    batches: deque[int] = field(default_factory=lambda: deque(BATCHES))


def serving(settings: OnnxSettings, scratch: Path) -> Iterator[str]:
    """Load one kind after the other, for ever; gives the kind once the version before it has left."""
    encoder_spec, spec = (spec_from_json((MODELS / n / "model.json").read_bytes()) for n in (ENCODER, SEGMENTER))
    assert isinstance(encoder_spec, EncoderSpec)
    assert isinstance(spec, SegmenterSpec)
    (scratch / "adapter.safetensors").write_bytes(safetensors.numpy.save({}))
    encoders, segmenters, banks = (
        OnnxEncoderLoader(settings), OnnxSegmenterLoader(settings), OnnxBankLoader(settings, BANK_BYTES),
    )  # fmt: skip
    load: dict[str, Callable[[], Any]] = {
        "encoder": lambda: encoders.load(ENCODER, MODELS / ENCODER, encoder_spec),
        "segmenter": lambda: segmenters.load(SEGMENTER, "a segmenter", MODELS / SEGMENTER, spec),
        "adapter": lambda: segmenters.load(SEGMENTER, "an adapter", MODELS / SEGMENTER, spec),
        "bank": lambda: banks.load(SEGMENTER, "a bank", MODELS / SEGMENTER, spec),
    }
    served = Served(**{kind: make() for kind, make in load.items()}, row_files=scratch)
    with ThreadPoolExecutor(1, thread_name_prefix="load") as thread:
        while True:
            for kind, make in load.items():
                loading = thread.submit(make)
                answer(served, banks, encoder_spec, spec)  # a version is loaded while others are at work
                setattr(served, kind, loading.result())
                answer(served, banks, encoder_spec, spec)
                del loading
                yield kind


def answer(served: Served, banks: OnnxBankLoader, encoder_spec: EncoderSpec, spec: SegmenterSpec) -> None:
    """Encode a batch of images, and decode a click on each by the segmenter, the adapter and rows of the bank."""
    batch = served.batches[0]
    served.batches.rotate(-1)
    side = encoder_spec.preprocessing.size
    outputs = served.encoder.run(np.zeros((batch, 3, side, side), np.float32))
    place = next(i for i, output in enumerate(encoder_spec.outputs) if output.role == "image_embedding")
    clicks = (
        cast("NDArray[np.float32]", outputs[place]),
        np.arange(batch),
        np.full((batch, 2, 2), side / 2, np.float32),
        np.tile(np.array([[1, -1]], np.float32), (batch, 1)),
        np.zeros((batch, 1, *spec.low_res_hw), np.float32),
        np.ones(batch, np.float32),
    )
    served.segmenter.run(*clicks)
    served.adapter.run(*clicks)
    rows = [1 + (served.next_row + index) % served.bank.capacity for index in range(ROWS_EACH_TURN)]
    served.next_row = rows[-1]
    for row in rows:  # whoever was there is evicted
        served.bank.write(row, banks.read_row(served.row_files, served.bank.layout))
    served.bank.run(rows[:batch], *clicks)


def verdict(rows: Sequence[Row]) -> Row:
    """Return peaks, growth and whether memory is flat: None where the samples are too few to say.

    What leaks does so with every load, and other work on the machine makes loads few in some minutes and many in
    others: so halves and slopes are of loads, not of time.
    """
    halves = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    minutes = [(half[-1]["seconds"] - half[0]["seconds"]) / 60 if half else 0.0 for half in halves]
    found: Row = {
        "num_loads": len(rows),
        "minutes": rows[-1]["seconds"] / 60,
        "most_mib_per_thousand": MOST_MIB_PER_THOUSAND,
    }
    for memory in ("host_mib", "device_mib"):
        if memory not in rows[-1]:
            continue
        values = [row[memory] for row in halves[1]]
        per_load = slope(range(len(values)), values)
        found[memory] = {
            "median": round(statistics.median(values), 1),
            "peaks": [round(max((row[memory] for row in half), default=0.0), 1) for half in halves],
            "per_thousand": None if per_load is None else round(1000 * per_load, 2),
        }
    slopes = [found[memory]["per_thousand"] for memory in ("host_mib", "device_mib") if memory in found]
    is_known = minutes[1] >= LEAST_MINUTES and None not in slopes
    return {**found, "is_flat": max(slopes) <= MOST_MIB_PER_THOUSAND if is_known else None}


def slope(places: Sequence[float], values: Sequence[float]) -> float | None:
    """Return the median of the slopes between all pairs (Theil and Sen), which a few spikes do not move.

    Many samples are first put together, by medians of neighbours.
    """
    size = -(-len(places) // _MOST_POINTS)
    x, y = (
        np.array([statistics.median(column[i : i + size]) for i in range(0, len(column), size)])
        for column in (places, values)
    )
    first, second = np.triu_indices(len(x), 1)
    steps = x[second] - x[first]
    is_apart = steps > 0
    if not is_apart.any():
        return None
    return float(np.median((y[second] - y[first])[is_apart] / steps[is_apart]))


def table_of(report: Row) -> str:
    """Return the verdict as Markdown."""
    lines = [
        "| memory | median | peak of each half | growth with 1,000 loads, second half | at most | flat |",
        "|---|--:|--:|--:|--:|---|",
    ]
    said = {True: "yes", False: "**no**", None: "too short to say"}[report["is_flat"]]
    for memory, name in (("host_mib", "of the process"), ("device_mib", "of the GPU")):
        if memory in report:
            found = report[memory]
            growth = "-" if found["per_thousand"] is None else f"{found['per_thousand']:+.1f} MiB"
            peaks = " and ".join(f"{peak:,.0f}" for peak in found["peaks"])
            bound = f"{report['most_mib_per_thousand']:g} MiB"
            lines.append(f"| {name} | {found['median']:,.0f} MiB | {peaks} MiB | {growth} | {bound} | {said} |")
    made = f"{report['machine']}, ONNX Runtime {report['onnxruntime']}, commit {report['commit']}"
    loads = f"{report['num_loads']:,} versions loaded and unloaded in {report['minutes']:.1f} minutes"
    return "\n".join([*lines, "", f"{loads} on {report['device']}; {made}."])


def device_mib(device: int) -> float:
    """Return what this machine's GPU has in use, by whomever."""
    query = ["nvidia-smi", f"--id={device}", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return float(subprocess.run(query, check=True, capture_output=True, text=True).stdout.strip())


def described(settings: OnnxSettings) -> Row:
    """Return what makes the figures."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    device = "the CPU" if runs_on_cpu(settings) else f"GPU {settings.device_id}"
    return {"commit": commit, "onnxruntime": ort.__version__, "machine": platform.machine(), "device": device}


if __name__ == "__main__":
    main()
