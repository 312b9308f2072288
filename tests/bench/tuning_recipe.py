"""What was tried for the tuning recipe and what it gave: choices on development tasks, methods and shots on all.

``python tests/bench/tuning_recipe.py --out recipe.json`` tunes the shipped nano decoder in this process, without
services, and tests it as serving uses it: a box, one click, and softmatch with the tuning images as references. A
measurement of the same models that is in the file is not made again; killed at any moment, the same command goes on.
``--part choices`` compares ways of training, ``methods`` the methods as they ship, ``longer`` what more steps do
without early stopping; ``--set technical`` verifies what ``development`` chose. ``--readme`` writes the tables into the
README of vplab.training.tuning, ``--tables-only`` measures nothing. What was measured of earlier models is not shown,
but for ``trials``, whose code is no more either.
"""

import argparse
import contextlib
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest import mock

import numpy as np
import torch
from main_job import COMMIT, write_between
from tuning_tasks import DEVELOPMENT, TECHNICAL, Source, Task, base, digests, measure, measure_marked

from vplab.training.tuning import losses, prompting
from vplab.training.tuning.examples import build_examples
from vplab.training.tuning.recipes import recipe
from vplab.training.tuning.trainer import tune
from vplab.training.tuning.values import TuningOptions
from vplab.vision.adapters.adapt import adapt
from vplab.vision.adapters.spec import AdapterSpec, EPeftSpec, HqTokenSpec, default_spec

README = Path(__file__).resolve().parents[2] / "services" / "vplab" / "training" / "tuning" / "README.md"
KINDS = ("box", "click", "match")
SHIPPED = "as shipped"
EARLIER = " before"
"""Behind the name of a part: what was measured before the loss was steeper, and is kept beside what it led to."""
CLEARLY = 1.0
"""Points of IoU by which something is clearly better or worse."""


@dataclass(frozen=True)
class Choice:
    """One way to train; what it does not say is as shipped, but without early stopping, so that every step shows."""

    method: str = "e_peft"
    options: Mapping[str, Any] = field(default_factory=dict)
    constants: Mapping[tuple[Any, str], Any] = field(default_factory=dict)
    spec: AdapterSpec | None = None


_UNIFORM = {"part_rates": ()}
_PARTS = recipe("e_peft", 5).part_rates
"""The first is the mask head's."""
_FROZEN = 1e-9
"""Factor on the rate of what shall stay as it is, since zero is refused."""
CHOICES = {
    SHIPPED: Choice(),
    "one rate for all parts": Choice(options=_UNIFORM),
    "half the rate": Choice(options={"learning_rate": 1e-3}),
    "twice the rate": Choice(options={"learning_rate": 4e-3}),
    "logits as they are in the loss": Choice(constants={(losses, "STEEPNESS"): 1.0}),
    "logits as they are, mask head at LoRA's rate": Choice(
        options={"part_rates": _PARTS[1:]}, constants={(losses, "STEEPNESS"): 1.0}
    ),
    "logits times two in the loss": Choice(constants={(losses, "STEEPNESS"): 2.0}),
    "logits times eight in the loss": Choice(constants={(losses, "STEEPNESS"): 8.0}),
    "BCE in full": Choice(constants={(losses, "ENTROPY_WEIGHT"): 1.0}),
    "other planes as in the foundation": Choice(constants={(losses, "OTHER_PLANES"): 0.05}),
    "no proposals": Choice(constants={(prompting, "PROPOSAL_SHARE"): 0.0}),
    "no proposals on background": Choice(constants={(prompting, "FALSE_SHARE"): 0.0}),
    "one view": Choice(options={"num_views": 1}),
    "16 prompts a step, half the steps": Choice(options={"batch_size": 16, "num_steps": 15}),
    "mask head at LoRA's rate": Choice(options={"part_rates": _PARTS[1:]}),
    "mask head at a quarter of LoRA's rate": Choice(options={"part_rates": (("mask_head.", 0.25), *_PARTS[1:])}),
    "all parts beside LoRA at half their rates": Choice(
        options={"part_rates": tuple((part, factor / 2) for part, factor in _PARTS)}
    ),
    "without mask head": Choice(spec=EPeftSpec(mask_head=None)),
    "without image context": Choice(spec=EPeftSpec(image_context=None)),
    "without IA3": Choice(spec=EPeftSpec(ia3=None)),
    "without prompt tokens": Choice(spec=EPeftSpec(prompt_tokens=None)),
    "LoRA alone": Choice("lora"),
    "full tuning": Choice("full_decoder"),
    **{
        f"full tuning but for the {title}": Choice("full_decoder", options={"part_rates": ((part, _FROZEN),)})
        for title, part in (
            ("transformer", "transformer."),
            ("upscaling", "output_upscaling."),
            ("mask head", "output_hypernetworks_mlps."),
            ("score head", "iou_prediction_head."),
        )
    },
    "HQ mask trained alone": Choice("hq_token", spec=HqTokenSpec(trained_mask="alone")),
}
METHODS = ("e_peft", "lora", "ia3", "prompt_tokens", "image_context", "hq_token", "full_decoder")
STEPS = (30, 90, 270)
PARTS: dict[str, Mapping[str, Choice]] = {
    "choices": CHOICES,
    "methods": {method: Choice(method) for method in METHODS},
    "longer": {
        f"{method} {steps}": Choice(method, options={"num_steps": steps})
        for method in ("e_peft", "lora", "full_decoder", "hq_token")
        for steps in STEPS
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, help="keeps embeddings; beside --out unless said")
    parser.add_argument("--part", choices=tuple(PARTS), default="choices")
    parser.add_argument("--set", choices=("development", "technical"), default="development", dest="task_set")
    parser.add_argument("--tasks", nargs="*", help="only these tasks")
    parser.add_argument("--only", nargs="*", help="only these choices or methods")
    parser.add_argument("--shots", type=int, nargs="*", default=[5])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--readme", action="store_true")
    parser.add_argument("--tables-only", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cache = arguments.cache or arguments.out.with_suffix(".cache")
    if not arguments.tables_only:
        for source in DEVELOPMENT if arguments.task_set == "development" else TECHNICAL:
            if not arguments.tasks or source.name in arguments.tasks:
                _measure_task(source, cache, arguments)
    text = tables(_read(arguments.out))
    print(text)
    if arguments.readme:
        write_between(README, "tuning recipe", text)


def _measure_task(source: Source, cache: Path, arguments: argparse.Namespace) -> None:
    jobs = PARTS[arguments.part]
    task: Task | None = None
    for shots in arguments.shots:
        for seed in arguments.seeds:
            for name, choice in jobs.items():
                key = f"{arguments.part}|{name}|{source.name}|{shots}|{seed}"
                if (arguments.only and name not in arguments.only) or _is_of_these_models(
                    _read(arguments.out).get(key)
                ):
                    continue
                task = task or Task.of(source, cache)
                before = _before(task, shots, seed, _read(arguments.out))
                found = {"before": before} | _tuned(task, choice, shots, seed, stops_early=arguments.part == "methods")
                _write(arguments.out, key, found | {"set": arguments.task_set, "models": digests(), "commit": COMMIT})
                print(key, {k: round(found["after"][k] - found["before"][k], 1) for k in KINDS}, flush=True)


def _before(task: Task, shots: int, seed: int, measured: Mapping[str, Any]) -> dict[str, float]:
    """Return what the base does, which is the same for all that one commit tries."""
    for key, value in measured.items():
        is_same = key.split("|")[2:] == [task.name, str(shots), str(seed)] and value.get("commit") == COMMIT
        if is_same and _is_of_these_models(value):
            before: dict[str, float] = value["before"]
            return before
    return measure(base()[0], task.tests, task.tuning_views(shots, 1, seed))


def _is_of_these_models(value: Mapping[str, Any] | None) -> bool:
    """Say whether something was measured of the models that ship now."""
    return value is not None and value.get("models") == digests()


def _tuned(task: Task, choice: Choice, shots: int, seed: int, *, stops_early: bool) -> dict[str, Any]:
    options = replace(TuningOptions.for_method(choice.method, shots), seed=seed, **choice.options)
    if not stops_early:
        options = replace(options, num_folds=0, num_checks=1, unchecked_share=1.0)
    segmenter, references = base()[1], task.tuning_views(shots, 1, seed)
    adapted = adapt(base()[0], choice.spec or default_spec(choice.method), seed=seed)
    untuned = measure_marked(adapted, references)
    with _patched(choice.constants):
        began, cpu = time.monotonic(), time.process_time()
        examples = build_examples(task.tuning_views(shots, options.num_views, seed), [1], segmenter)
        result = tune(adapted, examples, segmenter, options)
        seconds = {"seconds": time.monotonic() - began, "cpu_seconds": time.process_time() - cpu}
    return {
        "after": measure(adapted, task.tests, references),
        "fit": {kind: after - untuned[kind] for kind, after in measure_marked(adapted, references).items()},
        "best_step": result.chosen.step,
        "share": result.chosen.share,
        **{name: round(value, 1) for name, value in seconds.items()},
    }


@contextlib.contextmanager
def _patched(constants: Mapping[tuple[Any, str], Any]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for (module, name), value in constants.items():
            stack.enter_context(mock.patch.object(module, name, value))
        yield


def tables(found: Mapping[str, Any]) -> str:
    """Return the Markdown of all that was measured."""
    trials_or_ours = {k: v for k, v in found.items() if k.startswith("trials|") or _is_of_these_models(v)}
    rows = [(*key.split("|"), value) for key, value in trials_or_ours.items()]
    parts: list[str] = []
    for part, task_set, title in (
        ("choices", "development", "Ways to train, all steps, development tasks"),
        ("methods", "development", "Methods as shipped, with early stopping, development tasks"),
        ("methods", "technical", "Methods as shipped, with early stopping, technical tasks (verification)"),
        ("methods" + EARLIER, "technical", "Methods before the steeper loss, with early stopping, technical tasks"),
    ):
        chosen = [row for row in rows if row[0] == part and row[-1].get("set") == task_set]
        for shots in sorted({row[3] for row in chosen}, key=int, reverse=True):
            of_shots = [row for row in chosen if row[3] == shots]
            shared = _shared(of_shots)
            parts.append(_titled(f"{title}, {shots} shot{'s' if shots != '1' else ''}", shared, _table(shared)))
            if part == "methods":
                parts.append(_by_task([row for row in of_shots if row[1] == "e_peft"]))
    for part, when in (("longer", ""), ("longer" + EARLIER, " before the steeper loss")):
        if longer := [row for row in rows if row[0] == part]:
            title = f"More steps without early stopping{when}, technical tasks, 5 shots"
            parts.append(_titled(title, longer, _longer(_shared(longer))))
    trials = [row for row in rows if row[0] == "trials"]
    if trials:
        title = "On the way: gain of box / click / softmatch, five shots, all steps, seed 0"
        parts.append(f"**{title}**\n\n{_trials(trials)}")
    models = ", ".join(f"{name} {digest}" for name, digest in digests().items())
    parts.append(f"All but what was on the way: {models}.")
    return "\n\n".join(parts)


def _titled(title: str, rows: Sequence[tuple[Any, ...]], table: str) -> str:
    """Return a table below its title and the commits that it was measured of."""
    commits = sorted({row[-1]["commit"] for row in rows})
    return f"**{title}** (commit {', '.join(commits)})\n\n{table}"


def _longer(rows: Sequence[tuple[Any, ...]]) -> str:
    """Return a row for each method and number of steps: means by kind of prompt, by task, and paired differences."""
    rows = sorted(rows, key=lambda row: (row[2], row[4]))  # so that gains of two ways stand side by side
    tasks = list(dict.fromkeys(row[2] for row in rows))
    columns = ["steps", "the five themselves", *KINDS, "mean", *tasks, "against e_peft", f"against {STEPS[0]} steps"]
    lines = [f"| | {' | '.join(columns)} |", "|---" + "|--:" * len(columns) + "|"]
    of_name = {name: [row for row in rows if row[1] == name] for name in PARTS["longer"]}
    gains = {name: [_gain(row[-1]) for row in mine] for name, mine in of_name.items() if mine}
    for name, found in gains.items():
        method, steps = name.split()
        of_tasks = [[_gain(row[-1]) for row in of_name[name] if row[2] == task] for task in tasks]
        means = [*np.mean(found, axis=0), np.mean(found), *map(np.mean, of_tasks)]
        fits = [fmean(row[-1]["fit"].values()) for row in of_name[name] if "fit" in row[-1]]
        others = [f"e_peft {steps}", f"{method} {STEPS[0]}"]
        cells = [
            f"{fmean(fits):+.1f}" if fits else "",
            *(f"{value:+.1f}" for value in means),
            *("" if o == name or o not in gains else _against(gains[o], found) for o in others),
        ]
        lines.append(f"| {method} | {steps} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _trials(rows: Sequence[tuple[Any, ...]]) -> str:
    """Return a row for each trial and a column for each task; what was not tried stays empty."""
    tasks = sorted({row[2] for row in rows})
    cells = {
        (row[1], row[2]): " / ".join(f"{value:+.0f}" if abs(value) >= 0.5 else "0" for value in _gain(row[-1]))
        for row in rows
    }
    lines = ["| | " + " | ".join(tasks) + " |", "|---|" + "--:|" * len(tasks)]
    for label in sorted({row[1] for row in rows}, key=lambda label: (int(re.split(r"\D", label)[0]), label)):
        lines.append(f"| {label} | " + " | ".join(cells.get((label, task), "") for task in tasks) + " |")
    return "\n".join(lines)


def _shared(rows: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Return what was measured of every method alike, since means over different tasks say nothing."""
    by_method: dict[str, set[tuple[str, str]]] = {}
    for row in rows:
        by_method.setdefault(row[1], set()).add((row[2], row[4]))
    shared = set.intersection(*by_method.values())
    return [row for row in rows if (row[2], row[4]) in shared]


def _table(rows: Sequence[tuple[Any, ...]]) -> str:
    names = list(dict.fromkeys(row[1] for row in rows))
    ours = "e_peft" if "e_peft" in names else SHIPPED
    lines = [
        f"| | tasks x seeds | box | click | softmatch | mean | against {ours} | better | worse | logits | CPU s |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    rows = sorted(rows, key=lambda row: (row[2], row[4]))  # so that gains of two methods stand side by side
    gains = {name: [_gain(row[-1]) for row in rows if row[1] == name] for name in names}
    for name in sorted(names, key=lambda n: -float(np.mean(gains[n]))):
        mean, cells = np.mean(gains[name], axis=0), np.array(gains[name])
        cpu = np.mean([row[-1]["cpu_seconds"] for row in rows if row[1] == name])
        lines.append(
            f"| {name} | {len(cells)} | "
            + " | ".join(f"{value:+.1f}" for value in (*mean, mean.mean()))
            + f" | {_against(gains[ours], gains[name]) if ours in names and name != ours else ''}"
            + f" | {int((cells.mean(axis=1) > CLEARLY).sum())} | {int((cells.mean(axis=1) < -CLEARLY).sum())}"
            + f" | {_growth([row[-1] for row in rows if row[1] == name])} | {cpu:.0f} |"
        )
    return "\n".join(lines)


def _growth(found: Sequence[Mapping[str, Any]]) -> str:
    """Return how many times larger logits became, the geometric mean; empty where it was not looked at."""
    if not all("logit_size" in one["after"] and "logit_size" in one["before"] for one in found):
        return ""
    ratios = [one["after"]["logit_size"] / one["before"]["logit_size"] for one in found]
    return f"x {np.exp(np.mean(np.log(ratios))):.1f}"


def _against(reference: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> str:
    """Return the mean of paired differences with its standard error: rows are equal tasks and seeds, columns kinds."""
    difference = (np.array(other) - np.array(reference)).mean(axis=1)
    error = difference.std(ddof=1) / np.sqrt(len(difference)) if len(difference) > 1 else np.nan
    return f"{difference.mean():+.1f} ± {error:.1f}"


def _by_task(rows: Sequence[tuple[Any, ...]]) -> str:
    lines = ["| E-PEFT on | seeds | box | click | softmatch | steps |", "|---|--:|--:|--:|--:|--:|"]
    for task in dict.fromkeys(row[2] for row in rows):
        mine = [row[-1] for row in rows if row[2] == task]
        cells = (
            f"{np.mean([m['before'][k] for m in mine]):.1f} to {np.mean([m['after'][k] for m in mine]):.1f}"
            for k in KINDS
        )
        steps = ", ".join(str(m["best_step"]) for m in mine)
        lines.append(f"| {task} | {len(mine)} | {' | '.join(cells)} | {steps} |")
    return "\n".join(lines)


def _gain(found: Mapping[str, Any]) -> list[float]:
    return [found["after"][kind] - found["before"][kind] for kind in KINDS]


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def _write(path: Path, key: str, value: Mapping[str, Any]) -> None:
    """Add one measurement; read again before, since several may be at work on the same file."""
    content = _read(path) | {key: value}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1, sort_keys=True))
    temporary.replace(path)


if __name__ == "__main__":
    main()
