"""MODEL_CARD.md of the shipped pair, written from the run's configuration, its log and the measured figures."""

import json
from pathlib import Path
from typing import Any

from vplab.training.foundation.export import ENCODER, SEGMENTER
from vplab.training.foundation.training import TrainingConfig

_COLUMNS = ("plain_box", "box", "1_clicks", "3_clicks", "5_clicks", "3_clicks_refining", "5_clicks_refining")

_DATA = """## Data and their terms

| source | used for training | terms |
|---|---|---|
| ECSSD (Yan et al., Shi et al., CUHK) | 800 of 1,000 images | public research set; no licence stated |
| BSDS500 (Berkeley) | 400 of 500 images, up to three annotators each | no licence stated; non-commercial research |
| CamVid (Cambridge) | 265 images; the sequence Seq05VD is held out whole | no licence stated; research use |
| `vplab.vision.synthesis` | generated scenes | this project, Apache-2.0 |

The held-out images are listed in `vplab/training/foundation/held_out`. The technical sets in the table below were used
for measuring only. The trunk started from MobileNetV2 1.0 ImageNet weights of google-coral/test_data (Apache-2.0,
int8 there, dequantised); ImageNet's own terms are for research. Whoever needs weights with cleaner terms can run the
recipe on data of their own.
"""

_LIMITS = """## Limits

- Small and trained briefly on a CPU: an honest default for trying the system, not a rival of SAM. Published SAM weights
  or DINO features in its place need no change elsewhere.
- Natural data is scenes and salient objects; microscopy, X-ray and metal surfaces were imitated, never seen.
- Masks come from a grid of 4 pixels of a 512-pixel input and are sharpened by colour on one of 2: what is thinner than
  about 1/200 of the long side, and no different in colour from what is beside it, is found roughly at best.
- The figures include that sharpening and the box's bound (`colour_evidence`, `box_bounds_mask` in the segmenter's
  model.json), which are part of serving; a runtime that leaves them out gets softer masks.
- Prompts must also be drawn into the mask input as `prompt_raster` in the segmenter's model.json says; without it the
  answers are poor.
- Scores are predicted IoU, regressed on the training data, and optimistic elsewhere.
"""


def write_model_cards(models: Path, run: Path, figures: dict[str, Any]) -> None:
    """Write both cards.

    ``run`` holds config.json, log.jsonl and, where the run did not go by its configuration alone, notes.md;
    ``figures`` is what ``evaluate`` wrote.
    """
    notes = run / "notes.md"
    config = TrainingConfig.from_json((run / "config.json").read_text())
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    shared = "\n".join(
        [_DATA, _recipe(config, log, notes.read_text() if notes.is_file() else ""), _measured(figures), _LIMITS]
    )
    (models / ENCODER / "MODEL_CARD.md").write_text(_ENCODER_HEAD + shared)
    (models / SEGMENTER / "MODEL_CARD.md").write_text(_SEGMENTER_HEAD + shared)


def _recipe(config: TrainingConfig, log: list[dict[str, float]], notes: str) -> str:
    steps = int(log[-1]["step"])
    hours = sum(line["step_s"] * 20 for line in log) / 3600
    stages = "\n".join(
        f"| {s.size} | {s.steps} | {s.num_images} x {s.prompts_per_image} | {s.lr_start:g} to {s.lr_end:g} |"
        for s in config.stages
    )
    shares = ", ".join(f"{name} {share:.0%}" for name, share in config.mix.items())
    return f"""## Recipe

`python -m vplab.training.foundation` (README.md there). SAM's interactive scheme: noisy boxes, clicks, noisy masks,
then clicks on what is still wrong; focal + dice loss 20 : 1, best of three planes, regressed IoU. {steps} steps took
{hours:.1f} hours on a CPU; the weights are a running average (decay {config.average_decay}). Mix: {shares}.

| input, pixels | steps | images x prompts | learning rate |
|---|---|---|---|
{stages}

{notes}"""


def _measured(figures: dict[str, Any]) -> str:
    head = " | ".join(c.replace("_", " ").replace("refining", "(mask handed back)") for c in _COLUMNS)
    rows = "\n".join(
        f"| {name} | {scores['num_images']} | " + " | ".join(f"{scores[c]:.1f}" for c in _COLUMNS) + " |"
        for name, scores in figures["sets"].items()
    )
    worse = [name for name, scores in figures["sets"].items() if scores["box"] < scores["plain_box"]]
    verdict = f"Answering a box worse than with the box itself: {', '.join(worse) or 'no set'}."
    speed = figures["speed"]
    return f"""## Measured

Mean IoU in per cent. Boxes are tight; clicks fall deepest inside the largest error; the object of a technical set is
the largest connected component of the class. "plain box" is the box itself, taken for the mask.

| set | images | {head} |
|---|---|{"---|" * len(_COLUMNS)}
{rows}

{verdict}

One image takes {speed["encode_cpu_ms"]:.0f} ms of the processor to encode, both outputs, and a click
{speed["decode_cpu_ms"]:.0f} ms to decode; on the clock {speed["encode_ms"]:.0f} and {speed["decode_ms"]:.0f} ms
({figures["device"]}; system load {speed["load_average"]} while measuring). Made by the recipe's `evaluate` at commit
{figures["commit"]}.
"""


_ENCODER_HEAD = """# nano-encoder

Image encoder of the nano models: MobileNetV2 1.0 and a neck of two 7 x 7 mixing blocks; one graph gives the image
embedding for `nano-segmenter` (256 channels, stride 16) and L2-normalised patch features for matching (128 wide, stride
8: principal components of strides 8, 16 and 32 of the ImageNet blocks). Input 512 pixels; weights in half precision.

"""
_SEGMENTER_HEAD = """# nano-segmenter

Prompt encoder and mask decoder of the nano models: segment-anything's own modules at their published widths (256 wide,
two two-way layers, 4.06 million parameters), trained from nothing behind `nano-encoder`. Weights in half precision.
`bank.onnx` is the same decoder with E-PEFT adapters as inputs, a row of half-precision numbers for each; with zeros it
answers as `decoder.onnx` (`bank_parity.json`).

"""
