"""How prompt tokens had better start: behind a gate of zero, or small as in VPT, alone and within E-PEFT.

``python tests/bench/token_start.py --out token_start.json`` tunes the shipped nano decoder on five images of each image
set, tries box and click on others before and after, and prints a table; a set and variant that is in the file already
is not run again. The sets are found through VPLAB_DATA.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import onnxruntime as ort
from PIL import Image

from vplab.training.tuning.examples import build_examples
from vplab.training.tuning.trainer import tune
from vplab.training.tuning.validation import validate
from vplab.training.tuning.values import EmbeddedView, TuningOptions
from vplab.training.worker.decoder_weights import load_decoder
from vplab.vision.adapters.adapt import adapt
from vplab.vision.adapters.spec import EPeftSpec, PromptTokensSpec
from vplab.vision.preprocessing import preprocess
from vplab.vision.specs import EncoderSpec, SegmenterSpec, spec_from_json

BUILTIN = Path(__file__).parents[2] / "services" / "vplab" / "registry" / "builtin"
SETS = ("polypgen", "crackforest", "nuclei_dsb")
NUM_TUNING, NUM_TEST = 5, 6
STARTS = {
    f"{gate} gate, {std:g}": PromptTokensSpec(gate=gate, initial_std=std)
    for std in (0.02, 0.5)
    for gate in ("zero", "none")
}
VARIANTS = {f"prompt_tokens, {name}": (spec, 5e-3) for name, spec in STARTS.items()} | {
    f"e_peft, {name}": (EPeftSpec(prompt_tokens=spec), 1e-3) for name, spec in STARTS.items()
}
"""With the learning rate at which the method is trained."""


def embed(folder: Path, names: list[str]) -> list[EmbeddedView]:
    """Embed images with the shipped encoder; the masks' values but 0 are the one class."""
    spec = spec_from_json((BUILTIN / "nano-encoder" / "model.json").read_bytes())
    assert isinstance(spec, EncoderSpec)
    session = ort.InferenceSession(BUILTIN / "nano-encoder" / spec.graph, providers=["CPUExecutionProvider"])
    views = []
    for index, name in enumerate(names):
        image = np.asarray(Image.open(folder / "images" / name).convert("RGB"))
        mask = np.asarray(Image.open((folder / "masks" / name).with_suffix(".png"))) > 0
        prepared = preprocess(image, spec.preprocessing)
        embedding = session.run(["image_embedding"], {"image": prepared.tensor[None]})[0][0]
        views.append(EmbeddedView(index, True, embedding, prepared.transform, {1: mask}))
    return views


def measure(root: Path, name: str, variant: str, num_steps: int, batch_size: int) -> dict[str, float]:
    """Return the IoU on images that are not tuned on, before and after, in per cent."""
    spec = spec_from_json((BUILTIN / "nano-segmenter" / "model.json").read_bytes())
    assert isinstance(spec, SegmenterSpec)
    method, rate = VARIANTS[variant]
    options = TuningOptions(
        num_steps=num_steps, batch_size=batch_size, learning_rate=rate, num_views=1, num_folds=0, num_checks=1
    )
    decoder = adapt(load_decoder(BUILTIN / "nano-segmenter", spec), method)
    images = sorted(path.name for path in (root / name / "images").iterdir())[: NUM_TUNING + NUM_TEST]
    examples = build_examples(embed(root / name, images), [1], spec)
    tuning = [e for e in examples if e.image_index < NUM_TUNING]
    test = [e for e in examples if e.image_index >= NUM_TUNING]
    before, _ = validate(decoder, test, spec)
    tune(decoder, tuning, spec, options, num_threads=1)
    after, _ = validate(decoder, test, spec)
    return {
        "box before": 100 * before.box_iou,
        "box after": 100 * after.box_iou,
        "click before": 100 * before.point_iou,
        "click after": 100 * after.point_iou,
    }


def main() -> None:
    """Measure what the file lacks and print the means over the sets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--batch-size", type=int, default=16)
    arguments = parser.parse_args()
    root = Path(os.environ.get("VPLAB_DATA", "../shared/data"))
    found = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for name in SETS:
        for variant in VARIANTS:
            key = f"{name}: {variant}: {arguments.steps} x {arguments.batch_size}"
            if key not in found:
                found[key] = measure(root, name, variant, arguments.steps, arguments.batch_size)
                arguments.out.write_text(json.dumps(found, indent=1))
                print(key, {k: round(v, 1) for k, v in found[key].items()}, flush=True)
    print("| tokens | box before | box after | click before | click after |\n|---|--:|--:|--:|--:|")
    for variant in VARIANTS:
        rows = [row for key, row in found.items() if f": {variant}: {arguments.steps} x {arguments.batch_size}" in key]
        means = (np.mean([row[column] for row in rows]) for column in rows[0])
        print(f"| {variant} | " + " | ".join(f"{mean:.1f}" for mean in means) + " |")


if __name__ == "__main__":
    main()
