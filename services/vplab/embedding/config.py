"""The settings of the embedding service; the only list of its variables."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from vplab.errors import InvalidInput
from vplab.runtime.onnx_session import Provider, num_cores
from vplab.runtime.settings import MIB, SecondsOrZero, ServerSettings, home
from vplab.wire.names import parse_version_or_alias

Count = Annotated[int, Field(ge=1)]
GIB = 1024 * MIB


class EmbeddingConfig(ServerSettings, env_prefix="VPLAB_EMBEDDING_"):
    """``cache_dir`` is read from ``VPLAB_EMBEDDING_CACHE_DIR``, and so on; the frame's settings are in the base."""

    listen: str = "127.0.0.1:7302"
    registry_address: str | None = None
    """Where the registry listens; unset is what every client reads, ``VPLAB_REGISTRY_ADDRESS`` or ``VPLAB_ADDRESS``."""

    cache_dir: Path = Field(default_factory=lambda: home() / "embedding")
    """Folder for what can be had again: downloaded encoders, kept embeddings, and the job database. Unset is
    ``embedding`` below ``VPLAB_HOME``, else below the user's data folder."""
    store_url: Annotated[str, Field(pattern=r"^s3://[^/]+")] | None = None
    """Bucket where embeddings are kept instead of below ``cache_dir``, ``s3://bucket/prefix``; endpoint, region and
    credentials come from the usual ``AWS_*`` variables."""
    store_bytes: Annotated[int, Field(ge=0)] = 10 * GIB
    """Bound of the kept embeddings; the least recently used go first; 0 keeps none. SAM's is 2 MiB in float16."""
    host_cache_bytes: Annotated[int, Field(ge=0)] = 512 * MIB
    """Bound of the embeddings in memory."""
    database_url: str | None = None
    """SQLAlchemy URL of the job database; unset is a SQLite file below ``cache_dir``."""

    max_image_bytes: Count = 32 * MIB
    """Largest file or frame."""
    max_image_pixels: Count = 100_000_000
    """Largest width times height; checked before decoding. Each decoding thread may hold three bytes per pixel."""
    max_waiting_bytes: Count = 512 * MIB
    """Bound of the files and frames that wait to be decoded; more is refused with OVERLOADED."""
    decode_threads: Count = min(4, num_cores())
    """Images decoded at a time."""

    providers: tuple[Provider, ...] = ()
    """What runs the graphs, in order of preference, a JSON list of ``tensorrt``, ``cuda`` and ``cpu``; empty takes CUDA
    where a device answers, else the CPU."""
    device_id: Annotated[int, Field(ge=0)] = 0
    """Which of the visible GPUs."""
    gpu_memory_limit_bytes: Count | None = None
    """Most that one graph's activations take on the GPU; unset is no limit. A run that needs more fails."""
    intra_op_threads: Annotated[int, Field(ge=0)] = 0
    """Threads of one run on the CPU; 0 means one for each core that the process may use."""
    queue_capacity: Count = 128
    """Images that may wait for the device. A preprocessed 1024-pixel image is 12 MiB."""
    max_batch_size: Count | None = None
    """Images of one run of an encoder; unset is 4 on a GPU and 1 on the CPU, where a batch takes as long as its images
    one by one, and whoever waits for one of them would wait for all."""
    max_batch_wait_s: SecondsOrZero = 0.002
    """How long an image waits for others to share its run."""
    max_encoders: Count = 4
    """Encoders in memory; the least recently used leave."""
    max_encoder_bytes: Count = 8 * GIB
    """Bound of their files' sizes together."""
    preload: tuple[str, ...] = ()
    """Encoders to load at the start, a JSON list of names such as ``artifacts/nano-encoder``."""

    job_images_at_once: Count = 4
    """Images of precompute jobs that are worked on at a time; jobs take turns."""

    @field_validator("preload")
    @classmethod
    def _check_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return tuple(str(parse_version_or_alias(name, field="preload")) for name in names)
        except InvalidInput as error:
            raise ValueError(error.message) from error
