"""The shipped models against what people use instead, on every image set below VPLAB_DATA, by ``vplab evaluate``.

``python tests/bench/accuracy.py --out OUT`` makes one folder for each set below OUT, each by the command that a user
would type; killed at any moment, the same command goes on. With ``--readme`` it writes the tables, and which goals are
met, between the ``accuracy`` marks of the README beside this file; ``--tables-only`` measures nothing. Of natural sets
only the images that no training step saw are measured.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from main_job import ROOT, write_between

HELD_OUT = ROOT / "services" / "vplab" / "training" / "foundation" / "held_out"
BUILTIN = ROOT / "services" / "vplab" / "registry" / "builtin"
FIGURES = Path(__file__).with_name("README.md")
METHODS = "softmatch,random_forest,unet,segmenter,grabcut,random_walker,plain_box"
OURS, FOREST, NANO = "softmatch", "random_forest", "segmenter"
RIVALS = ("grabcut", "random_walker", "plain_box")
MAX_ENCODE_MS, MAX_CLICK_MS = 100, 20
# What a random forest with five images, tried once, reached; pooled foreground IoU in per cent.
EARLIER_FOREST = {"neu_steel-2": 55, "nuclei_dsb": 42, "crackforest": 35, "cxr_covid-1": 24, "polypgen": 8}


@dataclass(frozen=True)
class Task:
    """One class of one image set."""

    name: str
    """Also the name of its folder of results."""
    thing: str
    options: tuple[str, ...] = ()
    is_natural: bool = False
    """Whether the models were trained on the other images of this set; only held-out images are measured then."""
    is_thin: bool = False
    """Whether the boundary score says more than the IoU."""

    @property
    def folder(self) -> str:
        """Name of the image set."""
        return self.name.partition("-")[0]

    @property
    def label(self) -> str:
        """Return what the tables call it."""
        return f"{self.folder}: {self.thing}"


def classes(folder: str, names: dict[int, str], *, thin: Sequence[int] = (), is_natural: bool = False) -> list[Task]:
    """Return a binary task for each class of a set."""
    return [
        Task(f"{folder}-{value}", name, ("--classes", str(value)), is_natural, value in thin)
        for value, name in names.items()
    ]


TASKS = (
    *classes("neu_steel", {1: "inclusion", 2: "patches", 3: "scratches"}, thin=(1, 3)),
    Task("crackforest", "crack", ("--binary",), is_thin=True),
    Task("polypgen", "polyp", ("--binary",)),
    *classes("cxr_covid", {1: "left lung", 2: "right lung", 3: "cardiomediastinum", 4: "airways"}, thin=(4,)),
    Task("nuclei_dsb", "nucleus", ("--binary",)),
    *classes("crop_weed", {1: "crop", 2: "weed"}),
    *classes("digital_rock", {0: "pore space", 1: "clay", 3: "heavy mineral"}),
    Task("ecssd", "salient object", ("--binary",), is_natural=True),
    *classes("camvid", {4: "road", 9: "car"}, is_natural=True),
    # A segmentation into parts without names: there is nothing to learn from shots, only objects to mark.
    Task("bsds500", "one segment of annotator 1", ("--segments", "--mask-suffix", "_a1"), is_natural=True),
)


def main() -> None:
    arguments = parse(measuring_parser(__doc__, METHODS, TASKS))
    failed = [] if arguments.tables_only else measure_all(chosen(arguments.tasks), arguments)
    found = read_results(arguments.out)
    if not found:
        raise SystemExit(f"there is no complete result below {arguments.out}")
    speed = read_speed(arguments.out, is_measured=not arguments.tables_only)
    text = "\n\n".join(
        (interactive_table(found), shots_table(found), thin_table(found), goals(found, speed), made_by(found))
    )
    (arguments.out / "accuracy.md").write_text(text + "\n")
    print(text)
    if arguments.readme:
        write_between(FIGURES, "accuracy", text)
    if failed:
        raise SystemExit(f"not measured: {', '.join(failed)}")


def measuring_parser(description: str | None, methods: str, tasks: Sequence[Task]) -> argparse.ArgumentParser:
    """Return what reads the options of a script that measures tasks."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("VPLAB_DATA", ROOT.parent / "shared" / "data"))
    )
    parser.add_argument("--tasks", nargs="*", default=[t.name for t in tasks], help="names, such as neu_steel-2")
    parser.add_argument("--methods", default=methods)
    parser.add_argument("--shots", default="0,1,5")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--max-test", type=int, default=32)
    parser.add_argument("--max-side", type=int, help="reduce larger images, for every method")
    parser.add_argument("--jobs", type=int, default=1, help="sets at a time; some methods use one core only")
    parser.add_argument("--tables-only", action="store_true", help="measure nothing")
    parser.add_argument("--readme", action="store_true", help="write the tables into the README")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Read the command line; a task that does not exist is refused."""
    arguments = parser.parse_args()
    unknown = set(arguments.tasks) - {t.name for t in TASKS}
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: none of {', '.join(t.name for t in TASKS)}")
    return arguments


def chosen(names: Sequence[str]) -> list[Task]:
    """Return the tasks of these names, in our order."""
    return [task for task in TASKS if task.name in names]


def measure_all(tasks: Sequence[Task], arguments: argparse.Namespace, *more: str) -> list[str]:
    """Measure the tasks, several at a time if wished; return the names of those that did not end well.

    more: further options of the command.
    """
    arguments.out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        ended = list(pool.map(lambda task: measure(task, arguments, *more), tasks))
    return [task.name for task, is_well in zip(tasks, ended, strict=True) if not is_well]


def measure(task: Task, arguments: argparse.Namespace, *more: str) -> bool:
    """Run the command for one task; say whether it ended well."""
    folder = arguments.data / task.folder
    if not folder.is_dir():
        print(f"{task.name}: no folder {folder}", file=sys.stderr)
        return False
    print(f"{task.name} ...", file=sys.stderr, flush=True)
    options = [*task.options, *more]
    if task.is_natural:
        options += ["--ids", str(HELD_OUT / f"{task.folder}.txt")]
    if arguments.max_side:
        options += ["--max-side", str(arguments.max_side)]
    command = [sys.executable, "-m", "vplab.cli.main", "evaluate", str(folder), "--out", str(arguments.out / task.name),
               "--methods", arguments.methods, "--shots", arguments.shots, "--seeds", str(arguments.seeds),
               "--max-test", str(arguments.max_test), *options]  # fmt: skip
    with (arguments.out / f"{task.name}.log").open("w") as log:
        # Progress bars of several commands cannot share a terminal.
        code = subprocess.run(command, stdout=log, stderr=log if arguments.jobs > 1 else None).returncode
    return code in (0, 1)  # 1: some images failed, which the table says


def read_results(out: Path) -> dict[Task, dict[str, Any]]:
    """Return what was measured, in the order of the tasks."""
    paths = {task: out / task.name / "results.json" for task in TASKS}
    found = {task: json.loads(path.read_text()) for task, path in paths.items() if path.exists()}
    return {task: results for task, results in found.items() if results["is_complete"]}


def read_speed(out: Path, *, is_measured: bool) -> dict[str, float] | None:
    """Return the median milliseconds of the shipped graphs on two threads of the CPU; kept for --tables-only."""
    path = out / "speed.json"
    if is_measured:
        # Here, not above: it brings torch along, which --tables-only does not need.
        from vplab.training.foundation.evaluation import ExportedPair, time_graphs

        speed = time_graphs(ExportedPair(BUILTIN, threads=2)) | {"load_average": os.getloadavg()[0]}
        path.write_text(json.dumps(speed) + "\n")
    return json.loads(path.read_text()) if path.exists() else None


def interactive_table(found: dict[Task, dict[str, Any]]) -> str:
    """Return the mean IoU of one object by a box and by five clicks."""
    names = ordered({name for results in found.values() for name in results["clicks"]})
    steps = [
        (step, [n for n in names if any(step in r["clicks"].get(n, {}) for r in found.values())])
        for step in ("box", "5")
    ]
    groups = [
        (f"{'box' if step == 'box' else f'{step} clicks'}", name, step_of(name, step))
        for step, having in steps
        for name in having
    ]
    rows = [(task.label, results) for task, results in found.items() if results["clicks"]]
    return "Mean IoU of one object of an image, marked by a box or by five clicks, %:\n\n" + table(rows, groups, found)


def shots_table(found: dict[Task, dict[str, Any]], measure: str = "iou", *, only_thin: bool = False) -> str:
    """Return the figures over shots."""
    names = ordered({name for results in found.values() for name in results["shots"]})
    numbers = sorted({n for results in found.values() for f in results["shots"].values() for n in f}, key=int)
    groups = [
        (f"{number} shot{'s' if number != '1' else ''}", name, shot_of(name, number, measure))
        for number in numbers
        for name in names
        if any(number in results["shots"].get(name, {}) for results in found.values())
    ]
    rows = [(t.label, results) for t, results in found.items() if results["shots"] and (t.is_thin or not only_thin)]
    title = "Foreground IoU, pooled over the tested images, %:\n\n" if measure == "iou" else ""
    return title + table(rows, groups, found)


def thin_table(found: dict[Task, dict[str, Any]]) -> str:
    """Return the boundary score of the sets with thin structures."""
    title = "Thin structures: F-score of the outlines within 0.75 % of the diagonal, %:\n\n"
    return title + shots_table(found, "boundary_f", only_thin=True)


Figure = Callable[[dict[str, Any]], dict[str, Any] | None]


def step_of(method: str, step: str) -> Figure:
    """Return what reads the IoU of an interactive method."""
    return lambda results: results["clicks"].get(method, {}).get(step, {}).get("iou")


def shot_of(method: str, number: str, measure: str = "iou") -> Figure:
    """Return what reads a figure of a method that learned from shots."""
    return lambda results: results["shots"].get(method, {}).get(number, {}).get(measure)


def table(rows: Sequence[tuple[str, dict[str, Any]]], columns: Sequence[tuple[str, str, Figure]], found: Any) -> str:
    """Return a table in Markdown; in each row the best of a group (box, five clicks, a number of shots) is bold."""
    if not rows or not columns:
        return "nothing measured"
    heads = [f"{group}: {title_of(name, found)}" for group, name, _ in columns]
    lines = [f"| images | {' | '.join(heads)} |", "|---|" + "--:|" * len(heads)]
    for label, results in rows:
        figures = [figure(results) for _, _, figure in columns]
        best: dict[str, float] = {}
        for (group, _, _), figure in zip(columns, figures, strict=True):
            if figure and figure["mean"] is not None:
                best[group] = max(best.get(group, 0.0), figure["mean"])
        cells = [cell(figure, best.get(group)) for (group, _, _), figure in zip(columns, figures, strict=True)]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(figure: dict[str, Any] | None, best: float | None) -> str:
    """Return a figure in per cent with its spread."""
    if not figure or figure["mean"] is None:
        return "-"
    spread = figure.get("std", figure.get("sem"))
    text = f"{100 * figure['mean']:.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}")
    return f"**{text}**" if figure["mean"] == best else text


def goals(found: dict[Task, dict[str, Any]], speed: dict[str, float] | None) -> str:
    """Return which goals are met, counted."""
    lines = ["Goals, counted by the script:", ""]
    for step, title in (("box", "a box"), ("5", "five clicks")):
        rivals = [n for n in RIVALS if step == "box" or n != "plain_box"]
        compared, missed = compare(found, step_of(NANO, step), {name: step_of(name, step) for name in rivals})
        if step == "5":  # clicks take longer than a box, so they have to beat the box that needs no model too
            again, box_missed = compare(found, step_of(NANO, step), {"plain_box": step_of("plain_box", "box")})
            compared, missed = max(compared, again), missed + box_missed
        lines.append(goal(f"{title} with nano above {', '.join(RIVALS)} on every set", compared, missed, 1.0))
    compared, missed = compare(found, shot_of(OURS, "1"), {FOREST: shot_of(FOREST, "1")})
    lines.append(
        goal(f"one-shot {OURS} above the one-shot {FOREST} on two thirds of the sets", compared, missed, 2 / 3)
    )
    compared, missed = compare(found, shot_of(OURS, "5"), {FOREST: shot_of(FOREST, "5")})
    lines.append(goal(f"five-shot {OURS} above the five-shot {FOREST}, no goal yet", compared, missed, None))
    for task, results in found.items():
        figure = shot_of(OURS, "5")(results)
        if task.name in EARLIER_FOREST and figure and figure["mean"] is not None:
            reached, bar = 100 * figure["mean"], EARLIER_FOREST[task.name]
            word = "met" if reached > bar else "**not met**"
            lines.append(
                f"- {word}: {task.label}, five shots: {reached:.1f} against {bar} of a random forest tried once"
            )
    for key, most, what in (("encode_ms", MAX_ENCODE_MS, "encoding"), ("decode_ms", MAX_CLICK_MS, "a click")):
        if speed is not None:
            word = "met" if speed[key] < most else "**not met**"
            busy = speed[key.replace("_ms", "_cpu_ms")]
            lines.append(
                f"- {word}: {what} takes {speed[key]:.1f} ms on 2 CPU threads, wanted below {most} ms ({busy:.1f} ms "
                f"of processor time over both; load average {speed.get('load_average', 0):.1f})"
            )
    return "\n".join(lines)


def compare(found: dict[Task, dict[str, Any]], ours: Figure, rivals: dict[str, Figure]) -> tuple[int, list[str]]:
    """Return on how many sets all were measured, and where somebody is as good as we are."""
    num_compared, missed = 0, []
    for task, results in found.items():
        mine = ours(results)
        theirs = {name: figure(results) for name, figure in rivals.items()}
        if not mine or mine["mean"] is None or not all(f and f["mean"] is not None for f in theirs.values()):
            continue
        num_compared += 1
        better = [name for name, figure in theirs.items() if figure and figure["mean"] >= mine["mean"]]
        if better:
            missed.append(f"{task.label} ({', '.join(better)})")
    return num_compared, missed


def goal(what: str, num_compared: int, missed: Sequence[str], share: float | None) -> str:
    """Return one line: met or not, the count, and where not."""
    if not num_compared:
        return f"- not measured: {what}"
    sets = len({name.rpartition(" (")[0] for name in missed})
    reached = num_compared - sets
    word = "for information" if share is None else "met" if reached >= share * num_compared else "**not met**"
    where = f"; not on {', '.join(missed)}" if missed else ""
    return f"- {word}: {what}: {reached} of {num_compared}{where}"


def title_of(method: str, found: dict[Task, dict[str, Any]]) -> str:
    """Return what a column is called: the segmenter by its artifact."""
    if method != NANO:
        return method
    models = [results["models"]["segmenter"]["name"] for results in found.values() if "segmenter" in results["models"]]
    return models[0].split("/")[1] if models else method


def ordered(names: set[str]) -> list[str]:
    """Return ours first, then the others as the default lists them, then the rest."""
    known = METHODS.split(",")
    return sorted(names, key=lambda name: (known.index(name) if name in known else len(known), name))


def made_by(found: dict[Task, dict[str, Any]]) -> str:
    """Return what the figures were made with."""
    models = sorted({f"{m['name']} ({m['digest'][:12]})" for r in found.values() for m in r["models"].values()})
    where = sorted({f"commit {r['commit']}, {r['machine']}" for r in found.values()})
    tests = sorted({r["num_test"] for r in found.values()})
    seeds = sorted({r["num_seeds"] for r in found.values()})
    learned = [r[kind] for r in found.values() for kind in ("shots", "tuned") if kind in r]
    failed = sum(f["num_failed"] for methods in learned for m in methods.values() for f in m.values())
    spans = [f"{v[0]}" if len(v) == 1 else f"{v[0]} to {v[-1]}" for v in (tests, seeds)]
    return (
        f"Made by {', '.join(models)}; {'; '.join(where)}. {spans[0]} tested images a set, the same for every method; "
        f"{spans[1]} choices of shots, ± is their standard deviation (of objects the standard error)."
        + (f" {failed} answers failed and count as empty." if failed else "")
    )


if __name__ == "__main__":
    main()
