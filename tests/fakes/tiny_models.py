"""An encoder and a segmenter of a few kilobytes with the graphs' real names, axes and types, for a 128-pixel input.

They mean something, so that tests can tell right from wrong: patch features follow the patches' mean colour, and the
decoder answers clicks with bumps, boxes with their inside and a mask input with itself.
"""

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from vplab.vision.specs import EncoderSpec, OutputSpec, Preprocessing, SegmenterSpec

INPUT_SIZE = 128
FEATURE_WIDTH = 16
EMBEDDING_SHAPE = (256, 8, 8)
LOW_RES = 32
OWN_REFERENCE = {"parity_passed": 1.0}
"""Metrics of graphs that were made by hand, or by a test that compares them itself: there is nothing else they must
agree with."""

ENCODER_SPEC = EncoderSpec(
    family="tiny",
    architecture="conv",
    preprocessing=Preprocessing(
        resize="longest_side", size=INPUT_SIZE, mean_rgb=(123.675, 116.28, 103.53), std_rgb=(58.395, 57.12, 57.375)
    ),
    outputs=(
        OutputSpec(name="image_embedding", role="image_embedding", shape=EMBEDDING_SHAPE, stride=16),
        OutputSpec(name="patch_features", role="patch_features", shape=(16, 16, FEATURE_WIDTH), stride=8),
    ),
)
SEGMENTER_SPEC = SegmenterSpec(
    family="tiny",
    architecture="bumps",
    input_size=INPUT_SIZE,
    embedding_shape=EMBEDDING_SHAPE,
    low_res_hw=(LOW_RES, LOW_RES),
)


def encoder_onnx(seed: int = 0) -> bytes:
    """Return an encoder graph: ``image`` (B, 3, 128, 128) to both outputs; seeds differ in weights."""
    random = np.random.default_rng(seed)
    graph = _Graph()
    for name, width, stride in (("embedding", EMBEDDING_SHAPE[0], 16), ("features", FEATURE_WIDTH, 8)):
        colour = random.normal(size=(width, 3, 1, 1)).repeat(stride, 2).repeat(stride, 3) / stride**2
        graph.constant(f"{name}_weight", colour.astype(np.float32))
        graph.constant(f"{name}_bias", random.normal(size=width).astype(np.float32) * 0.1)
    graph.add("Conv", "image embedding_weight embedding_bias", "image_embedding", strides=[16, 16])
    graph.add("Conv", "image features_weight features_bias", "grid", strides=[8, 8])
    graph.add("Transpose", "grid", "rows", perm=[0, 2, 3, 1])
    graph.add("LpNormalization", "rows", "patch_features", axis=-1, p=2)
    return graph.build(
        inputs={"image": ("B", 3, INPUT_SIZE, INPUT_SIZE)},
        outputs={"image_embedding": ("B", *EMBEDDING_SHAPE), "patch_features": ("B", 16, 16, FEATURE_WIDTH)},
    )


def decoder_onnx() -> bytes:
    """Return a decoder graph with the inputs and outputs of SAM's; P may be 0."""
    graph = _Graph()
    cells = np.arange(LOW_RES, dtype=np.float32) + 0.5
    graph.constant("grid_x", cells.reshape(1, 1, 1, LOW_RES))
    graph.constant("grid_y", cells.reshape(1, 1, LOW_RES, 1))
    _add_points(graph)
    _add_clicks(graph)
    _add_box(graph)
    _add_image_and_mask(graph)
    _add_planes(graph)
    return graph.build(
        inputs={
            "image_embedding": ("B", *EMBEDDING_SHAPE),
            "image_index": ("N",),
            "point_coords": ("N", "P", 2),
            "point_labels": ("N", "P"),
            "mask_input": ("N", 1, LOW_RES, LOW_RES),
            "has_mask_input": ("N",),
        },
        outputs={"low_res_logits": ("N", 4, LOW_RES, LOW_RES), "iou_predictions": ("N", 4)},
        int64_inputs=("image_index",),
    )


def write_encoder(folder: Path, seed: int = 0) -> None:
    """Write the files of an encoder version."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.json").write_text(ENCODER_SPEC.model_dump_json())
    (folder / "encoder.onnx").write_bytes(encoder_onnx(seed))


def write_segmenter(folder: Path) -> None:
    """Write the files of a segmenter version."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.json").write_text(SEGMENTER_SPEC.model_dump_json())
    (folder / "decoder.onnx").write_bytes(decoder_onnx())


def write_adapter(folder: Path, shift: float) -> None:
    """Write the files of an adapter version that serving reads: the decoder with ``shift`` merged into its weights."""
    write_segmenter(folder)
    model = onnx.load_from_string((folder / "decoder.onnx").read_bytes())
    (offsets,) = (tensor for tensor in model.graph.initializer if tensor.name == "offsets")
    offsets.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(offsets) + np.float32(shift), "offsets"))
    (folder / "decoder.onnx").write_bytes(model.SerializeToString())
    (folder / "adapter.json").write_text('{"method": "shift"}')
    (folder / "adapter.safetensors").write_bytes(np.float32(shift).tobytes())


class _Graph:
    """Collects nodes and constants; names are separated by spaces, and "-" stands for an input left out."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, operation: str, inputs: str, outputs: str, **attributes: object) -> None:
        names = ["" if name == "-" else name for name in inputs.split()]
        self.nodes.append(helper.make_node(operation, names, outputs.split(), **attributes))

    def constant(self, name: str, value: NDArray[np.generic]) -> None:
        self.constants.append(numpy_helper.from_array(value, name))

    def build(
        self,
        inputs: dict[str, tuple[int | str, ...]],
        outputs: dict[str, tuple[int | str, ...]],
        int64_inputs: tuple[str, ...] = (),
    ) -> bytes:
        def value(name: str, shape: tuple[int | str, ...]) -> onnx.ValueInfoProto:
            kind = TensorProto.INT64 if name in int64_inputs else TensorProto.FLOAT
            return helper.make_tensor_value_info(name, kind, shape)

        graph = helper.make_graph(
            self.nodes,
            "tiny",
            [value(*item) for item in inputs.items()],
            [value(*item) for item in outputs.items()],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString())


def _add_points(graph: _Graph) -> None:
    """Points in cells of the low-resolution grid, with one padding point in front, so that P = 0 needs no case."""
    for name, value in {
        "cells_per_pixel": LOW_RES / INPUT_SIZE,
        "one": 1.0,
        "zero": 0.0,
        "two": 2.0,
        "three": 3.0,
    }.items():
        graph.constant(name, np.array(value, dtype=np.float32))
    graph.constant("axis_1", np.array([1], dtype=np.int64))
    graph.constant("axes_2_3", np.array([2, 3], dtype=np.int64))
    graph.constant("padding_point", np.zeros((1, 1, 2), dtype=np.float32))
    graph.constant("minus_one", np.full((1, 1), -1, dtype=np.float32))
    graph.constant("axes_1_2", np.array([1, 2], dtype=np.int64))
    graph.add("Unsqueeze", "has_mask_input axis_1", "n_by_1")
    graph.add("Mul", "n_by_1 zero", "n_zeros")
    graph.add("Add", "n_zeros minus_one", "padding_label")
    graph.add("Unsqueeze", "has_mask_input axes_1_2", "n_by_1_by_1")
    graph.add("Mul", "n_by_1_by_1 padding_point", "padding_coords")
    graph.add("Concat", "padding_coords point_coords", "coords", axis=1)
    graph.add("Concat", "padding_label point_labels", "labels", axis=1)
    graph.add("Mul", "coords cells_per_pixel", "cell_coords")
    graph.add("Split", "cell_coords", "xs ys", axis=2, num_outputs=2)
    graph.constant("axis_3", np.array([3], dtype=np.int64))
    graph.add("Unsqueeze", "xs axis_3", "point_x")  # (N, P, 1, 1)
    graph.add("Unsqueeze", "ys axis_3", "point_y")
    graph.add("Unsqueeze", "labels axes_2_3", "point_label")
    for name, label in (("is_background", "zero"), ("is_foreground", "one"), ("is_min", "two"), ("is_max", "three")):
        graph.add("Equal", f"point_label {label}", f"{name}_bool")
        graph.add("Cast", f"{name}_bool", name, to=TensorProto.FLOAT)


def _add_clicks(graph: _Graph) -> None:
    """Sum of bumps with a standard deviation of three cells, background ones negative: (N, LOW_RES, LOW_RES)."""
    graph.constant("minus_half_precision", np.array(-1 / (2 * 3.0**2), dtype=np.float32))
    graph.add("Sub", "grid_x point_x", "dx")
    graph.add("Sub", "grid_y point_y", "dy")
    graph.add("Mul", "dx dx", "dx2")
    graph.add("Mul", "dy dy", "dy2")
    graph.add("Add", "dx2 dy2", "distance2")
    graph.add("Mul", "distance2 minus_half_precision", "exponent")
    graph.add("Exp", "exponent", "bump")
    graph.add("Sub", "is_foreground is_background", "sign")
    graph.add("Mul", "bump sign", "signed_bump")
    graph.add("ReduceSum", "signed_bump axis_1", "clicks", keepdims=0)


def _add_box(graph: _Graph) -> None:
    """+1 inside the box, -1 outside, 0 without a box: (N, LOW_RES, LOW_RES)."""
    for axis in "xy":
        graph.add("Sign", f"d{axis}", f"sign_{axis}")
        graph.add("Neg", f"sign_{axis}", f"minus_sign_{axis}")
    for corner, left, right in (("min", "sign_x", "sign_y"), ("max", "minus_sign_x", "minus_sign_y")):
        graph.add("Min", f"{left} {right}", f"{corner}_side")
        graph.add("Mul", f"{corner}_side is_{corner}", f"{corner}_term")
        graph.add("ReduceSum", f"{corner}_term axis_1", f"{corner}_inside", keepdims=0)
    graph.add("Min", "min_inside max_inside", "box")


def _add_image_and_mask(graph: _Graph) -> None:
    graph.constant("image_scale", np.array(0.1, dtype=np.float32))
    graph.constant("scales", np.array([1, 1, 4, 4], dtype=np.float32))
    graph.add("Gather", "image_embedding image_index", "prompt_embedding", axis=0)
    graph.add("ReduceMean", "prompt_embedding axis_1", "mean_embedding", keepdims=1)
    graph.add("Resize", "mean_embedding - scales", "coarse_image", mode="nearest")
    graph.add("Squeeze", "coarse_image axis_1", "image_cells")
    graph.add("Mul", "image_cells image_scale", "image_term")
    graph.add("Squeeze", "mask_input axis_1", "mask_cells")
    graph.add("Mul", "mask_cells n_by_1_by_1", "mask_term")


def _add_planes(graph: _Graph) -> None:
    """Four planes that differ by an offset, and as predicted IoU how sure each plane is of itself, in 0.5..1."""
    graph.constant("gain", np.array(8.0, dtype=np.float32))
    graph.constant("offsets", np.array([-1.0, -0.5, -1.0, -1.5], dtype=np.float32).reshape(1, 4, 1, 1))
    graph.add("Mul", "clicks gain", "click_term")
    graph.add("Mul", "box gain", "box_term")
    graph.add("Sum", "click_term box_term mask_term image_term", "logits")
    graph.add("Unsqueeze", "logits axis_1", "logits_plane")
    graph.add("Add", "logits_plane offsets", "low_res_logits")
    graph.add("Abs", "low_res_logits", "certainty")
    graph.add("Sigmoid", "certainty", "confidence")
    graph.add("ReduceMean", "confidence axes_2_3", "iou_predictions", keepdims=0)
