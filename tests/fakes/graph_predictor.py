"""Predicting masks with exported graphs as serving does, without a server: numpy and ONNX Runtime only."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vplab.runtime.onnx_session import OnnxSettings, create_session
from vplab.vision.masks import upsample_logits
from vplab.vision.preprocessing import FrameTransform, preprocess
from vplab.vision.prompts import ObjectPrompt, prompt_tokens
from vplab.vision.specs import EncoderSpec, SegmenterSpec, spec_from_json

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Prediction:
    """What SamPredictor.predict returns for one prompt, planes selected."""

    logits: FloatArray
    """(M, H, W) float32 in the original image."""
    ious: FloatArray
    low_res_logits: FloatArray


class GraphPredictor:
    """Encoder and decoder graphs of one SAM, from the folders an import leaves."""

    def __init__(self, encoder_dir: Path, segmenter_dir: Path, *, num_threads: int = 2) -> None:
        encoder_spec = spec_from_json((encoder_dir / "model.json").read_bytes())
        segmenter_spec = spec_from_json((segmenter_dir / "model.json").read_bytes())
        assert isinstance(encoder_spec, EncoderSpec)
        assert isinstance(segmenter_spec, SegmenterSpec)
        self.encoder_spec, self.segmenter_spec = encoder_spec, segmenter_spec
        self.encoder = open_session(encoder_dir / encoder_spec.graph, num_threads)
        self.decoder = open_session(segmenter_dir / segmenter_spec.graph, num_threads)

    def embed(self, image_rgb: NDArray[np.uint8]) -> tuple[FloatArray, FrameTransform]:
        """Return the embedding (1, C, h, w) of a (H, W, 3) image, and its frame."""
        item = preprocess(image_rgb, self.encoder_spec.preprocessing)
        return self.encoder.run(["image_embedding"], {"image": item.tensor[None]})[0], item.transform

    def predict(
        self, embedding: FloatArray, transform: FrameTransform, prompt: ObjectPrompt, *, multimask: bool
    ) -> Prediction:
        """Decode one prompt and select plane 0, or planes 1 to 3."""
        tokens = prompt_tokens(prompt, transform, self.segmenter_spec)
        has_mask = tokens.mask_logits is not None
        mask = tokens.mask_logits if has_mask else np.zeros(self.segmenter_spec.low_res_hw, np.float32)
        assert mask is not None
        feed = {
            "image_embedding": embedding,
            "image_index": np.zeros(1, np.int64),
            "point_coords": tokens.coords[None],
            "point_labels": tokens.labels[None],
            "mask_input": mask[None, None],
            "has_mask_input": np.array([has_mask], np.float32),
        }
        low_res, ious = self.decoder.run(["low_res_logits", "iou_predictions"], feed)
        planes = slice(1, None) if multimask else slice(0, 1)
        chosen = low_res[0, planes]
        return Prediction(upsample_logits(chosen, transform), ious[0, planes], chosen)


def open_session(path: Path, num_threads: int = 2) -> Any:
    """Open a graph as the services do, on the CPU."""
    return create_session(path, OnnxSettings(providers=("cpu",), intra_op_threads=num_threads))
