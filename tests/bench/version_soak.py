"""Memory while versions come and go: loads, runs and unloads the nano models for as long as wanted.

``python tests/bench/version_soak.py --minutes 60 --out OUT`` loads the encoder and the segmenter over and over with the
services' own loaders, each new version before the old one leaves, runs batches of changing sizes, and writes
OUT/version_soak.json: resident memory (and the GPU's, where one is used) after every cycle, and how much it grew from
the second quarter of the time to the last.
"""

import argparse
import gc
import json
import platform
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from vplab.embedding.backends.onnx_encoders import OnnxEncoder, OnnxEncoderLoader
from vplab.runtime.onnx_session import OnnxSettings, runs_on_cpu
from vplab.runtime.server_info import resident_memory_bytes
from vplab.segmentation.backends.onnx_segmenters import OnnxSegmenter, OnnxSegmenterLoader
from vplab.vision.specs import EncoderSpec, SegmenterSpec, spec_from_json

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "services" / "vplab" / "registry" / "builtin"
ENCODER, SEGMENTER = "nano-encoder", "nano-segmenter"
BATCHES = (1, 2, 1, 4)
"""Sizes that take turns: a batch larger than the one before makes the arena grow."""
MIB = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    settings = OnnxSettings()
    rows: list[dict[str, float]] = []
    began = time.monotonic()
    kept: tuple[OnnxEncoder, OnnxSegmenter] | None = None
    while time.monotonic() - began < 60 * arguments.minutes:
        kept = cycle(settings, kept, BATCHES[len(rows) % len(BATCHES)])
        gc.collect()
        rows.append({"seconds": round(time.monotonic() - began, 2), "host_mib": resident_memory_bytes() / MIB})
        if not runs_on_cpu(settings):
            rows[-1]["gpu_mib"] = gpu_mib(settings.device_id)
    report = {"cycles": len(rows), "grew": grown(rows), **described(), "rows": rows}
    (arguments.out / "version_soak.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({key: value for key, value in report.items() if key != "rows"}))


def cycle(
    settings: OnnxSettings, kept: tuple[OnnxEncoder, OnnxSegmenter] | None, batch: int
) -> tuple[OnnxEncoder, OnnxSegmenter]:
    """Load both models beside those that are kept, run them, and let the old ones go."""
    encoder_spec, segmenter_spec = (
        spec_from_json((MODELS / n / "model.json").read_bytes()) for n in (ENCODER, SEGMENTER)
    )
    assert isinstance(encoder_spec, EncoderSpec)
    assert isinstance(segmenter_spec, SegmenterSpec)
    encoder = OnnxEncoderLoader(settings).load(ENCODER, MODELS / ENCODER, encoder_spec)
    segmenter = OnnxSegmenterLoader(settings).load(SEGMENTER, "a segmenter", MODELS / SEGMENTER, segmenter_spec)
    for each in ((encoder, segmenter), *([kept] if kept else [])):
        run(*each, encoder_spec, segmenter_spec, batch)
    return encoder, segmenter


def run(
    encoder: OnnxEncoder, segmenter: OnnxSegmenter, encoder_spec: EncoderSpec, spec: SegmenterSpec, batch: int
) -> None:
    """Encode a batch and decode a click on each of its images."""
    side = encoder_spec.preprocessing.size
    outputs = encoder.run(np.zeros((batch, 3, side, side), np.float32))
    place = next(i for i, output in enumerate(encoder_spec.outputs) if output.role == "image_embedding")
    segmenter.run(
        outputs[place],
        np.arange(batch),
        np.full((batch, 2, 2), side / 2, np.float32),
        np.tile(np.array([[1, -1]], np.float32), (batch, 1)),
        np.zeros((batch, 1, *spec.low_res_hw), np.float32),
        np.ones(batch, np.float32),
    )


def grown(rows: list[dict[str, float]]) -> dict[str, float]:
    """Return by how many MiB the median of the last quarter exceeds that of the second."""
    quarter = max(1, len(rows) // 4)
    parts = rows[quarter : 2 * quarter], rows[-quarter:]
    memories = [name for name in ("host_mib", "gpu_mib") if name in rows[-1]]
    return {
        name: round(statistics.median(r[name] for r in parts[1]) - statistics.median(r[name] for r in parts[0]), 2)
        for name in memories
    }


def gpu_mib(device: int) -> float:
    """Return what this machine's GPU has in use."""
    query = ["nvidia-smi", f"--id={device}", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return float(subprocess.run(query, check=True, capture_output=True, text=True).stdout.strip())


def described() -> dict[str, Any]:
    """Return what made the figures."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    return {"commit": commit, "onnxruntime": ort.__version__, "machine": platform.machine()}


if __name__ == "__main__":
    main()
