"""How prompt tokens had better start: behind a gate of zero, or small as in VPT, alone and within E-PEFT.

``python tests/bench/token_start.py --out token_start.json`` tunes the shipped nano decoder on five images of each image
set, tries box and click on others before and after, and prints a table; a set and variant that is in the file already
is not run again. The sets are found through VPLAB_DATA.
"""

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from PIL import Image

from vplab.training.tuning.examples import build_examples
from vplab.training.tuning.trainer import tune
from vplab.training.tuning.validation import validate
from vplab.training.tuning.values import EmbeddedView, TuningExample, TuningOptions
from vplab.training.worker.decoder_weights import load_decoder
from vplab.vision.adapters.adapt import adapt
from vplab.vision.adapters.spec import EPeftSpec, PromptTokensSpec
from vplab.vision.preprocessing import preprocess
from vplab.vision.sam.onnx_decoder import PromptDecoder
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


@dataclass(frozen=True)
class Task:
    """One image set, embedded once for all variants."""

    decoder: PromptDecoder
    segmenter: SegmenterSpec
    tuning: list[TuningExample]
    test: list[TuningExample]

    @classmethod
    def of(cls, folder: Path) -> "Task":
        """Take the first images of a set to tune on and the next ones to test."""
        spec = spec_from_json((BUILTIN / "nano-segmenter" / "model.json").read_bytes())
        assert isinstance(spec, SegmenterSpec)
        images = sorted(path.name for path in (folder / "images").iterdir())[: NUM_TUNING + NUM_TEST]
        examples = build_examples(embed(folder, images), [1], spec)
        tuning = [e for e in examples if e.image_index < NUM_TUNING]
        test = [e for e in examples if e.image_index >= NUM_TUNING]
        return cls(load_decoder(BUILTIN / "nano-segmenter", spec), spec, tuning, test)

    def measure(self, variant: str, num_steps: int, batch_size: int) -> dict[str, float]:
        """Return the IoU on the test images, before and after tuning, in per cent."""
        method, rate = VARIANTS[variant]
        options = TuningOptions(
            num_steps=num_steps, batch_size=batch_size, learning_rate=rate, num_views=1, num_folds=0, num_checks=1
        )
        decoder = adapt(self.decoder, method)
        before, _ = validate(decoder, self.test, self.segmenter)
        tune(decoder, self.tuning, self.segmenter, options, num_threads=1)
        after, _ = validate(decoder, self.test, self.segmenter)
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
    tasks = {name: Task.of(root / name) for name in SETS}
    for variant in VARIANTS:
        for name, task in tasks.items():
            key = f"{name}: {variant}: {arguments.steps} x {arguments.batch_size}"
            if key not in found:
                found[key] = task.measure(variant, arguments.steps, arguments.batch_size)
                arguments.out.write_text(json.dumps(found, indent=1))
                print(key, {k: round(v, 1) for k, v in found[key].items()}, flush=True)
    print("| tokens | box before | box after | click before | click after |\n|---|--:|--:|--:|--:|")
    for variant in VARIANTS:
        rows = [row for key, row in found.items() if f": {variant}: {arguments.steps} x {arguments.batch_size}" in key]
        means = (np.mean([row[column] for row in rows]) for column in rows[0])
        print(f"| {variant} | " + " | ".join(f"{mean:.1f}" for mean in means) + " |")


if __name__ == "__main__":
    main()
