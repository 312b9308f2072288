"""Writes which published model gives which graphs into the importer's README: sizes come from the code, no weights.

``python tests/bench/model_graphs.py``
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import timm
import torch
from segment_anything import sam_model_registry
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

from main_job import write_between

from vplab.training.models.catalogue import CatalogueEntry, catalogue
from vplab.training.models.imported import MAX_SINGLE_FILE_BYTES
from vplab.training.models.timm_dino import DINOV3_INPUT_SIZE
from vplab.vision.sam.tiny_vit import INPUT_SIZE, TinyViTEncoder
from vplab.vision.specs import EncoderSpec, SegmenterSpec, spec_from_json

SERVICES = Path(__file__).parents[2] / "services" / "vplab"
README = SERVICES / "training" / "models" / "README.md"
MARK = "graphs, by tests/bench/model_graphs.py"
_HEAD = """| model | `image` (B, 3, S, S) | output (B, ...) | encoder's weights, float32 and float16 | decoder |
|---|---|---|---|---|"""


def main() -> None:
    """Write the table."""
    write_between(README, MARK, "\n".join([_HEAD, *rows()]))


def rows() -> Iterator[str]:
    """Yield a row for the models that ship with VP Lab, and one for each that can be pulled."""
    yield _nano()
    for entry in catalogue():
        module, side, shape = _dino(entry) if entry.family == "timm" else _sam(entry)
        size = sum(4 * p.numel() for p in module.parameters())
        decoder = "none" if entry.family == "timm" else "`decoder.onnx`, `bank.onnx`"
        yield _row(entry.name, side, shape, f"{_weights(size)} and {_weights(size // 2)}", decoder)


def _sam(entry: CatalogueEntry) -> tuple[nn.Module, int, tuple[int, ...]]:
    with torch.device("meta"):
        if entry.family == "sam":
            encoder: nn.Module = sam_model_registry[entry.architecture]().image_encoder
        else:
            encoder = TinyViTEncoder(timm.create_model("tiny_vit_5m_224", num_classes=0), num_channels=256)
        side = INPUT_SIZE
        return encoder, side, tuple(encoder(torch.zeros(1, 3, side, side)).shape[1:])


def _dino(entry: CatalogueEntry) -> tuple[nn.Module, int, tuple[int, ...]]:
    with torch.device("meta"):
        model = timm.create_model(entry.architecture, pretrained=False, num_classes=0)
    side = DINOV3_INPUT_SIZE if "dinov3" in entry.architecture else model.pretrained_cfg["input_size"][-1]
    grid = side // model.patch_embed.patch_size[0]
    return model, side, (grid, grid, model.num_features)


def _nano() -> str:
    folders = [SERVICES / "registry" / "builtin" / name for name in ("nano-encoder", "nano-segmenter")]
    encoder, segmenter = (spec_from_json((folder / "model.json").read_bytes()) for folder in folders)
    assert isinstance(encoder, EncoderSpec)
    assert isinstance(segmenter, SegmenterSpec)
    outputs = "; ".join(f"`{output.name}` {output.shape}" for output in encoder.outputs)
    size = (folders[0] / encoder.graph).stat().st_size
    stored = f"{size / 1e6:,.0f} MB, computed in {encoder.precision}"
    bank = f", `{segmenter.adapter_bank.graph}`" if segmenter.adapter_bank else ""
    return f"| nano | {encoder.preprocessing.size} | {outputs} | {stored} | `{segmenter.graph}`{bank} |"


def _row(name: str, side: int, shape: tuple[int, ...], weights: str, decoder: str) -> str:
    role = "image_embedding" if decoder != "none" else "patch_features"
    return f"| {name} | {side} | `{role}` {shape} | {weights} | {decoder} |"


def _weights(num_bytes: int) -> str:
    beside = ", in `encoder.onnx.data`" if num_bytes > MAX_SINGLE_FILE_BYTES else ""
    return f"{num_bytes / 1e6:,.0f} MB{beside}"


if __name__ == "__main__":
    main()
