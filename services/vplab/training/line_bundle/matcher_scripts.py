# ruff: noqa: F821  # what names an axis below is no name of Python
# mypy: ignore-errors
"""What each of ``MATCHERS`` computes, in onnxscript, which Python never runs: C classes, P patches, R rows, K centres.

The numbers are those of the numpy modules; ``matcher_graph`` says what the inputs are, and compares the two. Its graphs
are made by ``python -m vplab.training.line_bundle.matcher_scripts`` and kept, so that making a bundle needs no onnx.
"""

from pathlib import Path

import onnx
from onnxscript import BOOL, FLOAT, INT64, graph, script
from onnxscript import opset18 as op

from vplab.vision.matching.class_bank import SOFTNESS, TOP_PATCHES
from vplab.vision.matching.softmatch import BLOCK, TEMPERATURE


@script(default_opset=op)
def _to_centres(features, centres, centre_kind, kind):
    """Return (C, P): the cosine of every patch to the nearest centre of a kind, -1 where a class has none."""
    is_kind = op.Unsqueeze(centre_kind == kind, [1])
    cosines = op.MatMul(features, op.Transpose(centres, perm=[0, 2, 1]))
    return op.ReduceMax(op.Where(is_kind, cosines, -1.0), [2], keepdims=0)


@script(default_opset=op)
def _presence(foreground, background):
    """Return (C,): ``ClassBank.presence_score``."""
    num_best = op.Unsqueeze(TOP_PATCHES, [0])
    # -2 is below every cosine; as much of it is added as is taken, so that there always is enough.
    winners = op.Where(foreground > background, foreground, -2.0)
    best, _ = op.TopK(op.Pad(winners, op.Concat([0, 0, 0], num_best, axis=0), -2.0), num_best, axis=1)
    count = op.ReduceSum(op.Cast(best > -2.0, to=1), [1], keepdims=0)
    total = op.ReduceSum(op.Where(best > -2.0, best, 0.0), [1], keepdims=0)
    return op.Where(count > 0.0, total / op.Max(count, 1.0), -1.0)


@script(default_opset=op)
def _to_mean_row(features, rows, row_weight):
    """Return (C, P): the product of every patch with the weighted mean of a class's foreground rows."""
    weight = op.Max(row_weight, 0.0)
    share = op.Unsqueeze(weight / op.ReduceSum(weight, [1], keepdims=1), [1])
    return op.Squeeze(op.MatMul(features, op.Transpose(op.MatMul(share, rows), perm=[0, 2, 1])), [2])


@script(default_opset=op)
def _shared(features, rows, row_weight, centres, centre_kind):
    """Return what all matchers say alike, and what they say it from."""
    foreground = _to_centres(features, centres, centre_kind, 1.0)
    background = _to_centres(features, centres, centre_kind, 0.0)
    similarity = op.Sigmoid((foreground - background) / SOFTNESS)
    presence_score = _presence(foreground, background)
    mean_similarity = _to_mean_row(features, rows, row_weight)
    return foreground, background, similarity, presence_score, mean_similarity


@script(default_opset=op)
def _in_blocks(features):
    """Return (N, B, D), equal blocks of at most BLOCK patches, padded: their cosines with all rows fit into memory."""
    num_patches = op.Shape(features, start=0, end=1)
    num_blocks = (num_patches + BLOCK - 1) / BLOCK
    size = (num_patches + num_blocks - 1) / num_blocks
    padded = op.Pad(features, op.Concat([0, 0], num_blocks * size - num_patches, [0], axis=0))
    return op.Reshape(padded, op.Concat(num_blocks, size, [-1], axis=0))


@script(default_opset=op)
def _joined(blocks, features):
    """Return (C, P) of the blocks' (N, C, B)."""
    return op.Slice(op.Reshape(op.Transpose(blocks, perm=[1, 0, 2]), [0, -1]), [0], op.Shape(features, end=1), [1])


@script(default_opset=op)
def _log_sum_over_rows(features, rows, row_weight):
    """Return (C, P): the logarithm of the sum of exponentials of a patch's heated cosines to a class's rows."""
    heated = op.Transpose(rows, perm=[0, 2, 1]) / TEMPERATURE
    is_row = op.Unsqueeze(row_weight >= 0.0, [1])

    @graph()
    def of_block(block: FLOAT["B", "D"]) -> FLOAT["C", "B"]:
        odds = op.Exp(op.MatMul(block, heated))
        log_sums = op.Log(op.ReduceSum(op.Where(is_row, odds, 0.0), [2], keepdims=0))
        return log_sums

    return _joined(op.Scan(_in_blocks(features), body=of_block, num_scan_inputs=1), features)


@script(default_opset=op)
def _to_nearest_and_mean(features, rows, row_weight):
    """Return (C, P) twice: the cosine to the nearest foreground row, and the mean of those to the background rows."""
    across = op.Transpose(rows, perm=[0, 2, 1])
    is_foreground = op.Unsqueeze(row_weight > 0.0, [1])
    is_background = op.Cast(row_weight == 0.0, to=1)
    count = op.ReduceSum(is_background, [1], keepdims=1)
    share = op.Unsqueeze(is_background / op.Max(count, 1.0), [2])

    @graph()
    def of_block(block: FLOAT["B", "D"]) -> tuple[FLOAT["C", "B"], FLOAT["C", "B"]]:
        cosines = op.MatMul(block, across)
        nearest_row = op.ReduceMax(op.Where(is_foreground, cosines, -1.0), [2], keepdims=0)
        mean_row = op.Squeeze(op.MatMul(cosines, share), [2])
        return nearest_row, mean_row

    nearest, mean = op.Scan(_in_blocks(features), body=of_block, num_scan_inputs=1)
    return _joined(nearest, features), _joined(mean, features)


@script(default_opset=op)
def _stretch(values):
    """Return (C, P) brought to 0..1 in each class, 0 where all are equal."""
    low = op.ReduceMin(values, [1], keepdims=1)
    span = op.ReduceMax(values, [1], keepdims=1) - low
    return op.Where(span > 0.0, (values - low) / op.Where(span > 0.0, span, 1.0), 0.0)


@script(default_opset=op)
def softmatch(
    features: FLOAT["P", "D"],
    rows: FLOAT["C", "R", "D"],
    row_weight: FLOAT["C", "R"],
    centres: FLOAT["C", "K", "D"],
    centre_kind: FLOAT["C", "K"],
    min_relative_score: FLOAT,
    max_points: INT64,
) -> tuple[FLOAT["C", "P"], BOOL["C", "P"], FLOAT["C", "P"], FLOAT["C", "P"], FLOAT["C"], INT64["C"]]:
    foreground, background, similarity, presence_score, mean_similarity = _shared(
        features, rows, row_weight, centres, centre_kind
    )
    log_sum = _log_sum_over_rows(features, rows, row_weight)
    has_background = op.ReduceMin(op.Abs(row_weight), [1], keepdims=1) == 0.0
    log_score = 2.0 * mean_similarity / TEMPERATURE - op.Where(has_background, log_sum, 0.0)
    scores = op.Exp(log_score - op.ReduceMax(log_score, [1], keepdims=1))
    low = op.ReduceMin(scores, [1], keepdims=1)
    span = op.ReduceMax(scores, [1], keepdims=1) - low
    relative = op.Where(span > 0.0, (scores - low) / op.Where(span > 0.0, span, 1.0), 1.0)
    candidates = op.And(relative >= min_relative_score, foreground > background)
    num_points = op.Expand(max_points, op.Shape(presence_score))
    return scores, candidates, similarity, mean_similarity, presence_score, num_points


@script(default_opset=op)
def prototype(
    features: FLOAT["P", "D"],
    rows: FLOAT["C", "R", "D"],
    row_weight: FLOAT["C", "R"],
    centres: FLOAT["C", "K", "D"],
    centre_kind: FLOAT["C", "K"],
    min_relative_score: FLOAT,
    max_points: INT64,
) -> tuple[FLOAT["C", "P"], BOOL["C", "P"], FLOAT["C", "P"], FLOAT["C", "P"], FLOAT["C"], INT64["C"]]:
    foreground, background, similarity, presence_score, mean_similarity = _shared(
        features, rows, row_weight, centres, centre_kind
    )
    scores = foreground - background
    needed = min_relative_score * op.ReduceMax(scores, [1], keepdims=1)
    candidates = op.And(scores > 0.0, scores >= needed)
    num_points = op.Expand(max_points, op.Shape(presence_score))
    return scores, candidates, similarity, mean_similarity, presence_score, num_points


@script(default_opset=op)
def graph_prior(
    features: FLOAT["P", "D"],
    rows: FLOAT["C", "R", "D"],
    row_weight: FLOAT["C", "R"],
    centres: FLOAT["C", "K", "D"],
    centre_kind: FLOAT["C", "K"],
    min_relative_score: FLOAT,
    max_points: INT64,
) -> tuple[FLOAT["C", "P"], BOOL["C", "P"], FLOAT["C", "P"], FLOAT["C", "P"], FLOAT["C"], INT64["C"]]:
    _, _, similarity, presence_score, mean_similarity = _shared(features, rows, row_weight, centres, centre_kind)
    has_background = op.ReduceMin(op.Abs(row_weight), [1], keepdims=1) == 0.0
    nearest, mean = _to_nearest_and_mean(features, rows, row_weight)
    cross = _stretch(mean_similarity * nearest)
    to_background = _stretch(mean)
    scores = op.Where(op.And(has_background, to_background > cross), 0.0, cross)
    candidates = scores > 0.0
    wanted = op.Cast(op.ReduceSum(scores, [1], keepdims=0), to=7)
    num_points = op.Max(op.Min(wanted, max_points), 1)
    return scores, candidates, similarity, mean_similarity, presence_score, num_points


def write_graphs(folder: Path) -> None:
    """Write a graph for each matcher; equal scripts give equal bytes."""
    for matcher, function in {"softmatch": softmatch, "prototype": prototype, "graph": graph_prior}.items():
        model = function.to_model_proto()
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, folder / f"{matcher}.onnx")


if __name__ == "__main__":
    write_graphs(Path(__file__).parent / "matchers")
