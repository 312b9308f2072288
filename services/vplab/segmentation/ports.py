"""What the core needs from outside; backends implement these."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from vplab.segmentation.values import (
    AdapterVersion,
    Embedded,
    EncodedImage,
    EncoderVersion,
    FrameImage,
    ImageInput,
    ModelRef,
    PromptSet,
    PromptSetContent,
    PromptSetDraft,
    SegmenterVersion,
)
from vplab.vision.adapters.bank_layout import BankLayout
from vplab.vision.specs import SegmenterSpec

Row = NDArray[np.float16]
"""An adapter (W,) as a bank keeps it."""
Decoded = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Logits (N, planes, h, w) and predicted IoU (N, planes)."""
Graph = TypeVar("Graph", covariant=True)


class ModelSource(Protocol):
    """Where models come from: the registry."""

    async def find_segmenter(self, name: str) -> SegmenterVersion:
        """Return the version that a version or alias name means now; without the registry, the last one known.

        Raises NotFound, ModelUnsupported if it is no segmenter or names no image encoder, Unavailable if the registry
        is away and nothing is known.
        """
        ...

    async def find_encoder(self, name: str) -> EncoderVersion:
        """Return what an encoder's version or alias name means and how it preprocesses; its graph is not fetched.

        Raises as find_segmenter.
        """
        ...

    async def find_adapter(self, name: str) -> AdapterVersion:
        """Return the adapter that a version or alias name means now; without the registry, the last one known.

        Raises NotFound, ModelUnsupported if it is none or lacks a file, Unavailable.
        """
        ...

    def files(self, model: ModelRef) -> AbstractAsyncContextManager[Path]:
        """Give a folder with the version's files, each verified against its digest, for as long as the context lasts.

        Raises NotFound, Unavailable, DataLoss if a file does not have its digest.
        """
        ...

    def moved_aliases(self) -> AsyncIterator[str]:
        """Yield alias names that may mean something else now, for ever; first, and after a gap, all of them."""
        ...


class PromptSetStore(Protocol):
    """Where prompt sets are kept: the registry."""

    async def find_request(self, prompt_set_id: str, request_id: str, request_digest: str) -> PromptSet | None:
        """Return the version that this request made before, None if it made none.

        Raises AlreadyExists (REQUEST_ID_REUSED) if the request id made another version. Raises Unavailable.
        """
        ...

    async def publish(
        self, draft: PromptSetDraft, content: PromptSetContent, segmenter: ModelRef, feature_encoder: ModelRef
    ) -> PromptSet:
        """Store the draft's images and masks as a new version.

        Raises FailedPrecondition if the id belongs to another kind of artifact, AlreadyExists, Unavailable.
        """
        ...

    async def get(self, name: str) -> PromptSet:
        """Return a version by number, alias, or artifact name, which means its newest version.

        Without the registry the last one known. Raises NotFound, ModelUnsupported if it is no prompt set, Unavailable.
        """
        ...

    async def reference_images(self, prompt_set: PromptSet) -> Sequence[EncodedImage | FrameImage]:
        """Return the pictures of the references, in order. Raises NotFound, Unavailable, DataLoss."""
        ...

    async def list_page(self, page_size: int, after: str) -> tuple[Sequence[PromptSet], str | None]:
        """Return the newest version of up to ``page_size`` sets whose name is greater than ``after``, by name, and the
        name to continue after, None at the end. Raises Unavailable."""
        ...


class Embedder(Protocol):
    """The embedding service."""

    async def embed(self, image: ImageInput, encoders: Mapping[ModelRef, Sequence[str]]) -> Mapping[ModelRef, Embedded]:
        """Return each encoder's outputs, the roles asked for, of one image.

        Raises InvalidInput for an image that cannot be read, EmbeddingNotCached for a digest that is not known,
        ModelMismatch when the service runs another version by that name, NotFound, ResourceExhausted, Unavailable.
        """
        ...


class LoadedSegmenter(Protocol):
    """A decoder graph in memory."""

    @property
    def device(self) -> str:
        """Where it runs: ``cpu``, ``cuda:0``."""
        ...

    @property
    def num_bytes(self) -> int:
        """About what it takes of memory."""
        ...

    def run(
        self,
        image_embedding: NDArray[np.float32],
        image_index: NDArray[np.int64],
        point_coords: NDArray[np.float32],
        point_labels: NDArray[np.float32],
        mask_input: NDArray[np.float32],
        has_mask_input: NDArray[np.float32],
        early_features: NDArray[np.float32] | None = None,
    ) -> Decoded:
        """Decode N prompts of B images: low-resolution logits (N, planes, h, w) and predicted IoU (N, planes).

        image_embedding: (B, C, h, w) float32. image_index: (N,). point_coords: (N, P, 2). point_labels: (N, P).
        mask_input: (N, 1, 4h, 4w). has_mask_input: (N,). early_features: (B, E, h, w) float32 for a graph that takes
        them. Called from the device's thread only.
        """
        ...


class LoadedBank(Protocol):
    """A decoder graph in memory that takes adapters as inputs, and rows for them. Row 0 is the base and stays so."""

    @property
    def device(self) -> str:
        """Where it runs, and where its rows are."""
        ...

    @property
    def num_bytes(self) -> int:
        """About what graph and rows take of memory, rows nobody has used yet too."""
        ...

    @property
    def capacity(self) -> int:
        """Adapters there are rows for: 1 to ``capacity``."""
        ...

    @property
    def layout(self) -> BankLayout:
        """What a row holds."""
        ...

    def write(self, index: int, row: Row) -> None:
        """Put an adapter in row ``index``. Called from the device's thread only."""
        ...

    def run(
        self,
        adapter_index: Sequence[int],
        image_embedding: NDArray[np.float32],
        image_index: NDArray[np.int64],
        point_coords: NDArray[np.float32],
        point_labels: NDArray[np.float32],
        mask_input: NDArray[np.float32],
        has_mask_input: NDArray[np.float32],
    ) -> Decoded:
        """Decode as ``LoadedSegmenter.run``, each prompt with the adapter in the row that ``adapter_index`` (N,) says.

        Called from the device's thread only.
        """
        ...


class GraphLoader(Protocol[Graph]):
    """Turns files into a graph in memory."""

    def load(self, name: str, role: str, folder: Path, spec: SegmenterSpec) -> Graph:
        """Load a graph, run it once and check its outputs; slow, called beside the thread that serves.

        name, role: for errors, such as ``an adapter``. Raises ModelUnsupported if the graph is not what the spec says.
        """
        ...


SegmenterLoader = GraphLoader[LoadedSegmenter]


class BankLoader(GraphLoader[LoadedBank], Protocol):
    """Turns a segmenter's bank graph, and adapters' files, into what is in memory."""

    def read_row(self, folder: Path, layout: BankLayout) -> Row:
        """Read an adapter version's tensors. Raises InvalidInput if they are not what the bank takes, DataLoss."""
        ...
