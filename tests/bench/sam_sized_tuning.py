"""How long E-PEFT trains in a decoder of SAM's size: 256 x 64 x 64 embeddings, prompts in a frame of 1,024 pixels.

``python tests/bench/sam_sized_tuning.py --out FILE [--device cuda] [--images 5] [--readme]`` makes embeddings and a
decoder at random, in SAM ViT-B's layout, and runs the trainer as a job does, two folds with
proposals and second passes included. What it learns means nothing; what it computes is what a job computes.
``--readme`` writes the line between the marks of the tuning README; ``--table-only`` measures nothing.
"""

import argparse
import json
import resource
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from main_job import write_between
from numpy.typing import NDArray
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer

from vplab.evaluation.software import describe_software
from vplab.training.tuning.examples import build_examples
from vplab.training.tuning.trainer import tune
from vplab.training.tuning.values import EmbeddedView, TuningOptions, TuningProgress
from vplab.vision.adapters.adapt import adapt
from vplab.vision.adapters.spec import default_spec
from vplab.vision.matching import PatchFeatures
from vplab.vision.preprocessing import frame_transform
from vplab.vision.sam.onnx_decoder import PromptDecoder
from vplab.vision.specs import Preprocessing, SegmenterSpec

README = Path(__file__).resolve().parents[2] / "services" / "vplab" / "training" / "tuning" / "README.md"
SIDE, CHANNELS, GRID = 1024, 256, 64
SPEC = SegmenterSpec(
    family="sam",
    architecture="random decoder",
    input_size=SIDE,
    embedding_shape=(CHANNELS, GRID, GRID),
    low_res_hw=(4 * GRID, 4 * GRID),
)
FRAME = Preprocessing(resize="longest_side", size=SIDE, mean_rgb=(0, 0, 0), std_rgb=(1, 1, 1))
FEATURES = Preprocessing(resize="fixed", size=37 * 14, mean_rgb=(0, 0, 0), std_rgb=(1, 1, 1))
IMAGE_HW = (768, 1024)
GOAL_S = 10.0
"""On a GPU."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--method", default="e_peft")
    parser.add_argument("--images", type=int, default=5)
    parser.add_argument("--steps", type=int, help="of each run, to try this script; else the method's")
    parser.add_argument("--readme", action="store_true")
    parser.add_argument("--table-only", action="store_true")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device answers on this machine")
    if not arguments.table_only:
        arguments.out.write_text(json.dumps(measured(arguments), indent=1) + "\n")
    text = text_of(json.loads(arguments.out.read_text()))
    print(text)
    if arguments.readme:
        write_between(README, "sam sized tuning", text)


def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train once and return seconds by run."""
    options = TuningOptions.for_method(arguments.method, arguments.images)
    options = replace(options, num_steps=arguments.steps or options.num_steps)
    rng = np.random.default_rng(0)
    views = [view for image in range(arguments.images) for view in _views(image, options.num_views, rng)]
    adapted = adapt(_decoder(), default_spec(arguments.method), seed=0)
    seconds: dict[str, float] = {}
    began = last = time.monotonic()
    examples = build_examples(views, [1], SPEC)
    seconds["proposals"], last = time.monotonic() - last, time.monotonic()
    steps: dict[str, int] = {}

    def note(progress: TuningProgress) -> None:
        nonlocal last
        name = "folds" if progress.run.startswith("fold") else "all images"
        seconds[name] = seconds.get(name, 0.0) + time.monotonic() - last
        steps[name] = steps.get(name, 0) + 1
        last = time.monotonic()

    result = tune(adapted, examples, SPEC, options, device=arguments.device, on_progress=note)
    memory = {"host_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    if arguments.device == "cuda":
        memory["device_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return {
        "device": torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu",
        "is_gpu": arguments.device == "cuda",
        "threads": torch.get_num_threads(),
        "method": arguments.method,
        "images": arguments.images,
        "total_s": time.monotonic() - began,
        "seconds": seconds,
        "steps": steps,
        "chosen": list(result.chosen),
        "memory": memory,
        "software": describe_software(),
    }


def text_of(found: dict[str, Any]) -> str:
    """Return what was measured in one paragraph."""
    stages = ", ".join(
        f"{name} {value:.1f} s" + (f" ({found['steps'][name]} steps)" if name in found["steps"] else "")
        for name, value in found["seconds"].items()
    )
    memory = ", ".join(f"{name.removesuffix('_mib')} {value:,.0f} MiB" for name, value in found["memory"].items())
    where = f"{found['device']}, {found['threads']} threads" if not found["is_gpu"] else found["device"]
    goal = f" (goal on a GPU: {GOAL_S:.0f} s)"
    return (
        f"{found['method']}, {found['images']} images, SAM ViT-B's decoder and embeddings: **{found['total_s']:.1f} s**"
        f"{goal}: {stages}; peak memory {memory}. On {where}; {found['software']['machine']}, commit"
        f" {found['software']['commit']}."
    )


def _views(image: int, num_views: int, rng: np.random.Generator) -> list[EmbeddedView]:
    """Return views whose embeddings hold a trace of the object, so that there is something to learn."""
    mask = np.zeros(IMAGE_HW, np.uint8)
    centre = (int(rng.integers(200, 824)), int(rng.integers(200, 568)))
    cv2.circle(mask, centre, int(rng.integers(60, 160)), 1, -1)
    frame, patches = frame_transform(IMAGE_HW, FRAME), frame_transform(IMAGE_HW, FEATURES)
    return [
        EmbeddedView(
            image_index=image,
            is_original=view == 0,
            embedding=_marked(rng, (CHANNELS, GRID, GRID), mask, frame.input_hw, SIDE).astype(np.float16),
            transform=frame,
            masks={1: mask.astype(bool)},
            patches=PatchFeatures(_unit(_marked(rng, (384, 37, 37), mask, (518, 518), 518)), patches, 14),
        )
        for view in range(num_views)
    ]


def _marked(
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    mask: NDArray[np.uint8],
    resized_hw: tuple[int, int],
    side: int,
) -> NDArray[np.float32]:
    """Return noise (C, h, w) that is shifted where the object is."""
    padded = np.zeros((side, side), np.uint8)
    padded[: resized_hw[0], : resized_hw[1]] = cv2.resize(mask, resized_hw[::-1], interpolation=cv2.INTER_NEAREST)
    grid = cv2.resize(padded, shape[:0:-1], interpolation=cv2.INTER_AREA).astype(np.float32)
    noise = rng.standard_normal(shape, np.float32)
    direction = np.random.default_rng(1).standard_normal((shape[0], 1, 1), np.float32)
    return noise + 2 * direction * grid


def _unit(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (h, w, D), each patch of length 1."""
    moved = np.moveaxis(features, 0, -1)
    return np.asarray(moved / np.linalg.norm(moved, axis=-1, keepdims=True), np.float32)


def _decoder() -> PromptDecoder:
    torch.manual_seed(0)
    transformer = TwoWayTransformer(depth=2, embedding_dim=CHANNELS, mlp_dim=2048, num_heads=8)
    prompt_encoder = PromptEncoder(CHANNELS, (GRID, GRID), (SIDE, SIDE), 16)
    decoder = MaskDecoder(transformer_dim=CHANNELS, transformer=transformer, iou_head_depth=3, iou_head_hidden_dim=256)
    return PromptDecoder(prompt_encoder, decoder).eval()


if __name__ == "__main__":
    main()
