"""What limits matching with five references: finding the class, finding where it is, or drawing it.

``python tests/bench/matching_ceiling.py`` replaces one step of the pipeline after the other by the truth of the tested
image, with the shipped models in process: whether the class is there, which patches become points, and how similar each
patch is. What is wrong even with all three is the mask decoder's, and no map of patches can be above it; pixels can.
Beside what is served stands the same without the pixel classifier. Images, splits and seeds are those of
``adapters.py``; ``--readme`` writes the table into the README of the tuning package.
"""

import argparse
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from accuracy import TASKS, Task
from main_job import COMMIT, ROOT, write_between
from numpy.typing import NDArray
from tuning_tasks import ServedDecoder, base, digests, embed_view

from vplab.evaluation.folder import FolderOptions, LabelledFolder, read_folder
from vplab.evaluation.splits import make_splits
from vplab.training.tuning.values import EmbeddedView
from vplab.vision.matching import MATCHERS, ClassBank, ClassReference, MatchOptions, TargetPatches, build_class_bank
from vplab.vision.matching.matcher import Match
from vplab.vision.matching.proposals import propose
from vplab.vision.pipeline.segment import SegmentOptions, segment_matched

README = ROOT / "services" / "vplab" / "training" / "tuning" / "README.md"
SETS = ("neu_steel-1", "neu_steel-2", "neu_steel-3", "crackforest", "polypgen", "cxr_covid-1", "nuclei_dsb")
NUM_SHOTS, MAX_SIDE = 5, 512
STEPS = ("patches alone", "as served", "true presence", "and true points", "and true similarity")
MATCHER = MATCHERS["softmatch"]
THRESHOLD = 0.5
"""Share of a patch from which it may become a true point; of thin things half of the fullest patch's."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("VPLAB_DATA", ROOT.parent / "shared" / "data"))
    )
    parser.add_argument("--tasks", nargs="*", default=list(SETS), choices=[task.name for task in TASKS])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--max-test", type=int, default=20)
    parser.add_argument("--readme", action="store_true", help="write the table into the README of the tuning package")
    arguments = parser.parse_args()
    lines = [f"| images | {' | '.join(STEPS)} |", f"|---|{'--:|' * len(STEPS)}"]
    for task in (task for task in TASKS if task.name in arguments.tasks):
        found = np.array(list(measure(task, arguments)))
        lines.append(f"| {task.label} | {' | '.join(f'{100 * value:.1f}' for value in found.mean(axis=0))} |")
        print(lines[-1], flush=True)
    made = ", ".join(f"{name} {digest}" for name, digest in digests().items())
    what = f"{arguments.max_test} tested images, means over {arguments.seeds} choices of {NUM_SHOTS} references."
    text = "\n".join([*lines, "", f"Made by {made}; commit {COMMIT}, CPU. {what}"])
    print(text)
    if arguments.readme:
        write_between(README, "matching ceiling", text)


def measure(task: Task, arguments: argparse.Namespace) -> Iterator[list[float]]:
    """Yield, for each choice of references, the pooled IoU of every step."""
    values = tuple(int(value) for value in task.options[1:]) if "--classes" in task.options else ()
    options = FolderOptions(values=values, is_binary="--binary" in task.options, max_side=MAX_SIDE)
    folder = read_folder(arguments.data / task.folder, options)
    splits = make_splits(folder, arguments.max_test, arguments.seeds)
    with tempfile.TemporaryDirectory() as cache:
        tests = [read_view(folder, name, Path(cache)) for name in splits.test]
        for seed in range(arguments.seeds):
            shots = [read_view(folder, name, Path(cache)) for name in splits.shots_of(seed, NUM_SHOTS)]
            bank = build_class_bank(
                [ClassReference(view.patches, view.masks[1], i) for i, view in enumerate(shots) if view.patches]
            )
            masks = [steps(view, bank) for view in tests]
            yield [pooled_iou([m[i] for m in masks], [view.masks[1] for view in tests]) for i in range(len(STEPS))]


def read_view(folder: LabelledFolder, name: str, cache: Path) -> EmbeddedView:
    labelled = folder.read(name)
    return embed_view(labelled.image_rgb, {1: labelled.labels == 1}, 0, True, cache / f"{name}.npz")


def steps(view: EmbeddedView, bank: ClassBank) -> list[NDArray[np.bool_]]:
    """Return the mask (H, W) of each step."""
    assert view.patches is not None
    target, truth = TargetPatches.of([view.patches]), view.masks[1]
    scores = MATCHER.score(bank, target.features, MatchOptions())
    served = propose(scores, target, MatchOptions(), bank.presence_threshold, bank.pixel_classifier)
    coarse = propose(scores, target, MatchOptions(), bank.presence_threshold)
    if not truth.any():
        return [*(_mask(view, target, match, bank) for match in (coarse, served)), *([np.zeros_like(truth)] * 3)]
    certain = MatchOptions(presence_threshold=-np.inf)
    covered = view.patches.coverage(truth)[view.patches.valid]
    is_inside = covered > min(THRESHOLD, THRESHOLD * float(covered.max()))
    present = propose(scores, target, certain, 0.0, bank.pixel_classifier)
    told = propose(replace(scores, scores=covered, candidates=is_inside), target, certain, 0.0)
    pointed = replace(told, similarity=present.similarity, pixel_odds=present.pixel_odds)
    matches = (coarse, served, present, pointed, replace(told, similarity=covered))
    return [_mask(view, target, match, bank) for match in matches]


def _mask(view: EmbeddedView, target: TargetPatches, match: Match, bank: ClassBank) -> NDArray[np.bool_]:
    decoder, spec = base()
    options = SegmentOptions(refines=spec.refines)
    served = ServedDecoder(decoder, spec, view)
    found = segment_matched(match, MATCHER.groups_masks, target, served, options, bank.group_share)
    return found.mask(view.masks[1].shape)


def pooled_iou(found: list[NDArray[np.bool_]], wanted: list[NDArray[np.bool_]]) -> float:
    """Return the IoU of all pixels of all images together."""
    pairs = list(zip(found, wanted, strict=True))
    return sum(int((f & w).sum()) for f, w in pairs) / max(1, sum(int((f | w).sum()) for f, w in pairs))


if __name__ == "__main__":
    main()
