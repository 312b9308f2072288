"""From the scores of images to figures: means over seeds with their spread. Everything is a share, 0 to 1."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from vplab.evaluation.results import ClickKey, Results
from vplab.evaluation.run import steps_of
from vplab.evaluation.scores import NOT_LEARNED, ClassScore, ClickScore, ShotScore
from vplab.evaluation.splits import Splits

IOU, IMAGE_IOU, MIOU, BOUNDARY_F = "iou", "image_iou", "miou_with_background", "boundary_f"
MEASURES = {
    IOU: "foreground IoU, pooled over the images (mean over classes)",
    IMAGE_IOU: "foreground IoU of an image, mean over the images that show the class",
    MIOU: "IoU pooled over the images, mean over classes and background",
    BOUNDARY_F: "F-score of the outlines, mean over the images that show the class",
}


def summarize_shots(results: Results, splits: Splits, class_ids: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Return method to number of shots (as text, as in JSON) to figures; a seed counts when it is whole.

    Figures: each of ``MEASURES`` as mean, std (over seeds, n - 1; None of one seed) and the seeds' own; the same for
    each class; num_failed; seconds as information. Of a seed whose shots could not be learned nothing was measured; a
    reference of zero shots that nobody could use is a method's own fault and stays a zero.
    """
    found: dict[str, dict[str, Any]] = {}
    for method, num_shots in _in_order((s.method, s.num_shots) for s in results.shots.values()):
        seeds: dict[int, list[ShotScore]] = {}
        for seed in splits.shots:
            scores = [results.shots.get((method, num_shots, seed, name)) for name in splits.test]
            whole = [score for score in scores if score is not None]
            if len(whole) == len(splits.test):
                seeds[seed] = whole
        if not seeds:
            continue
        everything = [score for scores in seeds.values() for score in scores]
        num_seeds = len(seeds)
        if num_shots:
            seeds = {seed: scores for seed, scores in seeds.items() if not _is_unlearned(scores)}
        figures: dict[str, Any] = {
            measure: _over_seeds(seeds, lambda scores, measure=measure: _measure(scores, class_ids, measure))  # type: ignore[misc]
            for measure in MEASURES
        }
        figures["classes"] = {
            str(class_id): {
                measure: _over_seeds(seeds, lambda scores, i=class_id, measure=measure: _measure(scores, [i], measure))  # type: ignore[misc]
                for measure in (IOU, IMAGE_IOU, BOUNDARY_F)
            }
            for class_id in class_ids
        }
        figures["num_seeds"] = num_seeds
        figures["num_failed"] = sum(bool(score.error) for score in everything)
        figures["fit_s"] = _median(results.fit_s.get((method, num_shots, seed)) for seed in seeds)
        figures["image_s"] = _median(score.seconds for score in everything)
        found.setdefault(method, {})[str(num_shots)] = figures
    for method, by_number in found.items():
        matcher, plus, _ = method.partition("+")
        if plus and "0" in found.get(matcher, {}):  # without a shot there is nothing to tune
            found[method] = {"0": found[matcher]["0"], **by_number}
    return found


def summarize_clicks(results: Results, keys: Callable[[str, int, int], Sequence[ClickKey]]) -> dict[str, Any]:
    """Return method to step (``box`` or number of clicks) to figures over the objects, of methods that learn nothing.

    keys: method, number of shots and seed to what there is to mark; a method counts when all of it is there. The spread
    is the standard error of the mean over objects: nothing is drawn at random here.
    """
    found: dict[str, Any] = {}
    for method in dict.fromkeys(score.method for score in results.clicks.values() if not score.num_shots):
        marked = _marked(results, keys(method, 0, 0))
        if not marked:
            continue
        found[method] = {
            step: {
                IOU: _over_objects([_step(score, step).iou for score in marked]),
                BOUNDARY_F: _over_objects([_step(score, step).boundary_f for score in marked]),
            }
            for step in steps_of(True)
            if all(any(s.step == step for s in score.steps) for score in marked)
        }
        found[method]["num_objects"] = len(marked)
        found[method]["num_failed"] = sum(bool(score.error) for score in marked)
        names = dict.fromkeys(name for score in marked for name in score.seconds)
        found[method]["seconds"] = {name: _median(score.seconds.get(name) for score in marked) for name in names}
    return found


def summarize_learned_clicks(
    results: Results, keys: Callable[[str, int, int], Sequence[ClickKey]], seeds: Iterable[int]
) -> dict[str, Any]:
    """Return method to number of shots (as text) to step to figures; the spread is over seeds, of which each is whole.

    The figure of a seed is the mean over objects, as of methods that learn nothing.
    """
    found: dict[str, Any] = {}
    learned = _in_order((s.method, s.num_shots) for s in results.clicks.values() if s.num_shots)
    for method, num_shots in learned:
        by_seed = {seed: _marked(results, keys(method, num_shots, seed)) for seed in seeds}
        marked = {seed: scores for seed, scores in by_seed.items() if scores}
        if not marked:
            continue
        measured = {seed: scores for seed, scores in marked.items() if not _is_unlearned(scores)}
        figures: dict[str, Any] = {
            step: {
                name: _spread({seed: _mean_step(scores, step, name) for seed, scores in measured.items()})
                for name in (IOU, BOUNDARY_F)
            }
            for step in steps_of(True)
        }
        figures["num_objects"] = max(map(len, marked.values()))
        figures["num_seeds"] = len(marked)
        figures["num_failed"] = sum(bool(score.error) for scores in marked.values() for score in scores)
        found.setdefault(method, {})[str(num_shots)] = figures
    return found


def summarize_tunings(results: Results) -> dict[str, Any]:
    """Return method to its sizes and, by number of shots, what its jobs took: medians over seeds, in seconds."""
    found: dict[str, Any] = {}
    for tuning in results.tunings.values():
        sizes = {
            "num_parameters": tuning.num_parameters,
            "adapter_bytes": tuning.adapter_bytes,
            "version_bytes": tuning.version_bytes,
        }
        found.setdefault(tuning.method, {**sizes, "shots": {}})
    for method, num_shots in _in_order((t.method, t.num_shots) for t in results.tunings.values()):
        same = [t for t in results.tunings.values() if (t.method, t.num_shots) == (method, num_shots)]
        names = dict.fromkeys(name for tuning in same for name in tuning.metrics)
        found[method]["shots"][str(num_shots)] = {
            "num_jobs": len(same),
            "wall_s": _median(tuning.wall_s for tuning in same),
            **{name: _median(tuning.metrics.get(name) for tuning in same) for name in names},
        }
    return found


def list_unlearned(results: Results) -> list[dict[str, Any]]:
    """Return what could not be learned and why: method, num_shots, seeds, reason."""
    found: dict[tuple[str, int, str], set[int]] = {}
    scores: list[ShotScore | ClickScore] = [*results.shots.values(), *results.clicks.values()]
    for score in scores:
        if score.num_shots and score.error.startswith(NOT_LEARNED):
            key = (score.method, score.num_shots, score.error.removeprefix(NOT_LEARNED))
            found.setdefault(key, set()).add(score.seed)
    return [
        {"method": method, "num_shots": num_shots, "seeds": sorted(seeds), "reason": reason}
        for (method, num_shots, reason), seeds in found.items()
    ]


def image_scores(scores: Iterable[ShotScore]) -> list[tuple[float, ShotScore]]:
    """Return the mean IoU over the classes that each image shows, worst first; images without any are left out."""
    rated = []
    for score in scores:
        shown = [c.intersection / c.union for c in score.classes if c.class_id and c.truth]
        if shown:
            rated.append((float(np.mean(shown)), score))
    return sorted(rated, key=lambda pair: (pair[0], pair[1].image))


def _measure(scores: Sequence[ShotScore], class_ids: Sequence[int], measure: str) -> float | None:
    wanted = [*class_ids, 0] if measure == MIOU else list(class_ids)
    values = [_of_class([c for s in scores for c in s.classes if c.class_id == i], measure) for i in wanted]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _of_class(scores: Sequence[ClassScore], measure: str) -> float | None:
    if measure in (IOU, MIOU):
        union = sum(score.union for score in scores)
        return sum(score.intersection for score in scores) / union if union else None
    shown = [score for score in scores if score.truth]
    if measure == IMAGE_IOU:
        values = [score.intersection / score.union for score in shown]
    else:
        values = [score.boundary_f for score in shown if score.boundary_f is not None]
    return float(np.mean(values)) if values else None


def _over_seeds(
    seeds: dict[int, list[ShotScore]], measure: Callable[[list[ShotScore]], float | None]
) -> dict[str, Any]:
    return _spread({seed: measure(scores) for seed, scores in seeds.items()})


def _spread(values: dict[int, float | None]) -> dict[str, Any]:
    known = [value for value in values.values() if value is not None]
    return {
        "mean": round(float(np.mean(known)), 5) if known else None,
        "std": round(float(np.std(known, ddof=1)), 5) if len(known) > 1 else None,
        "seeds": {str(seed): None if value is None else round(value, 5) for seed, value in values.items()},
    }


def _is_unlearned(scores: Sequence[ShotScore] | Sequence[ClickScore]) -> bool:
    return any(score.error.startswith(NOT_LEARNED) for score in scores)


def _marked(results: Results, keys: Sequence[ClickKey]) -> list[ClickScore]:
    """Return the objects that were marked; none unless all are through."""
    scores = [results.clicks.get(key) for key in keys]
    whole = [score for score in scores if score is not None]
    return [score for score in whole if score.steps] if len(whole) == len(scores) else []


def _mean_step(scores: Sequence[ClickScore], step: str, name: str) -> float:
    found = [_step(score, step) for score in scores]
    return float(np.mean([score.iou if name == IOU else score.boundary_f for score in found]))


def _over_objects(values: Sequence[float]) -> dict[str, Any]:
    spread = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return {"mean": round(float(np.mean(values)), 5), "sem": None if spread is None else round(spread, 5)}


def _step(score: ClickScore, step: str) -> Any:
    return next(found for found in score.steps if found.step == step)


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(float(np.median(known)), 4) if known else None


def _in_order(pairs: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    """Methods as they were first measured, numbers of shots ascending."""
    unique = dict.fromkeys(pairs)
    methods = list(dict.fromkeys(method for method, _ in unique))
    return sorted(unique, key=lambda pair: (methods.index(pair[0]), pair[1]))
