"""Images per second of SAM's image encoder: this project's graph on ONNX Runtime beside eager PyTorch, in one run.

``python tests/bench/encoder_speed.py --provider cuda --precision float16 --batch 8 --out FILE --readme``. Weights are
random, which costs what trained ones cost; the graph is what an import of such a checkpoint writes. The two take turns
batch by batch, input and output stay on the device, and a turn ends when the device has. ``--readme`` writes the table
between services/README.md's ``encoder speed`` marks. ``--model tiny`` tries the way in seconds.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime
import torch
from segment_anything import sam_model_registry
from segment_anything.modeling import ImageEncoderViT
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

from main_job import write_between

from vplab.errors import VPLabError
from vplab.runtime.onnx_session import OnnxSettings, create_session, num_gpus
from vplab.training.models.graph_files import write_graph
from vplab.vision.sam.half_precision import HalfEncoder
from vplab.vision.sam.onnx_encoder import IMAGE_EMBEDDING, INPUT_NAME, encoder_to_onnx

ROOT: Final = Path(__file__).resolve().parents[2]
MARK: Final = "encoder speed"
MIN_TURNS: Final = 3
PUBLISHED_IMAGES_PER_S: Final = 92.1
"""segment-anything-fast, experiments/results_bs8.csv at b0e12e4, row "NT": vit_b, batch 8, bfloat16, torch.compile, its
Triton attention and nested tensors on an A100. It counts the mask decoder (predict_torch) too; here is the encoder
alone. https://github.com/pytorch-labs/segment-anything-fast/blob/main/experiments/results_bs8.csv"""


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=("vit_b", "vit_l", "vit_h", "tiny"), default="vit_b")
    parser.add_argument("--provider", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--precision", choices=("float16", "float32"), default="float32")
    parser.add_argument("--batch", type=int, default=8, help="images of a call")
    parser.add_argument("--seconds", type=float, default=20.0, help="of both together, after warming up")
    parser.add_argument("--threads", type=int, default=0, help="on the CPU; 0 is one for each core")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--readme", action="store_true", help="write the table into services/README.md")
    arguments = parser.parse_args()
    try:
        figures = measure(arguments)
    except VPLabError as error:
        raise SystemExit(f"encoder_speed.py: {error.message}") from error
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(figures, indent=2) + "\n")
    table = table_of(figures)
    print(table)
    if arguments.readme:
        write_between(ROOT / "services/README.md", MARK, table)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return all figures; ends the program in one line where the GPU that was asked for is not there."""
    if arguments.provider == "cuda" and not (num_gpus() and torch.cuda.is_available()):
        raise SystemExit("encoder_speed.py: there is no GPU here that both ONNX Runtime and PyTorch can use")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    # ONNX Runtime's float32 is float32 (OnnxSettings.allows_tf32), so PyTorch's convolutions are too.
    torch.backends.cudnn.allow_tf32 = False
    encoder = random_encoder(arguments.model)
    images = np.random.default_rng(0).normal(0, 1, (arguments.batch, 3, encoder.img_size, encoder.img_size))
    images = images.astype(np.float32)
    with tempfile.TemporaryDirectory() as scratch:
        graph = Path(scratch) / "encoder.onnx"
        # Half precision changes the module that is exported.
        exported = HalfEncoder(deepcopy(encoder)) if arguments.precision == "float16" else encoder
        write_graph(encoder_to_onnx(exported, encoder.img_size, IMAGE_EMBEDDING), graph)
        ours, answer = onnx_run(graph, arguments, images)
        theirs, expected = torch_run(encoder, arguments, images)
        difference = float(np.abs(answer() - expected()).max() / expected().std())
        times = take_turns(ours, theirs, arguments.seconds)
    seconds = np.median(times, axis=0)
    return {
        "model": arguments.model,
        "provider": arguments.provider,
        "precision": arguments.precision,
        "batch": arguments.batch,
        "onnx_images_per_s": arguments.batch / float(seconds[0]),
        "torch_images_per_s": arguments.batch / float(seconds[1]),
        "ratio": float(seconds[1] / seconds[0]),
        "turns": len(times),
        "max_difference_in_deviations": difference,
        "device": device_of(arguments),
        "versions": {"onnxruntime": onnxruntime.__version__, "torch": torch.__version__},
        "commit": commit(),
    }


def random_encoder(model: str) -> ImageEncoderViT:
    """Return an image encoder of the published shape; ``tiny`` has two blocks and 256 pixels."""
    torch.manual_seed(0)
    if model == "tiny":
        encoder = ImageEncoderViT(
            img_size=256, embed_dim=64, depth=2, num_heads=2, window_size=14, global_attn_indexes=(1,), use_rel_pos=True
        )
    else:
        encoder = sam_model_registry[model]().image_encoder
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            # Positions begin as zeros, which an optimiser may drop.
            if "pos" in name:
                nn.init.normal_(parameter, std=0.02)
    return encoder.eval()


def onnx_run(
    graph: Path, arguments: argparse.Namespace, images: np.ndarray
) -> tuple[Callable[[], None], Callable[[], np.ndarray]]:
    """Return a run of the graph with everything on the device, and one that fetches its answer."""
    settings = OnnxSettings(providers=(arguments.provider,), intra_op_threads=arguments.threads)
    session = create_session(graph, settings)
    binding = session.io_binding()
    binding.bind_ortvalue_input(INPUT_NAME, onnxruntime.OrtValue.ortvalue_from_numpy(images, arguments.provider, 0))
    binding.bind_output(IMAGE_EMBEDDING, arguments.provider)

    def run() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    def answer() -> np.ndarray:
        run()
        found: np.ndarray = binding.copy_outputs_to_cpu()[0]
        return found

    return run, answer


def torch_run(
    encoder: nn.Module, arguments: argparse.Namespace, images: np.ndarray
) -> tuple[Callable[[], None], Callable[[], np.ndarray]]:
    """Return a run of the module itself, cast as its users cast it, and one that fetches its answer."""
    kind = torch.float16 if arguments.precision == "float16" else torch.float32
    module = encoder.to(arguments.provider, kind)
    given = torch.from_numpy(images).to(arguments.provider, kind)

    @torch.inference_mode()
    def encode() -> Tensor:
        found: Tensor = module(given)
        if arguments.provider == "cuda":
            torch.cuda.synchronize()
        return found

    return lambda: (encode(), None)[1], lambda: encode().float().cpu().numpy()


def take_turns(ours: Callable[[], None], theirs: Callable[[], None], seconds: float) -> np.ndarray:
    """Time both in turn until ``seconds`` are over: (turns, 2) seconds; what came before has warmed them up."""
    times: list[list[float]] = []
    until = time.perf_counter() + seconds
    while len(times) < MIN_TURNS or time.perf_counter() < until:
        turn = [0.0, 0.0]
        for place in (0, 1) if len(times) % 2 else (1, 0):
            began = time.perf_counter()
            (ours, theirs)[place]()
            turn[place] = time.perf_counter() - began
        times.append(turn)
    return np.array(times)


def table_of(figures: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    what = f"{figures['model']}, {figures['precision']}, batch {figures['batch']}"
    rows = [
        f"| ONNX Runtime, {what} | {figures['onnx_images_per_s']:.3g} | {figures['ratio']:.2f} x eager PyTorch |",
        f"| eager PyTorch, {what} | {figures['torch_images_per_s']:.3g} | |",
    ]
    if figures["provider"] == "cuda":
        ratio = figures["onnx_images_per_s"] / PUBLISHED_IMAGES_PER_S
        rows.append(
            f"| published: segment-anything-fast, vit_b, bfloat16, batch 8 on an A100, encoder and `predict_torch` "
            f"([results_bs8.csv](https://github.com/pytorch-labs/segment-anything-fast/tree/main/experiments)) "
            f"| {PUBLISHED_IMAGES_PER_S} | ONNX Runtime here: {ratio:.2f} x |"
        )
    versions = figures["versions"]
    said = (
        f"SAM's image encoder alone, random weights; {figures['device']}, ONNX Runtime {versions['onnxruntime']}, "
        f"PyTorch {versions['torch']}; medians of {figures['turns']} turns; commit {figures['commit']}."
    )
    return "\n".join(["| | images/s | |", "|---|--:|---|", *rows, "", said])


def device_of(arguments: argparse.Namespace) -> str:
    """Name what computed."""
    if arguments.provider == "cuda":
        return str(torch.cuda.get_device_name())
    return f"CPU, {platform.machine()}, {torch.get_num_threads()} threads"


def commit() -> str:
    """Return what was measured, marked where it was changed since."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("-dirty" if git("status", "--porcelain", "-uno") else "")


if __name__ == "__main__":
    main()
