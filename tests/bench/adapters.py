"""Tables 1, 2 and 3 of the VP Lab paper on the technical image sets below VPLAB_DATA, by ``vplab evaluate``.

``python tests/bench/adapters.py --out OUT`` makes one folder for each set below OUT, each by the command that a user
would type; killed at any moment, the same command goes on. ``--comparators`` names the OUT of an ``accuracy.py`` of the
same images, splits and seeds, whose random forest and U-Net the matcher is compared with; it may be OUT itself, where
``--methods`` had them too. With ``--readme`` the means over the sets, and which goals are met, go between the README's
marks: ``adapters`` for objects marked by box and click, ``matching`` for the matcher; OUT/adapters.md has all sets.
What was measured stays in ``adapters.json`` beside this file then, and methods that were measured of the same images
before, and not now, are shown with what they reached, and the commit that they had.
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from accuracy import (
    FIGURES,
    TASKS,
    Figure,
    Task,
    cell,
    chosen,
    goal,
    made_by,
    measure_all,
    measuring_parser,
    parse,
    shot_of,
)
from main_job import ROOT, write_between

from vplab.evaluation.tables import WITHOUT_EARLY, lacks_early_feature

OURS = "e-peft"
PARTS = ("lora", "ia3", "prompt-tokens", "image-context")
LARGE = ("hq-token", "full-decoder")
MATCHER = "softmatch"
TUNED = f"{MATCHER}+{OURS}"
RIVALS = ("random_forest", "unet")
METHODS = ",".join((OURS, *PARTS, *LARGE, MATCHER, TUNED))
BASE = "segmenter"
STEPS = {"box": "box", "1": "1 click"}
FEW, ONE = "5", "1"
WANTED_GAIN = 0.5
KEPT = Path(__file__).with_name("adapters.json")
_BY_METHOD = ("shots", "clicks", "tuned", "tunings")
_KEPT = (*_BY_METHOD, "settings", "num_seeds", "models", "commits")
# Settings that say which models were measured; a random forest is the same beside any of them.
_OF_MODELS = ("segmenter", "encoder", "tuning_steps")

Results = dict[Task, dict[str, Any]]
Value = Callable[[dict[str, Any]], float | None]


def main() -> None:
    technical = [task for task in TASKS if not task.is_natural]
    parser = measuring_parser(__doc__, METHODS, technical)
    parser.add_argument("--comparators", type=Path, help="the OUT of accuracy.py, with equal settings")
    parser.add_argument("--tuning-steps", type=int, help="of every tuning, for a quick look; else each method's own")
    arguments = parse(parser)
    # Sets have services of their own, which need not export the same graphs again, and nobody waits beside them.
    os.environ.setdefault("VPLAB_TRAINING_GRAPH_DIR", str((arguments.out / "graphs").absolute()))
    os.environ.setdefault("VPLAB_TRAINING_WORKER_NICENESS", "0")
    more = ["--tuning-steps", str(arguments.tuning_steps)] if arguments.tuning_steps else []
    tasks = chosen(arguments.tasks)
    failed = [] if arguments.tables_only else measure_all(tasks, arguments, *more)
    found = read(arguments.out, tasks)
    if not found:
        raise SystemExit(f"there is no complete result below {arguments.out}")
    beside = read(arguments.comparators, list(found)) if arguments.comparators else {}
    refuse_unequal(found, beside)
    found = with_kept(with_rivals(found, beside), read_kept())
    beside = {task: results for task, results in found.items() if any(rival in results["shots"] for rival in RIVALS)}
    # Which of the tables an OUT has depends on its methods; each is written where its own marks are.
    by_mark = {
        "adapters": (marked_table(found), marked_goals(found), jobs(found)),
        "matching": (matching_table(found), matching_goals(found, beside)),
    }
    texts = {
        mark: "\n\n".join([*(part for part in parts if part), made_by(found)])
        for mark, parts in by_mark.items()
        if parts[0]
    }
    each = [each_set(found, number, step) for number in numbers(found) for step in STEPS]
    every = "\n\n".join([*texts.values(), *each])
    (arguments.out / "adapters.md").write_text(every + "\n")
    print(every)
    if arguments.readme:
        keep(found)
        summaries = {"adapters": marked_summary(found), "matching": matching_summary(found)}
        for mark, text in texts.items():
            write_between(FIGURES, mark, text)
            write_between(ROOT / "README.md", mark, summaries[mark])
    if failed:
        raise SystemExit(f"not measured: {', '.join(failed)}")


def read(out: Path, tasks: Sequence[Task]) -> Results:
    """Return what was measured of these tasks, in their order."""
    paths = {task: out / task.name / "results.json" for task in tasks}
    found = {task: json.loads(path.read_text()) for task, path in paths.items() if path.exists()}
    return {task: results for task, results in found.items() if results["is_complete"]}


def refuse_unequal(found: Results, beside: Results) -> None:
    """End where comparators were measured on other images, splits or seeds."""
    for task, results in beside.items():
        ours, theirs = _images_of(found[task]), _images_of(results)
        for name in ours | theirs:
            if ours.get(name) != theirs.get(name):
                raise SystemExit(
                    f"{task.name}: the comparators were measured with another {name} ({theirs.get(name)}, "
                    f"here {ours.get(name)})"
                )


def read_kept() -> Results:
    """Return what was measured before, by task."""
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    return {task: kept[task.name] for task in TASKS if task.name in kept}


def with_kept(found: Results, kept: Results) -> Results:
    """Return results with methods that were measured before, of the same images, splits and seeds, and not now.

    Of other models than now only the comparators stay, which use none.
    """
    return {task: _joined(results, kept.get(task)) for task, results in found.items()}


def _joined(results: dict[str, Any], before: dict[str, Any] | None) -> dict[str, Any]:
    commits = {name: results["commit"] for name in _methods(results)} | results.get("commits", {})
    if before is not None and _images_of(before) == _images_of(results):
        stays = set(_methods(before)) - set(commits)
        if before["models"] != results["models"]:
            stays &= set(RIVALS)
        commits |= {name: before["commits"][name] for name in sorted(stays)}
        parts = {
            part: {name: figures for name, figures in before[part].items() if name in stays} | results[part]
            for part in _BY_METHOD
        }
        results = results | parts
    by_commit: dict[str, list[str]] = {}
    for name, commit in commits.items():
        by_commit.setdefault(commit, []).append(name)
    told = [commit if len(by_commit) == 1 else f"{commit} ({', '.join(names)})" for commit, names in by_commit.items()]
    return results | {"commits": commits, "commit": ", ".join(told)}


def _methods(results: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(name for part in _BY_METHOD for name in results[part]))


def _images_of(results: dict[str, Any]) -> dict[str, Any]:
    """Return what says which images, splits and seeds were measured."""
    settings = {name: value for name, value in results["settings"].items() if name not in _OF_MODELS}
    return settings | {"seeds": results["num_seeds"]}


def keep(found: Results) -> None:
    """Have the means of every task stay beside this file, and nothing of the machine's folders."""
    kept = {task.name: results for task, results in (read_kept() | found).items()}
    means = {name: {key: _means(results[key]) for key in _KEPT} for name, results in kept.items()}
    KEPT.write_text(json.dumps(means, indent=1, sort_keys=True) + "\n")


def _means(value: Any) -> Any:
    """Return figures without those of each class and seed."""
    if not isinstance(value, dict):
        return value
    return {key: _means(inner) for key, inner in value.items() if key not in ("classes", "seeds")}


def numbers(found: Results) -> list[str]:
    """Return every number of shots that something was tuned on; ``all`` where it is all images of its set."""
    known = {number_of(results, n) for results in found.values() for by in results["tuned"].values() for n in by}
    return sorted(known, key=lambda number: (number == "all", int(number) if number != "all" else 0))


def number_of(results: dict[str, Any], number: str) -> str:
    """Return what a number of shots is called over sets of different sizes."""
    return "all" if int(number) == results["num_all"] else number


def titled(number: str) -> str:
    """Return a number of shots in words."""
    return "all images" if number == "all" else f"{number} shot{'' if number == '1' else 's'}"


def marked(method: str, number: str, step: str) -> Figure:
    """Return what reads the IoU of objects marked after tuning; of the segmenter, before."""

    def read_figure(results: dict[str, Any]) -> dict[str, Any] | None:
        if method == BASE:
            base = results["clicks"].get(BASE, {}).get(step, {}).get("iou")
            return base and {"mean": base["mean"], "std": None}
        by_number = results["tuned"].get(method, {})
        key = str(results["num_all"]) if number == "all" else number
        found: dict[str, Any] | None = by_number.get(key, {}).get(step, {}).get("iou")
        return found

    return read_figure


def mean_of(figure: Figure) -> Value:
    """Return what reads the mean of a figure, None where it was not measured."""

    def read_mean(results: dict[str, Any]) -> float | None:
        return (figure(results) or {}).get("mean")

    return read_mean


def both_steps(method: str, number: str) -> Value:
    """Return what reads the mean of box and one click."""

    def read_value(results: dict[str, Any]) -> float | None:
        values = [mean_of(marked(method, number, step))(results) for step in STEPS]
        known = [value for value in values if value is not None]
        return fmean(known) if len(known) == len(STEPS) else None

    return read_value


def over_sets(found: Results, *values: Value) -> tuple[list[float], int]:
    """Return the mean of each value over the sets that have all of them, and how many those are."""
    rows = [[value(results) for value in values] for results in found.values()]
    whole = [[value for value in row if value is not None] for row in rows if None not in row]
    return ([fmean(column) for column in zip(*whole, strict=True)] if whole else []), len(whole)


def methods_of(found: Results) -> list[str]:
    """Return the segmenter and every tuned method, as the default lists them."""
    known = METHODS.split(",")
    names = {name for results in found.values() for name in results["tuned"]}
    return [BASE, *sorted(names, key=lambda name: (known.index(name) if name in known else len(known), name))]


def marked_table(found: Results) -> str:
    """Return tables 1 and 2: sizes, and the mean over the sets of objects marked after tuning."""
    names = methods_of(found)
    columns = [(number, step) for number in numbers(found) for step in STEPS]
    if not columns:
        return ""
    heads = [f"{titled(number)}: {STEPS[step]}" for number, step in columns]
    # One selection of sets for all of a column: means over different sets cannot be compared.
    means = [column_of(found, names, *column) for column in columns]
    lines = [
        "Mean IoU of one object of an image, marked by a box or one click, after tuning; mean over the sets, %:",
        "",
        f"| method | parameters | stored, kB | {' | '.join(heads)} |",
        "|---|" + "--:|" * (2 + len(heads)),
    ]
    for name in names:
        sizes = [r["tunings"][name] for r in found.values() if name in r["tunings"]]
        size = f"{sizes[0]['num_parameters']:,} | {sizes[0]['adapter_bytes'] / 1000:,.0f}" if sizes else "0 | 0"
        cells = [percent(values.get(name), max(values.values(), default=None)) for values, _ in means]
        lines.append(f"| {'before tuning' if name == BASE else name} | {size} | {' | '.join(cells)} |")
    note = f" {WITHOUT_EARLY}." if any(lacks_early_feature(results) for results in found.values()) else ""
    lines += ["", f"Sets in each column: {', '.join(str(count) for _, count in means)}.{note}"]
    return "\n".join(lines)


def column_of(found: Results, names: Sequence[str], number: str, step: str) -> tuple[dict[str, float], int]:
    """Return the mean of each method measured so, over the sets that have all of them, and how many sets those are."""
    here = [name for name in names if any(marked(name, number, step)(results) for results in found.values())]
    values, count = over_sets(found, *(mean_of(marked(name, number, step)) for name in here))
    return dict(zip(here, values, strict=False)), count


def percent(value: float | None, best: float | None) -> str:
    """Return a mean in per cent, the best in bold."""
    if value is None:
        return "-"
    return f"**{100 * value:.1f}**" if value == best else f"{100 * value:.1f}"


def marked_summary(found: Results) -> str:
    """Return what our own method brings to objects marked after tuning, in a few lines."""
    shown = [number for number in numbers(found) if any(marked(OURS, number, "box")(r) for r in found.values())]
    means = {
        step: over_sets(found, *(mean_of(marked(*which, step)) for which in ((BASE, ""), *((OURS, n) for n in shown))))
        for step in STEPS
    }
    count = next(iter(means.values()))[1]
    lines = [f"| mean IoU over {count} sets, % | {' | '.join(['before', *map(titled, shown)])} |"]
    lines.append("|---|" + "--:|" * (1 + len(shown)))
    lines += [
        f"| {STEPS[step]} | {' | '.join(f'{100 * v:.1f}' for v in values)} |" for step, (values, _) in means.items()
    ]
    return "\n".join(lines)


def with_rivals(found: Results, beside: Results) -> Results:
    """Return results with what the comparators reached on the same images."""
    joined = {}
    for task, results in found.items():
        rivals = {n: f for n, f in beside[task]["shots"].items() if n in RIVALS} if task in beside else {}
        own = dict.fromkeys(_methods(results), results["commit"])
        commits = dict.fromkeys(rivals, beside[task]["commit"]) | own if rivals else own
        joined[task] = results | {"shots": rivals | results["shots"], "commits": commits}
    return joined


def matching_table(found: Results) -> str:
    """Return table 3: a matcher alone and tuned over shots, by set, and the relative gain of the mean over the sets."""
    shown = [n for n in (MATCHER, TUNED, *RIVALS) if any(n in results["shots"] for results in found.values())]
    if MATCHER not in shown:
        return ""
    shots = sorted({n for r in found.values() for name in shown for n in r["shots"].get(name, {})}, key=int)
    # Without a validated image the matcher has what it proposed itself; the others have nothing to learn from.
    columns = [(name, n) for n in shots for name in shown if n != "0" or name == MATCHER]
    columns = [c for c in columns if any(shot_of(*c)(results) for results in found.values())]
    lines = [
        "Foreground IoU of matching, pooled over the tested images, by validated images learned from, %:",
        "",
        f"| images | {' | '.join(f'{n}: {name}' for name, n in columns)} |",
        "|---|" + "--:|" * len(columns),
    ]
    for task, results in found.items():
        figures = [shot_of(*column)(results) for column in columns]
        best = max((f["mean"] for f in figures if f and f["mean"] is not None), default=None)
        lines.append(f"| {task.label} | {' | '.join(cell(figure, best) for figure in figures)} |")
    before = mean_of(shot_of(MATCHER, "0"))
    averages, gains = [], []
    for column in columns:
        values, _ = over_sets(found, before, mean_of(shot_of(*column)))
        averages.append(f"{100 * values[1]:.1f}" if values else "-")
        gains.append(f"{100 * (values[1] / values[0] - 1):+.0f} %" if values and values[0] else "-")
    lines.append(f"| average | {' | '.join(averages)} |")
    lines.append(f"| gain over 0 shots | {' | '.join(gains)} |")
    return "\n".join(lines)


def matching_summary(found: Results) -> str:
    """Return the means over the sets of what learns a class from validated images, in a few lines."""
    names = [n for n in (MATCHER, TUNED, *RIVALS) if any(shot_of(n, FEW)(results) for results in found.values())]
    figures = [mean_of(shot_of(MATCHER, "0")), *(mean_of(shot_of(name, FEW)) for name in names)]
    means, count = over_sets(found, *figures)
    lines = [f"| mean IoU over {count} sets, % | 0 shots | {FEW} shots |", "|---|--:|--:|"]
    for name, mean in zip(names, means[1:], strict=True):
        lines.append(f"| {name} | {f'{100 * means[0]:.1f}' if name == MATCHER else ''} | {100 * mean:.1f} |")
    return "\n".join(lines)


def each_set(found: Results, number: str, step: str) -> str:
    """Return the figures of every set after one number of shots."""
    names = methods_of(found)
    lines = [
        f"Mean IoU of one object, {STEPS[step]}, after {titled(number)}, by set, %:",
        "",
        f"| images | {' | '.join('before tuning' if name == BASE else name for name in names)} |",
        "|---|" + "--:|" * len(names),
    ]
    for task, results in found.items():
        figures = [marked(name, number, step)(results) for name in names]
        best = max((f["mean"] for f in figures if f and f["mean"] is not None), default=None)
        lines.append(f"| {task.label} | {' | '.join(cell(figure, best) for figure in figures)} |")
    return "\n".join(lines)


def marked_goals(found: Results) -> str:
    """Return which goals of objects marked after tuning are met."""
    lines = ["Goals, counted by the script:", ""]
    for rival in (*PARTS, *LARGE):
        lines.append(mean_goal(found, f"{OURS} above {rival} at five shots", rival, FEW))
    lines.append(mean_goal(found, f"{OURS} above hq-token at one shot", "hq-token", ONE))
    return "\n".join(lines)


def matching_goals(found: Results, beside: Results) -> str:
    """Return which goals of the matcher are met. beside: who else learned from the same images."""
    best = TUNED if any(TUNED in results["shots"] for results in found.values()) else MATCHER
    lines = ["Goals, counted by the script:", "", gain_goal(found, best)]
    for rival in RIVALS:
        ours, theirs = mean_of(shot_of(best, FEW)), mean_of(shot_of(rival, FEW))
        pairs = {task: (ours(found[task]), theirs(results)) for task, results in beside.items() if task in found}
        known = {task: pair for task, pair in pairs.items() if None not in pair}
        if not known:
            continue
        missed = [f"{task.label} ({rival})" for task, (mine, other) in known.items() if mine <= other]  # type: ignore[operator]
        # "Most" is more than half.
        lines.append(goal(f"five-shot {best} above the five-shot {rival} on most sets", len(known), missed, 0.5 + 1e-9))
    return "\n".join(lines)


def mean_goal(found: Results, what: str, rival: str, number: str) -> str:
    """Return one line: whether the mean over the sets, of box and one click, is above a rival's."""
    values, count = over_sets(found, both_steps(OURS, number), both_steps(rival, number))
    if not values:
        return f"- not measured: {what}"
    word = "met" if values[0] > values[1] else "**not met**"
    error = f" ± {100 * error:.1f}" if (error := error_over_sets(found, rival, number)) is not None else ""
    parts = []
    for step, title in STEPS.items():
        (mine, other), _ = over_sets(found, *(mean_of(marked(name, number, step)) for name in (OURS, rival)))
        parts.append(f"{title} {100 * mine:.1f} and {100 * other:.1f}")
    return (
        f"- {word}: {what}, mean of box and one click over {count} sets: {100 * values[0]:.1f} against "
        f"{100 * values[1]:.1f}, {100 * (values[0] - values[1]):+.1f}{error} ({', '.join(parts)})"
    )


def error_over_sets(found: Results, rival: str, number: str) -> float | None:
    """Return the standard error over the sets of how far ours is ahead of a rival; None for less than two sets."""
    pairs = [(both_steps(OURS, number)(results), both_steps(rival, number)(results)) for results in found.values()]
    ahead = [mine - other for mine, other in pairs if mine is not None and other is not None]
    return stdev(ahead) / len(ahead) ** 0.5 if len(ahead) > 1 else None


def gain_goal(found: Results, method: str) -> str:
    """Return one line: what five images give the matcher, relative to none, on average as the paper averages."""
    what = f"five-shot {method} gains {100 * WANTED_GAIN:.0f} % over no shot"
    before, after = mean_of(shot_of(MATCHER, "0")), mean_of(shot_of(method, FEW))
    values, count = over_sets(found, before, after)
    if not values or not values[0]:
        return f"- not measured: {what}"
    gain = values[1] / values[0] - 1
    each = [(a / b - 1) for r in found.values() if (b := before(r)) and (a := after(r)) is not None]
    word = "met" if gain >= WANTED_GAIN else "**not met**"
    return (
        f"- {word}: {what} on average over {count} sets: {100 * values[0]:.1f} to {100 * values[1]:.1f}, "
        f"{100 * gain:+.0f} % (median of the sets' own gains {100 * median(each):+.0f} %)"
    )


def jobs(found: Results) -> str:
    """Return what a tuning job of ours took, by stage."""
    by_set = [r["tunings"][OURS]["shots"] for r in found.values() if OURS in r["tunings"]]
    lines = []
    for number in sorted({number for by in by_set for number in by}, key=int):
        took = [by[number] for by in by_set if number in by]
        stages = [name for name in took[0] if name.startswith("seconds_")]
        shown = ", ".join(f"{name.removeprefix('seconds_')} {median(t[name] for t in took):.1f}" for name in stages)
        lines.append(
            f"{number} image{'' if number == '1' else 's'}: {median(t['wall_s'] for t in took):.1f} s ({shown})"
        )
    return f"Median seconds of a job of {OURS}, from asking to published: {'; '.join(lines)}." if lines else ""


if __name__ == "__main__":
    main()
