"""What adapters cost: a batch that mixes a hundred, the bank beside a merged graph, a thousand in memory, one more.

``python tests/bench/adapter_bank.py --out FILE`` measures with the graphs and the loaders that serve and writes JSON;
``--readme`` writes the table between services/README.md's ``adapter bank`` marks. Times are ratios of runs that take
turns, the median of all turns; on a busy machine ``--clock process`` leaves out what other processes took.
"""

import argparse
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from main_job import write_between
from numpy.typing import NDArray
from safetensors.numpy import save_file

from vplab.runtime.onnx_session import OnnxSettings
from vplab.runtime.server_info import resident_memory_bytes
from vplab.segmentation.backends.onnx_banks import OnnxBank, OnnxBankLoader
from vplab.segmentation.backends.onnx_segmenters import OnnxSegmenterLoader
from vplab.training.models.adapter_bank import random_adapter
from vplab.training.models.half_weights import with_half_weights
from vplab.training.worker.decoder_weights import load_decoder
from vplab.training.worker.graph_templates import half_precision
from vplab.vision.adapters.adapt import AdaptedDecoder
from vplab.vision.sam.onnx_decoder import module_to_onnx
from vplab.vision.specs import SegmenterSpec, spec_from_json

ROOT = Path(__file__).resolve().parents[2]
NANO = ROOT / "services/vplab/registry/builtin/nano-segmenter"
NUM_MIXED, NUM_RESIDENT = 100, 1000
GOAL, GOAL_BYTES = 0.9, 1_000_000_000
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "process": time.process_time}

Values = tuple[NDArray[Any], ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--segmenter", type=Path, default=NANO, help="files of a segmenter version with a bank")
    parser.add_argument("--provider", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--readme", action="store_true", help="write the table into services/README.md")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    figures = measure(arguments)
    arguments.out.write_text(json.dumps(figures, indent=2) + "\n")
    table = table_of(figures)
    print(table)
    if arguments.readme:
        write_between(ROOT / "services/README.md", "adapter bank", table)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return all figures; times in seconds."""
    folder: Path = arguments.segmenter
    spec = spec_from_json((folder / "model.json").read_bytes())
    assert isinstance(spec, SegmenterSpec)
    settings = OnnxSettings(providers=(arguments.provider,), intra_op_threads=arguments.threads)
    loader = OnnxBankLoader(settings, max_bytes=2 * GOAL_BYTES)
    bank = loader.load("bench", "a bank", folder, spec)
    with tempfile.TemporaryDirectory() as scratch:
        adapted, row = _adapter(folder, spec, bank)
        merged = OnnxSegmenterLoader(settings).load(
            "bench", "an adapter", _write_merged(Path(scratch), adapted, spec), spec
        )
        before = resident_memory_bytes()
        added = _add_adapters(loader, bank, adapted, Path(scratch), row)
        resident = resident_memory_bytes() - before
    plain = OnnxSegmenterLoader(settings).load("bench", "a segmenter", folder, spec)
    turns, clock = arguments.turns, CLOCKS[arguments.clock]

    def ratio(first: Callable[[], Any], second: Callable[[], Any], num_prompts: int) -> dict[str, float]:
        # A large batch is as long as many small ones.
        return pair(first, second, max(3, turns // max(1, num_prompts // 8)), clock)

    figures: dict[str, Any] = {"mixed": {}, "merged": {}, "plain": {}}
    for num_prompts in (4, 32, NUM_MIXED):
        values = _values(num_prompts, spec)
        many = partial(bank.run, list(range(1, num_prompts + 1)), *values)
        figures["mixed"][num_prompts] = ratio(many, partial(bank.run, [1] * num_prompts, *values), num_prompts)
    for num_prompts in (1, 4, 32):
        values = _values(num_prompts, spec)
        one, base = (partial(bank.run, [row] * num_prompts, *values) for row in (1, 0))
        figures["merged"][num_prompts] = ratio(one, partial(merged.run, *values), num_prompts)
        figures["plain"][num_prompts] = ratio(base, partial(plain.run, *values), num_prompts)
    return figures | {
        "added": added,
        "row_bytes": 2 * bank.layout.width,
        "num_parameters": bank.layout.width,
        "resident_bytes": resident,
        "clock": arguments.clock,
        "device": _device(arguments),
        "commit": _git("rev-parse", "--short", "HEAD") + ("-dirty" if _git("status", "--porcelain", "-uno") else ""),
    }


def pair(
    first: Callable[[], Any], second: Callable[[], Any], turns: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Time two runs by turns: medians, and the median of second / first, which is first's throughput over second's."""
    times: tuple[list[float], list[float]] = [], []
    for turn in range(turns + 1):
        for place in (0, 1) if turn % 2 else (1, 0):
            began = clock()
            (first, second)[place]()
            times[place].append(clock() - began)
    ours, theirs = (np.array(found[1:]) for found in times)  # the first turn warms up
    return {
        "seconds": float(np.median(ours)),
        "other_seconds": float(np.median(theirs)),
        "throughput_ratio": float(np.median(theirs / ours)),
        "turns": turns,
    }


def _adapter(folder: Path, spec: SegmenterSpec, bank: OnnxBank) -> tuple[AdaptedDecoder, NDArray[np.float16]]:
    assert spec.adapter_bank is not None
    return random_adapter(load_decoder(folder, spec), spec.adapter_bank.adapter, bank.layout, seed=0)


def _write_merged(folder: Path, adapted: AdaptedDecoder, spec: SegmenterSpec) -> Path:
    graph = module_to_onnx(half_precision(adapted.merged().eval()), adapted.base.prompt_encoder).model_proto
    onnx.save(with_half_weights(graph), folder / spec.graph)
    return folder


def _add_adapters(
    loader: OnnxBankLoader, bank: OnnxBank, adapted: AdaptedDecoder, folder: Path, row: NDArray[np.float16]
) -> dict[str, float]:
    """Fill NUM_RESIDENT rows from files of one adapter, each a little different once read; median seconds of each."""
    random = np.random.default_rng(0)
    save_file({name: value.numpy() for name, value in adapted.adapter_state().items()}, folder / "adapter.safetensors")
    reads, writes = [], []
    for index in range(1, NUM_RESIDENT + 1):
        began = time.perf_counter()
        read = loader.read_row(folder, bank.layout)
        reads.append(time.perf_counter() - began)
        read = (read * random.uniform(0.9, 1.1)).astype(np.float16)
        began = time.perf_counter()
        bank.write(index, read)
        writes.append(time.perf_counter() - began)
    return {"read_seconds": float(np.median(reads)), "write_seconds": float(np.median(writes))}


def _values(num_prompts: int, spec: SegmenterSpec) -> Values:
    """Return clicks on up to four images, as the service gives them to a graph."""
    random = np.random.default_rng(num_prompts)
    num_images = min(4, num_prompts)
    return (
        random.normal(0, 0.5, (num_images, *spec.embedding_shape)).astype(np.float32),
        np.arange(num_prompts, dtype=np.int64) % num_images,
        random.uniform(0, spec.input_size, (num_prompts, 2, 2)).astype(np.float32),
        np.tile(np.array([1, -1], np.float32), (num_prompts, 1)),
        random.normal(0, 3, (num_prompts, 1, *spec.low_res_hw)).astype(np.float32),
        np.ones(num_prompts, np.float32),
    )


def table_of(figures: dict[str, Any]) -> str:
    """Return what was measured as Markdown, each goal beside it."""
    mixed, merged, plain = ({int(n): r for n, r in figures[k].items()} for k in ("mixed", "merged", "plain"))
    resident, added = figures["resident_bytes"], figures["added"]
    total = NUM_RESIDENT * figures["row_bytes"]
    rows = [
        _row(f"{n} prompts with {n} adapters, against one adapter for all, same graph", r) for n, r in mixed.items()
    ]
    rows += [_row(f"{_prompts(n)} with one adapter, against its merged graph", r) for n, r in merged.items()]
    rows += [
        _row(f"{_prompts(n)} of the base as a row of zeros, against the plain graph", r, "") for n, r in plain.items()
    ]
    is_small = max(total, resident) < GOAL_BYTES
    rows += [
        f"| {NUM_RESIDENT:,} adapters of {figures['num_parameters']:,} numbers: their rows, growth of the process |"
        f" {total / 1e6:,.0f} MB, {resident / 1e6:,.0f} MB | under {GOAL_BYTES / 1e6:,.0f} MB |"
        f" {'met' if is_small else '**not met**'} |",
        f"| adding one: reading its file, writing its row | {1e3 * added['read_seconds']:.2f} ms,"
        f" {1e3 * added['write_seconds']:.2f} ms | | |",
    ]
    head = "| | throughput | goal | |\n|---|--:|--:|---|"
    text = f"{figures['device']}; {figures['clock']} time; commit {figures['commit']}."
    return "\n".join([head, *rows, "", text])


def _prompts(count: int) -> str:
    return f"{count} prompt{'' if count == 1 else 's'}"


def _row(name: str, found: dict[str, float], goal: str = "at least 90 %") -> str:
    ratio = found["throughput_ratio"]
    verdict = "" if not goal else "met" if ratio >= GOAL else "**not met**"
    times = f"{1e3 * found['seconds']:.1f} and {1e3 * found['other_seconds']:.1f} ms"
    return f"| {name} | {100 * ratio:.0f} % ({times}) | {goal} | {verdict} |"


def _device(arguments: argparse.Namespace) -> str:
    where = f"{platform.machine()}, {arguments.threads} of {os.cpu_count()} threads, load {os.getloadavg()[0]:.1f}"
    return f"{arguments.segmenter.name} on {arguments.provider}, {where}, ONNX Runtime {onnxruntime.__version__}"


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
