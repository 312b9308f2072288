"""The work that every server of this comparison does for a call, made of ``vplab.vision``.

A click: tokens of the point, the decoder graph on an embedding that is kept by digest, the evidence of the colours, the
resize to the size of the image, the threshold, and run lengths. An image: decoding, preprocessing, the encoder graph,
and keeping the embedding in half precision. Nothing here knows of any server. What does not depend on a click is made
once per image.
"""

import hashlib
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vplab.runtime.onnx_session import OnnxSettings, create_session
from vplab.vision.colour_evidence import ColourModel
from vplab.vision.final_masks import final_mask
from vplab.vision.half_values import to_half
from vplab.vision.images import decode_image
from vplab.vision.masks import decode_runs, encode_runs
from vplab.vision.preprocessing import FrameTransform, frame_transform, preprocess
from vplab.vision.prompts import ObjectPrompt, prompt_tokens
from vplab.vision.specs import EncoderSpec, SegmenterSpec, spec_from_json

MODELS = Path(__file__).resolve().parents[3] / "services" / "vplab" / "registry" / "builtin"
_FOLDERS = ("nano-encoder", "nano-segmenter")
MAX_KEPT = 256
"""Embeddings kept; the least recently used leave. 2.2 MiB each for the nano models."""


@dataclass(frozen=True)
class Click:
    """One foreground point on an image that was embedded before."""

    digest: str
    x: float
    y: float

    def to_bytes(self) -> bytes:
        """The digest as 64 ASCII characters, then x and y as little-endian float32."""
        return self.digest.encode() + np.array([self.x, self.y], "<f4").tobytes()

    @staticmethod
    def from_bytes(data: bytes) -> "Click":
        """Undo ``to_bytes``."""
        x, y = np.frombuffer(data, "<f4", 2, 64).tolist()
        return Click(data[:64].decode(), x, y)

    @staticmethod
    def from_text(text: str) -> "Click":
        """Read ``DIGEST X Y``."""
        digest, x, y = text.split()
        return Click(digest, float(x), float(y))


@dataclass(frozen=True, eq=False)
class Mask:
    """The answer to a click."""

    size_hw: tuple[int, int]
    runs: NDArray[np.uint32]
    predicted_iou: float

    def iou(self, other: "Mask") -> float:
        """Return the intersection over the union with another mask of the same size; 1 where both are empty."""
        if self.size_hw != other.size_hw:
            return 0.0
        mine, theirs = decode_runs(self.runs, self.size_hw), decode_runs(other.runs, other.size_hw)
        union = int((mine | theirs).sum())
        return int((mine & theirs).sum()) / union if union else 1.0

    def to_bytes(self) -> bytes:
        """Little-endian: height and width as uint32, the predicted IoU as float32, then the runs as uint32."""
        head = np.array(self.size_hw, "<u4").tobytes() + np.float32(self.predicted_iou).astype("<f4").tobytes()
        return head + self.runs.astype("<u4").tobytes()

    @staticmethod
    def from_bytes(data: bytes) -> "Mask":
        """Undo ``to_bytes``."""
        height, width = np.frombuffer(data, "<u4", 2).tolist()
        iou = float(np.frombuffer(data, "<f4", 1, 8)[0])
        return Mask((height, width), np.frombuffer(data, "<u4", -1, 12), iou)


@dataclass(eq=False)
class _Kept:
    """An image that was embedded; what clicks have in common is made with the first, as in our services."""

    half: NDArray[np.float16]
    colours: NDArray[np.float16]
    transform: FrameTransform
    spec: SegmenterSpec

    @cached_property
    def embedding(self) -> NDArray[np.float32]:
        """(C, h, w)"""
        return self.half.astype(np.float32)

    @cached_property
    def colour_model(self) -> ColourModel | None:
        return ColourModel.of(self.colours, self.transform, self.spec)


class Work:
    """The two graphs with the images that were embedded. Thread-safe."""

    def __init__(self, *, intra_op_threads: int = 0, models: Path = MODELS, store: Path | None = None) -> None:
        """intra_op_threads: of each run; 0 is one per core. store: folder that worker processes share embeddings in."""
        self._store = store
        encoder, segmenter = (spec_from_json((models / name / "model.json").read_bytes()) for name in _FOLDERS)
        assert isinstance(encoder, EncoderSpec)
        assert isinstance(segmenter, SegmenterSpec)
        self.encoder_spec, self.spec = encoder, segmenter
        # The very sessions that our services make: what is compared is serving, not how ONNX Runtime is set up.
        settings = OnnxSettings(providers=("cpu",), intra_op_threads=intra_op_threads)
        self._encoder = create_session(models / _FOLDERS[0] / encoder.graph, settings)
        self._decoder = create_session(models / _FOLDERS[1] / segmenter.graph, settings)
        self._outputs = [output.name for output in encoder.outputs]
        self._roles = [output.role for output in encoder.outputs]
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._shared: deque[Path] = deque()
        self._lock = threading.Lock()

    def embed(self, images: Sequence[bytes]) -> list[str]:
        """Embed files in one run of the encoder and keep the embeddings; returns their digests."""
        prepared = [preprocess(decode_image(data), self.encoder_spec.preprocessing) for data in images]
        found = self._encoder.run(self._outputs, {"image": np.stack([image.tensor for image in prepared])})
        digests = []
        for index, (data, image) in enumerate(zip(images, prepared, strict=True)):
            # Every output is brought to half precision, as the embedding service does; clicks use two of them.
            halves = {role: to_half(values[index]) for role, values in zip(self._roles, found, strict=True)}
            digest = hashlib.sha256(data).hexdigest()
            kept = _Kept(halves["image_embedding"], halves["colours"], image.transform, self.spec)
            self._keep(digest, kept)
            self._share(digest, kept)
            digests.append(digest)
        return digests

    def click(self, clicks: Sequence[Click]) -> list[Mask]:
        """Decode clicks, of any images, in one run of the decoder. Raises KeyError for a digest that is not kept."""
        kept = [self._get(click.digest) for click in clicks]
        prompts = [ObjectPrompt(np.array([[click.x, click.y]], np.float32), np.ones(1, np.int64)) for click in clicks]
        tokens = [prompt_tokens(prompt, one.transform, self.spec) for prompt, one in zip(prompts, kept, strict=True)]
        masks = np.zeros((len(tokens), 1, *self.spec.low_res_hw), np.float32)
        for row, token in zip(masks, tokens, strict=True):
            if token.mask_logits is not None:
                row[0] = token.mask_logits
        images = list({id(one): one for one in kept}.values())
        place = {id(one): index for index, one in enumerate(images)}
        logits, ious = self._decoder.run(
            ["low_res_logits", "iou_predictions"],
            {
                "image_embedding": _stacked([one.embedding for one in images]),
                "image_index": np.array([place[id(one)] for one in kept], np.int64),
                "point_coords": np.stack([token.coords for token in tokens]),
                "point_labels": np.stack([token.labels for token in tokens]),
                "mask_input": masks,
                "has_mask_input": np.array([token.mask_logits is not None for token in tokens], np.float32),
            },
        )
        found = []
        for prompt, one, planes, plane_ious in zip(prompts, kept, logits, ious, strict=True):
            mask = final_mask(planes[0], prompt, one.transform, self.spec, one.colour_model)
            found.append(Mask(one.transform.original_hw, encode_runs(mask), float(plane_ious[0])))
        return found

    def _keep(self, digest: str, kept: _Kept) -> None:
        with self._lock:
            self._kept[digest] = kept
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)

    def _get(self, digest: str) -> _Kept:
        with self._lock:
            if digest in self._kept:
                self._kept.move_to_end(digest)
                return self._kept[digest]
        if self._store is None:
            raise KeyError(digest)
        with np.load(self._store / f"{digest}.npz") as arrays:
            half, colours, original_hw = (arrays[name] for name in ("half", "colours", "original_hw"))
        height, width = original_hw.tolist()
        transform = frame_transform((height, width), self.encoder_spec.preprocessing)
        kept = _Kept(half, colours, transform, self.spec)
        self._keep(digest, kept)
        return kept

    def _share(self, digest: str, kept: _Kept) -> None:
        """Write what another worker needs of an image, and remove what this one wrote long ago."""
        if self._store is None:
            return
        path = self._store / f"{digest}.npz"
        part = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
        with part.open("wb") as file:
            np.savez(file, half=kept.half, colours=kept.colours, original_hw=np.array(kept.transform.original_hw))
        part.replace(path)
        with self._lock:
            self._shared.append(path)
            old = self._shared.popleft() if len(self._shared) > MAX_KEPT else None
        if old is not None:
            old.unlink(missing_ok=True)


def _stacked(embeddings: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return (B, C, h, w), without a copy of a single one."""
    return embeddings[0][None] if len(embeddings) == 1 else np.stack(embeddings)
