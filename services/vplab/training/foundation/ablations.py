"""Short runs that differ in one choice each, measured on images no run saw; the recipe's README shows the table.

A few hundred steps say which choice learns faster, not where each would end; the times of the graphs are exact.
"""

import json
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from vplab.training.foundation.evaluation import (
    Encoded,
    EvaluationSet,
    Seconds,
    chosen_plane,
    code_commit,
    colour_model,
    measure,
    read_set,
)
from vplab.training.foundation.export import encoder_spec, round_to_half, segmenter_spec
from vplab.training.foundation.sources import NATURAL_SOURCES, PROCEDURAL, generate_procedural, open_cache
from vplab.training.foundation.training import Stage, Trainer, TrainingConfig
from vplab.vision.final_masks import final_mask
from vplab.vision.measures import BoolArray
from vplab.vision.nano.architecture import INPUT_SIZE, STRIDE, NanoSegmenter
from vplab.vision.nano.trunk import MobileNetTrunk
from vplab.vision.preprocessing import preprocess
from vplab.vision.prompts import ObjectPrompt, prompt_tokens
from vplab.vision.sam.onnx_decoder import decoder_to_onnx
from vplab.vision.sam.onnx_graph import batch_axis, to_onnx

MIX = {"bsds500": 0.27, "ecssd": 0.23, "camvid": 0.1, PROCEDURAL: 0.4}
HELD_OUT_SEED = 7
"""Of the generated scenes measured on; the cache is generated from seed 0."""
_MIN_OBJECT_PX = 200


@dataclass(frozen=True)
class Variant:
    """One choice changed against the first variant of the list."""

    name: str
    trunk: Path | None
    """Weights the trunk starts from; None is noise."""
    stride: int = STRIDE
    mix: tuple[str, ...] = (*NATURAL_SOURCES, PROCEDURAL)


def variants(imagenet: Path, deeplab: Path | None) -> list[Variant]:
    """Return the runs; the first is the recipe as it is."""
    recipe = Variant("as shipped: stride 16, ImageNet trunk, natural and generated", imagenet)
    runs = [
        recipe,
        replace(recipe, name="stride 8", stride=8),
        replace(recipe, name="trunk from noise", trunk=None),
        replace(recipe, name="natural images alone", mix=NATURAL_SOURCES),
        replace(recipe, name="generated scenes alone", mix=(PROCEDURAL,)),
    ]
    if deeplab is not None:
        runs.append(replace(recipe, name="DeepLab trunk", trunk=deeplab))
    return runs


class TorchPair:
    """A model in torch, prompted as the exported pair is."""

    def __init__(self, model: NanoSegmenter) -> None:
        self._model = model.eval()
        self._decoder = model.decoder(INPUT_SIZE)
        self._preprocessing = encoder_spec().preprocessing
        grid = INPUT_SIZE // model.stride
        self._spec = segmenter_spec().model_copy(
            update={"embedding_shape": (256, grid, grid), "low_res_hw": (4 * grid, 4 * grid)}
        )

    @torch.no_grad()
    def encode(self, image_rgb: NDArray[np.uint8]) -> tuple[Encoded, Seconds]:
        """As ``PromptedModel``."""
        prepared = preprocess(image_rgb, self._preprocessing)
        before = Seconds.now()
        image = torch.from_numpy(prepared.tensor[None])
        embedding = self._model.encoder.embed(image)
        spent = Seconds.now() - before
        colours = self._model.encoder.colours(image)[0].numpy()
        return Encoded(embedding.numpy(), prepared.transform, colour_model(colours, prepared.transform)), spent

    @torch.no_grad()
    def decode(self, image: Encoded, prompt: ObjectPrompt) -> tuple[BoolArray, NDArray[np.float32], Seconds]:
        """As ``PromptedModel``."""
        tokens = prompt_tokens(prompt, image.transform, self._spec)
        assert tokens.mask_logits is not None
        before = Seconds.now()
        logits, scores = self._decoder(
            torch.from_numpy(image.embedding),
            torch.zeros(1, dtype=torch.int64),
            torch.from_numpy(tokens.coords[None]),
            torch.from_numpy(tokens.labels[None].astype(np.float32)),
            torch.from_numpy(tokens.mask_logits[None, None]),
            torch.ones(1),
        )
        low_res = logits[0, chosen_plane(prompt, scores[0].numpy())].numpy()
        mask = final_mask(low_res, prompt, image.transform, self._spec, image.colours)
        return mask, low_res, Seconds.now() - before


def generated_objects(count: int) -> Iterator[tuple[NDArray[np.uint8], BoolArray]]:
    """Yield generated pictures with one of their objects each."""
    for index, (_, image, (segments, *_)) in enumerate(generate_procedural(count, HELD_OUT_SEED)):
        sizes = np.bincount(segments.ravel())
        ids = [i for i in np.nonzero(sizes)[0] if i and sizes[i] >= _MIN_OBJECT_PX]
        if ids:
            yield image, segments == np.random.default_rng([HELD_OUT_SEED, index]).choice(ids)


def run(variant: Variant, cache: Path, folder: Path, num_steps: int, seed: int) -> NanoSegmenter:
    """Train one variant and return its averaged weights."""
    folder.mkdir(parents=True, exist_ok=True)
    mix = {name: MIX[name] for name in variant.mix}
    config = TrainingConfig((Stage(256, num_steps, 8, 4, 6e-4, 1e-4),), mix, average_decay=0.97, seed=seed)
    torch.manual_seed(seed)
    trunk = None if variant.trunk is None else MobileNetTrunk.from_weights(variant.trunk)
    model = NanoSegmenter(trunk, variant.stride)
    trainer = Trainer(folder, config, [open_cache(cache / name) for name in mix], model)
    for _ in trainer.run():
        pass
    return trainer.averaged()


def graph_times(model: NanoSegmenter, folder: Path, threads: int, repeats: int = 20) -> dict[str, float]:
    """Return the processor's median milliseconds of both graphs on ONNX Runtime, one image and one click."""
    model = round_to_half(model).eval()
    grid = INPUT_SIZE // model.stride
    image = np.random.default_rng(0).standard_normal((1, 3, INPUT_SIZE, INPUT_SIZE)).astype(np.float32)
    outputs = tuple(output.name for output in encoder_spec().outputs)
    to_onnx(
        model.encoder, (torch.zeros(2, 3, INPUT_SIZE, INPUT_SIZE),), ({0: batch_axis("b")},), ("image",), outputs
    ).save(folder / "encoder.onnx")
    model.decoder()
    decoder_to_onnx(model.prompt_encoder, model.mask_decoder).save(folder / "decoder.onnx")
    click = {
        "image_embedding": np.zeros((1, 256, grid, grid), np.float32),
        "image_index": np.zeros(1, np.int64),
        "point_coords": np.full((1, 2, 2), 200, np.float32),
        "point_labels": np.array([[1, -1]], np.float32),
        "mask_input": np.zeros((1, 1, 4 * grid, 4 * grid), np.float32),
        "has_mask_input": np.ones(1, np.float32),
    }
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    figures = {}
    for name, feed in (("encoder", {"image": image}), ("decoder", click)):
        session = ort.InferenceSession(folder / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
        spent = []
        for _ in range(repeats):
            before = time.process_time()
            session.run(None, feed)
            spent.append(1000 * (time.process_time() - before))
        figures[f"{name}_cpu_ms"] = round(float(np.median(spent)), 1)
    return figures


def ablate(
    chosen: Sequence[Variant], data_dir: Path, cache: Path, folder: Path, num_steps: int, limit: int, threads: int
) -> None:
    """Run the variants that have no figures in ``folder`` yet, and write each one's as JSON."""
    for variant in chosen:
        output = folder / f"{variant.name.split(':')[0].replace(' ', '_')}.json"
        if output.is_file():
            continue
        model = run(variant, cache, folder / "run", num_steps, seed=0)
        pair = TorchPair(model)
        ecssd = EvaluationSet("ecssd (held out)", "ecssd", 255, True)
        figures = {
            "name": variant.name,
            "num_steps": num_steps,
            "ecssd": measure(pair, read_set(data_dir, ecssd, limit)),
            "generated": measure(pair, generated_objects(limit)),
            "times": graph_times(model, folder / "run", threads) | {"threads": threads},
            "commit": code_commit(),
            "device": f"{platform.machine()} CPU",
        }
        output.write_text(json.dumps(figures, indent=1) + "\n")
        print(variant.name, figures["ecssd"], figures["generated"], figures["times"], flush=True)


def as_table(folder: Path, chosen: Sequence[Variant]) -> str:
    """Return the figures of all variants as a Markdown table."""
    found = {f["name"]: f for f in (json.loads(p.read_text()) for p in folder.glob("*.json"))}
    lines = [
        "| run | held-out ECSSD: box / 1 / 5 clicks | generated: box / 1 / 5 clicks | encode / decode, ms of CPU |",
        "|---|---|---|---|",
    ]
    for variant in chosen:
        figures = found[variant.name]
        cells = [
            " / ".join(f"{figures[s][k]:.1f}" for k in ("box", "1_clicks", "5_clicks")) for s in ("ecssd", "generated")
        ]
        times = figures["times"]
        lines.append(
            f"| {variant.name} | {cells[0]} | {cells[1]} | {times['encoder_cpu_ms']} / {times['decoder_cpu_ms']} |"
        )
    return "\n".join(lines)
