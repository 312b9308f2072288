"""What HQ-SAM's early feature costs the embedding cache: sizes of the files that the embedding service's store writes.

``python tests/bench/early_features.py --readme`` puts the table into the adapters' README. The nano encoder's files
hold what its graph gives for a picture; those of the others, whose weights are not at hand, random numbers of their
shapes, which take as many bytes.
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from obstore.store import LocalStore

sys.path.insert(0, str(Path(__file__).parent))

from main_job import write_between

from vplab.embedding.backends.obstore_embeddings import ObstoreEmbeddings
from vplab.embedding.backends.onnx_encoders import OnnxEncoderLoader
from vplab.embedding.values import Embedding, ModelRef, NamedTensor, Precision
from vplab.runtime.onnx_session import OnnxSettings
from vplab.training.foundation.export import EARLY_ENCODER, export_early
from vplab.training.models.compare import make_picture
from vplab.training.models.importing import with_early_output
from vplab.vision.half_values import to_half
from vplab.vision.preprocessing import preprocess
from vplab.vision.specs import EncoderSpec, OutputSpec, Preprocessing, spec_from_json

SERVICES = Path(__file__).parents[2] / "services" / "vplab"
README = SERVICES / "vision" / "adapters" / "README.md"
MARK = "cache, by tests/bench/early_features.py"
GIB = 1 << 30
SIZE_HW = (480, 640)
SAMS = {"SAM ViT-B": 768, "SAM ViT-L": 1024, "SAM ViT-H": 1280, "MobileSAM": 160}
"""Channels of the early feature, on SAM's grid of 64 x 64."""

Outputs = Sequence[NDArray[np.float32]]


def main() -> None:
    """Measure, print the table, and write it where asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--readme", action="store_true", help="write the table into the adapters' README")
    arguments = parser.parse_args()
    table = "\n".join(lines())
    print(table)
    if arguments.readme:
        write_between(README, MARK, table)


def lines() -> Iterator[str]:
    """Yield the table: a file in half precision with the encoder's other outputs alone, and with the early feature."""
    yield "| encoder | early feature | file, bytes | with it | times | images in 10 GiB |"
    yield "|---|--:|--:|--:|--:|--:|"
    for name, spec, outputs in encoders():
        early = spec.output("early_features")
        assert early is not None
        without = written_bytes(spec.model_copy(update={"outputs": spec.outputs[:-1]}), outputs[:-1])
        fused = written_bytes(spec, outputs)
        shape = " x ".join(map(str, early.shape))
        images = f"{10 * GIB // without:,} or {10 * GIB // fused:,}"
        yield f"| {name} | {shape} | {without:,} | {fused:,} | {fused / without:.2f} | {images} |"


def encoders() -> Iterator[tuple[str, EncoderSpec, Outputs]]:
    """Yield each encoder's name, its spec with the early feature last, and its outputs for one image."""
    random = np.random.default_rng(0)
    preprocessing = Preprocessing(resize="longest_side", size=1024, mean_rgb=(0, 0, 0), std_rgb=(1, 1, 1))
    embedding = OutputSpec(name="image_embedding", role="image_embedding", shape=(256, 64, 64), stride=16)
    plain = EncoderSpec(family="sam", architecture="vit", preprocessing=preprocessing, outputs=(embedding,))
    for name, channels in SAMS.items():
        spec = with_early_output(plain, channels)
        yield name, spec, [random.normal(size=output.shape).astype(np.float32) for output in spec.outputs]
    with tempfile.TemporaryDirectory() as folder:
        export_early(SERVICES / "registry" / "builtin", Path(folder), (SIZE_HW,))
        encoder = Path(folder) / EARLY_ENCODER
        found = spec_from_json((encoder / "model.json").read_bytes())
        assert isinstance(found, EncoderSpec)
        image = preprocess(make_picture(SIZE_HW, seed=0), found.preprocessing).tensor
        graph = OnnxEncoderLoader(OnnxSettings(providers=("cpu",))).load("nano", encoder, found)
        yield "nano", found, [values[0] for values in graph.run(image[None])]


def written_bytes(spec: EncoderSpec, outputs: Outputs) -> int:
    """Let the embedding service's store keep an embedding, read it back, and return the size of its file."""
    tensors = [NamedTensor(o.name, o.role, to_half(values)) for o, values in zip(spec.outputs, outputs, strict=True)]
    encoder = ModelRef("artifacts/sam-vit-b-early-encoder/versions/1", "a" * 64)
    embedding = Embedding("b" * 64, encoder, "c" * 64, SIZE_HW, Precision.FLOAT16, tuple(tensors))
    with tempfile.TemporaryDirectory() as folder:
        store = ObstoreEmbeddings(LocalStore(folder), 10 * GIB)
        asyncio.run(store.write(embedding))
        read = asyncio.run(store.read(embedding.key))
        store.close()
        assert read is not None
        for kept, tensor in zip(read.tensors, tensors, strict=True):
            np.testing.assert_array_equal(kept.array, tensor.array)
        (file,) = [path for path in Path(folder).rglob("*") if path.is_file()]
        return file.stat().st_size


if __name__ == "__main__":
    main()
