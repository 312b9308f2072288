"""The recipe's command line: prepare, train, and what follows."""

import argparse
import json
import os
import time
from pathlib import Path

import torch

from vplab.training.foundation.ablations import ablate, as_table, variants
from vplab.training.foundation.evaluation import comparison, evaluate
from vplab.training.foundation.export import (
    add_bank,
    compare_again,
    export,
    export_early,
    export_segmenter_again,
    load_model,
)
from vplab.training.foundation.model_cards import write_model_cards
from vplab.training.foundation.projection import fit_projection
from vplab.training.foundation.sources import (
    NATURAL_SOURCES,
    PROCEDURAL,
    generate_procedural,
    open_cache,
    read_natural,
    write_cache,
)
from vplab.training.foundation.training import CHECKPOINT, Stage, Trainer, TrainingConfig
from vplab.vision.nano.architecture import NanoSegmenter
from vplab.vision.nano.trunk import MobileNetTrunk

DEFAULT_CONFIG = TrainingConfig(
    stages=(
        Stage(256, 3800, 8, 4, 6e-4, 6e-4),
        Stage(256, 1600, 8, 4, 6e-4, 2e-4),
        Stage(512, 1500, 4, 4, 2e-4, 1e-5),
    ),
    mix={"bsds500": 0.27, "ecssd": 0.23, "camvid": 0.1, "procedural": 0.4},
    rounds=(0.4, 0.25, 0.2, 0.15),
    average_decay=0.995,
)
SAVE_EVERY_STEPS = 100


def prepare(arguments: argparse.Namespace) -> None:
    """Decode the training images of every source into the cache."""
    for source in arguments.sources:
        folder = arguments.cache / source
        if (folder / "index.json").is_file():
            continue
        if source == PROCEDURAL:
            labelled = generate_procedural(arguments.num_procedural, seed=0)
        else:
            labelled = read_natural(arguments.data, source, held_out=False)
        count = write_cache(folder, labelled)
        print(f"{source}: {count} images", flush=True)


def train(arguments: argparse.Namespace) -> None:
    """Train, or go on from the folder's checkpoint."""
    torch.set_num_threads(arguments.threads)
    folder: Path = arguments.run
    folder.mkdir(parents=True, exist_ok=True)
    config_path = folder / "config.json"
    if not config_path.is_file():
        config_path.write_text(DEFAULT_CONFIG.to_json())
    config = TrainingConfig.from_json(config_path.read_text())
    sources = [open_cache(arguments.cache / name) for name, share in config.mix.items() if share > 0]
    torch.manual_seed(config.seed)
    resumes = (folder / CHECKPOINT).is_file()
    trunk = None if resumes else MobileNetTrunk.from_weights(arguments.trunk)
    trainer = Trainer(folder, config, sources, NanoSegmenter(trunk), arguments.device)
    if not trainer.resume() and arguments.start_from is not None:
        trainer.model.load_state_dict(load_model(arguments.start_from).state_dict())
        trainer.start_average()
    deadline = time.monotonic() + 60 * arguments.minutes
    sums: dict[str, float] = {}
    count = 0
    with (folder / "log.jsonl").open("a") as log:
        for metrics in trainer.run(arguments.until):
            count += 1
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0.0) + value
            if trainer.step % 20 == 0:
                line = {n: round(v / count, 6) for n, v in sums.items()} | {"step": trainer.step}
                log.write(json.dumps(line) + "\n")
                log.flush()
                sums, count = {}, 0
            if trainer.step % SAVE_EVERY_STEPS == 0:
                trainer.save()
            if time.monotonic() > deadline:
                break
    trainer.save()


def export_pair(arguments: argparse.Namespace) -> None:
    """Fit the projection of the patch features and export the averaged weights of a run."""
    torch.set_num_threads(arguments.threads)
    config = TrainingConfig.from_json((arguments.run / "config.json").read_text())
    model = load_model(arguments.run / CHECKPOINT)
    kept = fit_projection(model, [open_cache(arguments.cache / name) for name in sorted(config.mix)])
    print(f"the patch features keep {100 * kept:.1f} % of the variance")
    export(model, arguments.output)


def export_graphs_again(arguments: argparse.Namespace) -> None:
    """Export the segmenter's graphs anew with their own weights."""
    torch.set_num_threads(arguments.threads)
    export_segmenter_again(arguments.models)


def bank_segmenter(arguments: argparse.Namespace) -> None:
    """Make the segmenter's bank graph anew."""
    torch.set_num_threads(arguments.threads)
    add_bank(arguments.models)


def export_early_pair(arguments: argparse.Namespace) -> None:
    """Write the pair anew with an encoder that also returns its early feature."""
    torch.set_num_threads(arguments.threads)
    export_early(arguments.models, arguments.output)


def compare_pair(arguments: argparse.Namespace) -> None:
    """Make the parity reports anew."""
    torch.set_num_threads(arguments.threads)
    compare_again(arguments.models)


def evaluate_pair(arguments: argparse.Namespace) -> None:
    """Measure the exported pair."""
    evaluate(
        arguments.models,
        arguments.data,
        arguments.output,
        limit=arguments.limit,
        threads=arguments.threads,
        is_decoder_alone=arguments.decoder_alone,
    )


def write_cards(arguments: argparse.Namespace) -> None:
    """Write MODEL_CARD.md beside each graph."""
    write_model_cards(arguments.models, arguments.run, json.loads(arguments.figures.read_text()))


def compare_runs(arguments: argparse.Namespace) -> None:
    """Print what several runs reached, side by side."""
    found = {path: json.loads(path.read_text()) for path in arguments.figures}
    names = {p: p.parent.name + (", decoder alone" if f.get("is_decoder_alone") else "") for p, f in found.items()}
    print(comparison({names[path]: figures for path, figures in found.items()}))


def ablate_choices(arguments: argparse.Namespace) -> None:
    """Run the ablations and print their table."""
    torch.set_num_threads(arguments.threads)
    chosen = variants(arguments.trunk, arguments.deeplab)
    ablate(chosen, arguments.data, arguments.cache, arguments.run, arguments.steps, arguments.limit, arguments.threads)
    print(as_table(arguments.run, chosen))


def command_line() -> argparse.ArgumentParser:
    """Return the parser of all steps; what it parses has the step's function as ``call``."""
    parser = argparse.ArgumentParser(prog="python -m vplab.training.foundation", description=__doc__)
    steps = parser.add_subparsers(required=True)
    data = Path(os.environ.get("VPLAB_DATA", "../shared/data"))

    step = steps.add_parser("prepare", help="decode the training images into a cache")
    step.add_argument("--data", type=Path, default=data)
    step.add_argument("--cache", type=Path, required=True)
    step.add_argument("--sources", nargs="+", default=[*NATURAL_SOURCES, PROCEDURAL])
    step.add_argument("--num-procedural", type=int, default=2400, help="generated scenes")
    step.set_defaults(call=prepare)

    step = steps.add_parser("train", help="train, or go on from the last checkpoint")
    step.add_argument("--cache", type=Path, required=True)
    step.add_argument("--run", type=Path, required=True, help="folder of config.json, checkpoint and log")
    step.add_argument("--trunk", type=Path, help="timm mobilenetv2_100 safetensors; default: timm's download")
    step.add_argument("--start-from", type=Path, help="checkpoint of another run whose averaged weights to start from")
    step.add_argument("--device", default="cpu")
    step.add_argument("--threads", type=int, default=2)
    step.add_argument("--until", type=int, help="stop after this step")
    step.add_argument("--minutes", type=float, default=float("inf"), help="stop after this time")
    step.set_defaults(call=train)

    step = steps.add_parser("export", help="write both artifacts: graphs, specs, parity reports")
    step.add_argument("--cache", type=Path, required=True)
    step.add_argument("--run", type=Path, required=True)
    step.add_argument("--output", type=Path, required=True)
    step.add_argument("--threads", type=int, default=2)
    step.set_defaults(call=export_pair)

    step = steps.add_parser("segmenter", help="export the segmenter's graphs anew with the weights that they have")
    step.add_argument("--models", type=Path, required=True, help="folder of nano-encoder and nano-segmenter")
    step.add_argument("--threads", type=int, default=2)
    step.set_defaults(call=export_graphs_again)

    step = steps.add_parser("bank", help="write the exported segmenter's graph that takes adapters anew")
    step.add_argument("--models", type=Path, required=True, help="folder of nano-encoder and nano-segmenter")
    step.add_argument("--threads", type=int, default=2)
    step.set_defaults(call=bank_segmenter)

    step = steps.add_parser("early", help="write the exported pair with an encoder that returns its early feature too")
    step.add_argument("--models", type=Path, required=True, help="folder of nano-encoder and nano-segmenter")
    step.add_argument(
        "--output", type=Path, required=True, help="folder of nano-early-encoder and nano-early-segmenter"
    )
    step.add_argument("--threads", type=int, default=2)
    step.set_defaults(call=export_early_pair)

    step = steps.add_parser("parity", help="compare the exported pair with torch anew; the graphs stay as they are")
    step.add_argument("--models", type=Path, required=True, help="folder of nano-encoder and nano-segmenter")
    step.add_argument("--threads", type=int, default=2)
    step.set_defaults(call=compare_pair)

    step = steps.add_parser("evaluate", help="measure the exported pair; writes JSON")
    step.add_argument("--models", type=Path, required=True, help="folder of nano-encoder and nano-segmenter")
    step.add_argument("--data", type=Path, default=data)
    step.add_argument("--output", type=Path, required=True, help="JSON file")
    step.add_argument("--limit", type=int, default=40, help="images of each technical set")
    step.add_argument("--threads", type=int, default=2)
    step.add_argument("--decoder-alone", action="store_true", help="without the colours and the box's bound")
    step.set_defaults(call=evaluate_pair)

    step = steps.add_parser("card", help="write the model cards from the figures and the run's log")
    step.add_argument("--models", type=Path, required=True)
    step.add_argument("--run", type=Path, required=True)
    step.add_argument("--figures", type=Path, required=True, help="what evaluate wrote")
    step.set_defaults(call=write_cards)

    step = steps.add_parser("compare", help="print a table of several runs' figures")
    step.add_argument("figures", type=Path, nargs="+", help="what evaluate wrote, one file for each run")
    step.set_defaults(call=compare_runs)

    step = steps.add_parser("ablate", help="short runs that differ in one choice each")
    step.add_argument("--data", type=Path, default=data)
    step.add_argument("--cache", type=Path, required=True)
    step.add_argument("--run", type=Path, required=True, help="folder of the figures; those that exist are kept")
    step.add_argument("--trunk", type=Path, required=True, help="timm mobilenetv2_100 safetensors")
    step.add_argument("--deeplab", type=Path, help="the same trunk trained for segmentation")
    step.add_argument("--steps", type=int, default=300)
    step.add_argument("--limit", type=int, default=40, help="images of each set")
    step.add_argument("--threads", type=int, default=1)
    step.set_defaults(call=ablate_choices)

    return parser


def main() -> None:
    """Run one step of the recipe."""
    arguments = command_line().parse_args()
    arguments.call(arguments)


if __name__ == "__main__":
    main()
