"""The trained model as the two shipped artifacts: graphs with half-precision weights, specs and parity reports."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import onnx
import torch
from torch import nn

from vplab.training.foundation.encoder_weights import encoder_state
from vplab.training.models.adapter_bank import encode_pictures, write_bank
from vplab.training.models.compare import (
    PROVIDERS,
    EncodedImages,
    compare_encoder,
    compare_segmenter,
    encode_by_torch,
)
from vplab.training.models.half_weights import with_half_weights
from vplab.training.models.imported import PARITY_IMAGE_SIZES_HW
from vplab.training.models.importing import with_early_output
from vplab.training.models.parity import ParityReport, make_report
from vplab.training.worker.decoder_weights import load_decoder
from vplab.vision.nano.architecture import (
    COLOUR_EVIDENCE,
    COLOUR_STRIDE,
    EARLY_CHANNELS,
    EARLY_STRIDE,
    EMBED_DIM,
    FEATURE_DIM,
    FEATURE_STRIDE,
    INPUT_SIZE,
    MEAN_RGB,
    RASTER,
    STD_RGB,
    STRIDE,
    EarlyNanoEncoder,
    NanoSegmenter,
)
from vplab.vision.sam.build import SamModel
from vplab.vision.sam.onnx_decoder import decoder_to_onnx
from vplab.vision.sam.onnx_graph import batch_axis, to_onnx
from vplab.vision.specs import (
    AdapterBankSpec,
    EncoderSpec,
    OutputSpec,
    Preprocessing,
    SegmenterSpec,
    spec_from_json,
)

ENCODER, SEGMENTER = "nano-encoder", "nano-segmenter"
ARCHITECTURE = "nano_mobilenetv2_100_stride16"
EARLY_ENCODER, EARLY_SEGMENTER = "nano-early-encoder", "nano-early-segmenter"
_PACKAGES = ("onnxruntime-gpu", "segment-anything")
_COMPARED = ("torch", "onnx", *_PACKAGES)
_OF_GRAPHS = "the recipe's torch modules with the weights of these graphs, float32"
_EARLY_CARD = f"""This graph also returns `early_features`, the map of stride {EARLY_STRIDE} folded onto the embedding's
grid ({EARLY_CHANNELS} channels), for adapters of the method `hq_token`.
"""


def encoder_spec() -> EncoderSpec:
    """Return the spec of the image encoder."""
    grid, fine, side = (INPUT_SIZE // stride for stride in (STRIDE, FEATURE_STRIDE, COLOUR_STRIDE))
    return EncoderSpec(
        family="nano",
        architecture=ARCHITECTURE,
        preprocessing=Preprocessing(resize="longest_side", size=INPUT_SIZE, mean_rgb=MEAN_RGB, std_rgb=STD_RGB),
        outputs=(
            OutputSpec(name="image_embedding", role="image_embedding", shape=(EMBED_DIM, grid, grid), stride=STRIDE),
            OutputSpec(
                name="patch_features", role="patch_features", shape=(fine, fine, FEATURE_DIM), stride=FEATURE_STRIDE
            ),
            OutputSpec(name="colours", role="colours", shape=(3, side, side), stride=COLOUR_STRIDE),
        ),
    )


def segmenter_spec() -> SegmenterSpec:
    """Return the spec of the prompt encoder and mask decoder."""
    grid = INPUT_SIZE // STRIDE
    return SegmenterSpec(
        family="nano",
        architecture=ARCHITECTURE,
        input_size=INPUT_SIZE,
        embedding_shape=(EMBED_DIM, grid, grid),
        low_res_hw=(4 * grid, 4 * grid),
        prompt_raster=RASTER,
        colour_evidence=COLOUR_EVIDENCE,
        box_bounds_mask=True,
    )


def export(model: NanoSegmenter, folder: Path, sizes_hw: Sequence[tuple[int, int]] = PARITY_IMAGE_SIZES_HW) -> None:
    """Write ``nano-encoder`` and ``nano-segmenter`` below ``folder``.

    The weights are rounded to half precision first, so the parity report compares equal weights.
    sizes_hw: of the pictures to compare on.
    """
    model = round_to_half(model).eval()
    encoder_dir, segmenter_dir = folder / ENCODER, folder / SEGMENTER
    for directory in (encoder_dir, segmenter_dir):
        directory.mkdir(parents=True, exist_ok=True)
    _write_encoder(model.encoder, encoder_spec(), encoder_dir)
    (segmenter_dir / "model.json").write_text(segmenter_spec().model_dump_json(indent=2) + "\n")
    _write_decoder(model, segmenter_dir)
    _write_parity(folder, parity(model, folder, sizes_hw))
    add_bank(folder)


def compare_again(folder: Path, sizes_hw: Sequence[tuple[int, int]] = PARITY_IMAGE_SIZES_HW) -> None:
    """Write the parity reports of graphs whose checkpoint is not at hand; the graphs stay as they are.

    folder: as ``export`` wrote it. The torch modules are the recipe's own, with the graphs' weights in them.
    Raises FailedPrecondition if the graphs do not agree.
    """
    _write_parity(folder, parity(_exported_model(folder), folder, sizes_hw, _OF_GRAPHS))


def export_segmenter_again(folder: Path, sizes_hw: Sequence[tuple[int, int]] = PARITY_IMAGE_SIZES_HW) -> None:
    """Write the segmenter's graphs anew with the weights that they have, as graphs are exported today.

    folder: as ``export`` wrote it. Raises FailedPrecondition if the graphs do not agree.
    """
    model = _exported_model(folder)
    _write_decoder(model, folder / SEGMENTER)
    _, found = parity(model, folder, sizes_hw, _OF_GRAPHS)
    _write_report(folder / SEGMENTER, found)  # the encoder is what it was, to the last file
    add_bank(folder)


def export_early(folder: Path, output: Path, sizes_hw: Sequence[tuple[int, int]] = PARITY_IMAGE_SIZES_HW) -> None:
    """Write below ``output`` the pair of EARLY_ENCODER, which also returns its early feature, and EARLY_SEGMENTER.

    folder: a pair as ``export`` wrote it. Both encoders have its weights and give the same embeddings; the segmenter
    is the same files, to be published with the other encoder in its lineage.
    Raises FailedPrecondition if the graph does not agree with torch.
    """
    encoder = EarlyNanoEncoder(_exported_model(folder).encoder).eval()
    spec = with_early_output(encoder_spec(), EARLY_CHANNELS)
    shutil.copytree(folder / SEGMENTER, output / EARLY_SEGMENTER)
    directory = output / EARLY_ENCODER
    directory.mkdir(parents=True)
    _write_encoder(encoder, spec, directory)
    card = (folder / ENCODER / "MODEL_CARD.md").read_text(encoding="utf-8")
    (directory / "MODEL_CARD.md").write_text(f"{card}\n{_EARLY_CARD}", encoding="utf-8")
    report, _ = _encoder_parity(encoder, spec, directory, sizes_hw, _OF_GRAPHS)
    _write_report(directory, report)


def _exported_model(folder: Path) -> NanoSegmenter:
    """Return the recipe's modules with the weights of an exported pair."""
    spec = spec_from_json((folder / SEGMENTER / "model.json").read_bytes())
    assert isinstance(spec, SegmenterSpec)
    decoder = load_decoder(folder / SEGMENTER, spec)
    model = NanoSegmenter()
    model.encoder.load_state_dict(encoder_state(folder / ENCODER / encoder_spec().graph))
    model.prompt_encoder.load_state_dict(decoder.prompt_encoder.state_dict())
    model.mask_decoder.load_state_dict(decoder.mask_decoder.state_dict())
    return model.eval()


def _write_decoder(model: NanoSegmenter, directory: Path) -> None:
    model.decoder()  # puts the prompt encoder's sizes back to the shipped ones
    program = decoder_to_onnx(model.prompt_encoder, model.mask_decoder)
    onnx.save(with_half_weights(program.model_proto), directory / segmenter_spec().graph)


def _write_encoder(encoder: nn.Module, spec: EncoderSpec, directory: Path) -> None:
    (directory / "model.json").write_text(spec.model_dump_json(indent=2) + "\n")
    images = torch.zeros(2, 3, INPUT_SIZE, INPUT_SIZE)
    names = tuple(output.name for output in spec.outputs)
    program = to_onnx(encoder, (images,), ({0: batch_axis("num_images")},), ("image",), names)
    onnx.save(with_half_weights(program.model_proto), directory / spec.graph)


def _write_parity(folder: Path, reports: tuple[ParityReport, ParityReport]) -> None:
    for name, found in zip((ENCODER, SEGMENTER), reports, strict=True):
        _write_report(folder / name, found)


def _write_report(directory: Path, report: ParityReport) -> None:
    report.require_passed(directory.name)
    (directory / "parity.json").write_text(report.model_dump_json(indent=2) + "\n")


def add_bank(folder: Path) -> None:
    """Write the segmenter's bank graph beside its decoder's, and say so in its ``model.json``.

    folder: as ``export`` wrote it. Raises FailedPrecondition if the graphs do not agree.
    """
    encoder_dir, segmenter_dir = folder / ENCODER, folder / SEGMENTER
    encoder, segmenter = (spec_from_json((path / "model.json").read_bytes()) for path in (encoder_dir, segmenter_dir))
    assert isinstance(encoder, EncoderSpec)
    assert isinstance(segmenter, SegmenterSpec)
    spec = segmenter.model_copy(update={"adapter_bank": AdapterBankSpec()})
    decoder = load_decoder(segmenter_dir, spec)
    pictures = encode_pictures(encoder_dir / encoder.graph, encoder)
    write_bank(decoder, segmenter_dir, spec, pictures, _PACKAGES).require_passed(SEGMENTER)
    (segmenter_dir / "model.json").write_text(spec.model_dump_json(indent=2) + "\n")


def round_to_half(model: NanoSegmenter) -> NanoSegmenter:
    """Return a copy whose weights and buffers are float32 numbers that half precision holds exactly."""
    copy = NanoSegmenter(stride=model.stride)
    copy.load_state_dict({n: v.half().float() if v.is_floating_point() else v for n, v in model.state_dict().items()})
    return copy


def parity(
    model: NanoSegmenter,
    folder: Path,
    sizes_hw: Sequence[tuple[int, int]],
    reference: str = "the trained torch modules, float32, weights rounded to half precision",
) -> tuple[ParityReport, ParityReport]:
    """Compare both exported graphs with torch, pictures of several sizes and batches; a report for each graph."""
    spec = encoder_spec()
    encoded, images = _encoder_parity(model.encoder, spec, folder / ENCODER, sizes_hw, reference)
    model.decoder()
    sam = SamModel(
        model.encoder, model.prompt_encoder, model.mask_decoder, spec.family, spec.architecture, spec.preprocessing.size
    )
    prompted = compare_segmenter(sam, folder / SEGMENTER / "decoder.onnx", segmenter_spec(), images, seed=0)
    return encoded, make_report(reference, _COMPARED, PROVIDERS, prompted)


def _encoder_parity(
    encoder: nn.Module, spec: EncoderSpec, directory: Path, sizes_hw: Sequence[tuple[int, int]], reference: str
) -> tuple[ParityReport, EncodedImages]:
    images, cases = compare_encoder(directory / spec.graph, spec, encode_by_torch(encoder, spec, sizes_hw, seed=0))
    return make_report(reference, _COMPARED, PROVIDERS, cases), images


def load_model(path: Path) -> NanoSegmenter:
    """Read the averaged weights out of a training checkpoint."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    model = NanoSegmenter()
    model.load_state_dict(state["model"] | state["average"])
    return model.eval()
