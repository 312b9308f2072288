"""Adapters of the method hq_token that fuse an early feature, as the files of a version of the small SAM."""

import json
from pathlib import Path

from fakes.random_decoders import disturb
from fakes.small_sam import EARLY, SEGMENTER, SEGMENTER_SPEC
from vplab.training.worker.decoder_weights import load_decoder
from vplab.vision.adapters.adapt import AdaptedDecoder, adapt
from vplab.vision.adapters.onnx_adapted import adapted_to_onnx
from vplab.vision.adapters.spec import HqTokenSpec


def adapt_small_sam(models: Path, early_channels: int = EARLY, scale: float = 0.1) -> AdaptedDecoder:
    """Return the decoder of what ``write_small_sam`` wrote with an adapter in which every part does something.

    scale: how much.
    """
    decoder = load_decoder(models / SEGMENTER, SEGMENTER_SPEC)
    return disturb(adapt(decoder, HqTokenSpec(early_channels=early_channels)), scale).eval()


def write_hq_adapter(folder: Path, adapted: AdaptedDecoder, said: dict[str, object] | None = None) -> Path:
    """Write the version's files and return the folder; said: in place of what the adapter is made of."""
    folder.mkdir()
    adapted_to_onnx(adapted).save(folder / SEGMENTER_SPEC.graph)
    (folder / "model.json").write_text(SEGMENTER_SPEC.model_dump_json())
    (folder / "adapter.json").write_text(json.dumps({"adapter": said or json.loads(adapted.spec.model_dump_json())}))
    (folder / "parity.json").write_text('{"passed": true}')
    return folder
