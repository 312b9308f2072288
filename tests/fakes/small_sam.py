"""A segmenter with SAM's decoder on an 8 x 8 embedding, and an encoder of one convolution: a job takes seconds."""

import asyncio
import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from fakes.random_decoders import build_decoder
from fakes.segmentation_site import Site
from vplab.client.registry.values import Version
from vplab.vision.sam.onnx_decoder import decoder_to_onnx
from vplab.vision.specs import EncoderSpec, OutputSpec, Preprocessing, SegmenterSpec

ENCODER, SEGMENTER = "small-encoder", "small-segmenter"
GRID, STRIDE, WIDTH, FEATURES, EARLY = 8, 16, 256, 24, 12
SIDE = GRID * STRIDE

ENCODER_SPEC = EncoderSpec(
    family="small",
    architecture="conv",
    preprocessing=Preprocessing(
        resize="longest_side", size=SIDE, mean_rgb=(127.5, 127.5, 127.5), std_rgb=(127.5, 127.5, 127.5)
    ),
    outputs=(
        OutputSpec(name="image_embedding", role="image_embedding", shape=(WIDTH, GRID, GRID), stride=STRIDE),
        OutputSpec(name="patch_features", role="patch_features", shape=(GRID, GRID, FEATURES), stride=STRIDE),
    ),
)
EARLY_ENCODER_SPEC = ENCODER_SPEC.model_copy(
    update={
        "architecture": "conv-early",
        "outputs": (
            *ENCODER_SPEC.outputs,
            OutputSpec(name="early_features", role="early_features", shape=(EARLY, GRID, GRID), stride=STRIDE),
        ),
    }
)
"""Of the same encoder, whose graph then gives one more output."""
SEGMENTER_SPEC = SegmenterSpec(
    family="small",
    architecture="random",
    input_size=SIDE,
    embedding_shape=(WIDTH, GRID, GRID),
    low_res_hw=(4 * GRID, 4 * GRID),
)


@functools.cache
def decoder_onnx() -> bytes:
    """Return the decoder's graph, exported as every segmenter's is."""
    decoder = build_decoder(GRID, STRIDE)
    program = decoder_to_onnx(decoder.prompt_encoder, decoder.mask_decoder)
    return bytes(program.model_proto.SerializeToString())


def encoder_onnx(spec: EncoderSpec = ENCODER_SPEC) -> bytes:
    """Return a graph of one convolution over patches; the first channels, made unit vectors, are the features.

    spec: with early features, they are a convolution of their own.
    """
    random = np.random.default_rng(0)
    weights = random.normal(0, 0.05, (WIDTH, 3, STRIDE, STRIDE)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["image", "weights"], ["image_embedding"], strides=[STRIDE, STRIDE]),
        helper.make_node("Slice", ["image_embedding", "start", "end", "axis"], ["part"]),
        helper.make_node("Transpose", ["part"], ["moved"], perm=[0, 2, 3, 1]),
        helper.make_node("LpNormalization", ["moved"], ["patch_features"], axis=-1, p=2),
    ]
    constants = {"weights": weights, "start": np.array([0]), "end": np.array([FEATURES]), "axis": np.array([1])}
    if spec.early_channels is not None:
        nodes.append(helper.make_node("Conv", ["image", "early"], ["early_features"], strides=[STRIDE, STRIDE]))
        constants["early"] = random.normal(0, 0.05, (EARLY, 3, STRIDE, STRIDE)).astype(np.float32)
    floats = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "small-encoder",
        [helper.make_tensor_value_info("image", floats, ["num_images", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info(o.name, floats, ["num_images", *o.shape]) for o in spec.outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8).SerializeToString()
    )


def write_small_sam(folder: Path, encoder: EncoderSpec = ENCODER_SPEC) -> Path:
    """Write the files of both versions below a folder, and return the folder."""
    models = ((ENCODER, encoder, encoder_onnx(encoder)), (SEGMENTER, SEGMENTER_SPEC, decoder_onnx()))
    for artifact, spec, graph in models:
        (folder / artifact).mkdir(parents=True)
        (folder / artifact / "model.json").write_text(spec.model_dump_json())
        (folder / artifact / spec.graph).write_bytes(graph)
    return folder


async def publish_small_sam(site: Site, folder: Path) -> Version:
    """Publish both; return the segmenter."""
    encoder = await site.publish_model(folder / ENCODER, ENCODER)
    return await site.publish_model(folder / SEGMENTER, SEGMENTER, image_encoder=encoder)


@asynccontextmanager
async def small_site(folder: Path, models: Path | None = None) -> AsyncIterator[Site]:
    """Run a registry with both, and an embedding service. models: what ``write_small_sam`` wrote before."""
    models = models or await asyncio.to_thread(write_small_sam, folder / "small-sam")
    site = Site(folder)
    async with site.registry.running():
        await publish_small_sam(site, models)
        async with site.embedding():
            yield site
