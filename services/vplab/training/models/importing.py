"""From a publisher's checkpoint to artifacts that serving runs: read, build, export, compare, describe.

Imports torch; a caller that must start without it goes through ``vplab.training.models.lazy``.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from vplab.errors import InvalidInput
from vplab.training.models.adapter_bank import PARITY_FILE, EncodedPictures, write_bank
from vplab.training.models.checkpoint_files import read_state_dict, sha256_of
from vplab.training.models.compare import PROVIDERS, EncodedImages, compare_encoder, compare_segmenter, encode_by_torch
from vplab.training.models.graph_files import write_graph
from vplab.training.models.imported import (
    ImportedArtifact,
    ImportedModel,
    ImportOptions,
    LineageLink,
    SourceFile,
)
from vplab.training.models.model_card import model_card, title_of
from vplab.training.models.names import licence_of, model_name
from vplab.training.models.parity import ParityCase, make_report
from vplab.training.models.timm_dino import dino_encoder, is_timm_dino
from vplab.vision.sam.build import PIXEL_MEAN_RGB, PIXEL_STD_RGB, SamModel, sam_from_state_dict
from vplab.vision.sam.early_features import with_early_features
from vplab.vision.sam.half_precision import HalfDecoder, HalfEncoder
from vplab.vision.sam.onnx_decoder import PromptDecoder, module_to_onnx
from vplab.vision.sam.onnx_encoder import EARLY_FEATURES, IMAGE_EMBEDDING, encoder_to_onnx
from vplab.vision.sam.state_dict import prefixed
from vplab.vision.sam.tiny_vit import is_tiny_vit
from vplab.vision.specs import AdapterBankSpec, EncoderSpec, OutputSpec, Precision, Preprocessing, SegmenterSpec


def import_model(
    path: Path,
    *,
    out_dir: Path,
    options: ImportOptions | None = None,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> ImportedModel:
    """Turn a checkpoint into artifact folders under ``out_dir``, compared with the torch model.

    on_stage: told in words what begins; on a CPU the comparison of a large model takes minutes.
    Raises InvalidInput (``path``, ``family``, ``name``, ``architecture``, ``input_size`` or ``early_features``) for a
    file that is not what it should be, DataLoss for a damaged one, FailedPrecondition if the exported graph does not
    match.
    """
    options = options or ImportOptions()
    if not options.parity_image_sizes_hw:
        raise InvalidInput("an import is compared on at least one image", field="parity_image_sizes_hw")
    on_stage(f"reading {path.name}")
    state = read_state_dict(path)
    family = detect_family(state)
    if options.family not in (None, family):
        raise InvalidInput(f"{path.name} holds a {family} model, not {options.family}", field="family")
    for name, value in (("architecture", options.architecture), ("input_size", options.input_size)):
        if value is not None and family != "timm":
            raise InvalidInput(f"{value} was asked for, but SAM's weights decide this themselves", field=name)
    if options.has_early_features and family == "timm":
        raise InvalidInput("a DINO model feeds no mask decoder that could fuse one", field="early_features")
    source = SourceFile(path.name, sha256_of(path), path.stat().st_size, options.source_url)
    importer = _Importer(source, out_dir, options, on_stage)
    # Both take the tensors out of ``state``, so that none outlives the module it is in.
    return importer.dino(state) if family == "timm" else importer.sam(state)


def detect_family(state: dict[str, Tensor]) -> Literal["sam", "mobile_sam", "timm"]:
    """Tell whose layout the tensors are in. Raises InvalidInput (field ``path``) if it is none we read."""
    if any(key.startswith("mask_decoder.") for key in state):
        return "mobile_sam" if is_tiny_vit(prefixed(state, "image_encoder.")) else "sam"
    if is_timm_dino(state):
        return "timm"
    raise InvalidInput(
        "neither a SAM checkpoint in segment-anything's layout nor a DINO model in timm's; "
        f"the {len(state)} tensors begin with {', '.join(list(state)[:4])}",
        field="path",
    )


def sam_specs(model: SamModel) -> tuple[EncoderSpec, SegmenterSpec]:
    """Return the specs of SAM's two graphs."""
    encoder = model.prompt_encoder
    height, width = encoder.image_embedding_size
    embedding_shape = (encoder.embed_dim, height, width)
    return (
        EncoderSpec(
            family=model.family,
            architecture=model.architecture,
            preprocessing=Preprocessing(
                resize="longest_side", size=model.input_size, mean_rgb=PIXEL_MEAN_RGB, std_rgb=PIXEL_STD_RGB
            ),
            outputs=(
                OutputSpec(
                    name=IMAGE_EMBEDDING,
                    role="image_embedding",
                    shape=embedding_shape,
                    stride=model.input_size // height,
                ),
            ),
        ),
        SegmenterSpec(
            family=model.family,
            architecture=model.architecture,
            input_size=model.input_size,
            embedding_shape=embedding_shape,
            low_res_hw=encoder.mask_input_size,
            num_planes=model.mask_decoder.num_mask_tokens,
        ),
    )


def with_early_output(spec: EncoderSpec, channels: int) -> EncoderSpec:
    """Return the spec of an encoder that also returns an early feature, (channels, h, w) on its embedding's grid."""
    embedding = spec.output("image_embedding")
    assert embedding is not None
    shape = (channels, *embedding.shape[1:])
    early = OutputSpec(name=EARLY_FEATURES, role="early_features", shape=shape, stride=embedding.stride)
    return spec.model_copy(update={"outputs": (*spec.outputs, early)})


@dataclass
class _Draft:
    """A version whose graph is written and whose comparison is not yet done."""

    artifact_id: str
    spec: EncoderSpec | SegmenterSpec
    files: dict[str, Path]
    cases: Sequence[ParityCase] = field(default_factory=list)

    @property
    def graph(self) -> Path:
        return self.files[self.spec.graph]


@dataclass(frozen=True)
class _Importer:
    source: SourceFile
    out_dir: Path
    options: ImportOptions
    on_stage: Callable[[str], None]

    @property
    def _suffix(self) -> str:
        early = "-early" if self.options.has_early_features else ""
        return early + {"float32": "", "float16": "-fp16", "float16-encoder": "-fp16e"}[self.options.precision]

    def sam(self, state: dict[str, Tensor]) -> ImportedModel:
        model = sam_from_state_dict(state)
        state.clear()
        name = model_name(model.family, model.architecture, self.options.name, self._suffix)
        encoder_spec, segmenter_spec = sam_specs(model)
        encoder_spec = encoder_spec.model_copy(update={"precision": self.options.encoder_precision})
        image_encoder = model.image_encoder
        if self.options.has_early_features:
            early = with_early_features(image_encoder)
            image_encoder, encoder_spec = early, with_early_output(encoder_spec, early.early_channels)
        segmenter_spec = segmenter_spec.model_copy(update={"precision": self.options.decoder_precision})
        images, encoder = self._encoder(f"{name}-encoder", image_encoder, encoder_spec)
        self.on_stage("exporting the mask decoder")
        segmenter = self._write(f"{name}-segmenter", segmenter_spec, _decoder_to_onnx(model, segmenter_spec.precision))

        self.on_stage("comparing the mask decoder")
        segmenter.cases = compare_segmenter(model, segmenter.graph, segmenter_spec, images, self.options.seed)
        packages = ["segment-anything", *(["timm"] if model.family == "mobile_sam" else [])]
        if self.options.has_bank and segmenter_spec.precision == "float32":
            self._add_bank(segmenter, model, EncodedPictures(images.transforms, images.actual), packages)
        reference = f"the torch modules of {' and '.join(packages)}"
        link = LineageLink("image_encoder", encoder.artifact_id)
        return ImportedModel(
            name,
            self.source,
            (
                self._finish(name, encoder, reference, packages),
                self._finish(name, segmenter, reference, packages, link),
            ),
        )

    def dino(self, state: dict[str, Tensor]) -> ImportedModel:
        module, spec = dino_encoder(state, architecture=self.options.architecture, input_size=self.options.input_size)
        state.clear()
        spec = spec.model_copy(update={"precision": self.options.encoder_precision})
        name = model_name(spec.family, spec.architecture, self.options.name, self._suffix)
        _, encoder = self._encoder(f"{name}-encoder", module, spec)
        return ImportedModel(name, self.source, (self._finish(name, encoder, "timm's model", ("timm",)),))

    def _add_bank(
        self, segmenter: "_Draft", model: SamModel, pictures: EncodedPictures, packages: Sequence[str]
    ) -> None:
        """Raises FailedPrecondition, after writing the files, if the comparison failed."""
        self.on_stage("exporting and comparing the adapter bank")
        assert isinstance(segmenter.spec, SegmenterSpec)
        bank = AdapterBankSpec()
        segmenter.spec = segmenter.spec.model_copy(update={"adapter_bank": bank})
        folder = segmenter.graph.parent
        decoder = PromptDecoder(model.prompt_encoder, model.mask_decoder).eval()
        report = write_bank(decoder, folder, segmenter.spec, pictures, packages)
        segmenter.files |= {name: folder / name for name in (bank.graph, PARITY_FILE)}
        report.require_passed(f"{segmenter.artifact_id}'s bank")

    def _encoder(self, artifact_id: str, module: nn.Module, spec: EncoderSpec) -> tuple[EncodedImages, _Draft]:
        """Export and compare an encoder; takes the weights out of ``module``."""
        sizes = self.options.parity_image_sizes_hw
        self.on_stage(f"encoding {len(sizes)} images in torch")
        images = encode_by_torch(module, spec, sizes, self.options.seed)
        self.on_stage("exporting the image encoder")
        exported = HalfEncoder(module) if spec.precision == "float16" else module
        program = encoder_to_onnx(exported, spec.preprocessing.size, *(output.name for output in spec.outputs))
        draft = self._write(artifact_id, spec, program)
        # The weights of a large model leave before the graph is loaded, which has its own.
        del program
        module.to("meta")
        self.on_stage(f"comparing the image encoder on {len(sizes)} images")
        encoded, draft.cases = compare_encoder(draft.graph, spec, images)
        return encoded, draft

    def _write(self, artifact_id: str, spec: EncoderSpec | SegmenterSpec, program: torch.onnx.ONNXProgram) -> _Draft:
        path = self.out_dir / artifact_id / spec.graph
        files = write_graph(program, path, max_single_file_bytes=self.options.max_single_file_bytes)
        return _Draft(artifact_id, spec, files)

    def _finish(
        self, name: str, draft: _Draft, reference: str, packages: Sequence[str], *lineage: LineageLink
    ) -> ImportedArtifact:
        """Write the texts of a version. Raises FailedPrecondition, after writing them, if a comparison failed."""
        spec = draft.spec
        parity = make_report(reference, ("torch", "onnx", *packages), PROVIDERS, draft.cases)
        licence = self.options.licence or licence_of(spec.family, spec.architecture)
        title = title_of(spec, name)
        texts = {
            "model.json": json.dumps(spec.model_dump(mode="json"), indent=2) + "\n",
            "parity.json": parity.model_dump_json(indent=2) + "\n",
            "MODEL_CARD.md": model_card(title, spec, self.source, licence, parity),
        }
        for file_name, text in texts.items():
            draft.files[file_name] = draft.graph.with_name(file_name)
            draft.files[file_name].write_text(text, encoding="utf-8")
        parity.require_passed(draft.artifact_id)
        return ImportedArtifact(
            artifact_id=draft.artifact_id,
            kind=spec.kind,
            display_name=title,
            description=texts["MODEL_CARD.md"],
            files=draft.files,
            spec=spec,
            licence=licence,
            metrics=parity.metrics,
            lineage=lineage,
            labels={"family": spec.family, "architecture": spec.architecture, "precision": spec.precision},
        )


def _decoder_to_onnx(model: SamModel, precision: Precision) -> torch.onnx.ONNXProgram:
    decoder = HalfDecoder if precision == "float16" else PromptDecoder
    return module_to_onnx(decoder(model.prompt_encoder, model.mask_decoder).eval(), model.prompt_encoder)
