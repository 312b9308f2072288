"""What the core needs from outside; backends implement these."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vplab.embedding.values import Embedding, EncoderVersion, ImageFailure, Job, JobRequest, JobState
from vplab.vision.specs import EncoderSpec


class ModelSource(Protocol):
    """Where encoders and images come from: the registry."""

    async def find_encoder(self, name: str) -> EncoderVersion:
        """Return the version that a version or alias name means now; without the registry, the last one known.

        Raises NotFound, ModelUnsupported if it is no encoder, Unavailable if the registry is away and nothing is known.
        """
        ...

    def files(self, version: EncoderVersion) -> AbstractAsyncContextManager[Path]:
        """Give a folder with the version's files, each verified against its digest, for as long as the context lasts.

        Raises NotFound, Unavailable, DataLoss if a file does not have its digest.
        """
        ...

    async def list_encoders(self) -> Sequence[EncoderVersion]:
        """Return the production version of every encoder. Raises Unavailable."""
        ...

    def moved_aliases(self) -> AsyncIterator[str]:
        """Yield alias names that may mean something else now, for ever; first, and after a gap, all of them."""
        ...

    async def read_image(self, sha256: str, max_bytes: int) -> bytes:
        """Return a blob, verified. Raises NotFound, Unavailable, DataLoss, ResourceExhausted above ``max_bytes``."""
        ...

    async def list_dataset_images(self, name: str) -> Sequence[str]:
        """Return the sha256 of each file with an image media type in a dataset version or alias.

        Raises NotFound, Unavailable.
        """
        ...


class LoadedEncoder(Protocol):
    """A graph in memory."""

    @property
    def execution_provider(self) -> str:
        """What runs it."""
        ...

    @property
    def num_bytes(self) -> int:
        """About how much memory it takes."""
        ...

    def run(self, images: npt.NDArray[np.float32]) -> Sequence[npt.NDArray[np.float32]]:
        """Encode (B, 3, S, S) float32, preprocessed; return each output of the spec, in its order, (B, ...) float32.

        Called from the device's thread only.
        """
        ...


class EncoderLoader(Protocol):
    """Turns files into a graph in memory."""

    def load(self, name: str, folder: Path, spec: EncoderSpec) -> LoadedEncoder:
        """Load a graph, run it once and check its outputs; slow, called beside the thread that serves.

        Raises ModelUnsupported if the graph is not what the spec says.
        """
        ...


class EmbeddingStore(Protocol):
    """Keeps embeddings beyond the life of the process, within a bound; what it loses is computed again."""

    async def read(self, key: str) -> Embedding | None:
        """Return a verified embedding; None if there is none, or it was damaged (and is removed) or unreachable."""
        ...

    async def contains(self, key: str) -> bool:
        """Say whether the store is known to hold a key; may be wrong by saying no."""
        ...

    async def write(self, embedding: Embedding) -> None:
        """Keep an embedding. Raises ResourceExhausted (STORAGE_FULL), Unavailable."""
        ...


class JobStore(Protocol):
    """Keeps precompute jobs; every method is one transaction."""

    async def create(self, request: JobRequest) -> Job:
        """Store a new job, or return the one that has this request_id.

        Raises AlreadyExists (REQUEST_ID_REUSED) if that one asked for something else.
        """
        ...

    async def get(self, job_id: str) -> Job:
        """Return a job. Raises NotFound."""
        ...

    async def list_page(self, page_size: int, before: int | None) -> tuple[Sequence[Job], int | None]:
        """Return up to ``page_size`` jobs, newest first, and where the next page starts (None at the end)."""
        ...

    async def next_unfinished(self, under_way: Sequence[str] = ()) -> Job | None:
        """Return the oldest job that is queued or was interrupted, now RUNNING; none of those ``under_way``."""
        ...

    async def pending_images(self, job_id: str, limit: int) -> Sequence[str]:
        """Return up to ``limit`` images of a job that were not tried yet, in order."""
        ...

    async def record(self, job_id: str, done: Sequence[str], failed: Sequence[ImageFailure]) -> None:
        """Note what became of images; noting one twice changes nothing."""
        ...

    async def finish(self, job_id: str, state: JobState, message: str = "") -> Job:
        """Move a job to a terminal state unless it is in one, and return it as it is now. Raises NotFound."""
        ...
