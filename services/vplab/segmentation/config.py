"""The settings of the segmentation service; the only list of its variables."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from vplab.errors import InvalidInput
from vplab.runtime.onnx_session import Provider, num_cores
from vplab.runtime.settings import MIB, SecondsOrZero, ServerSettings, home
from vplab.wire.names import parse_version_or_alias

Count = Annotated[int, Field(ge=1)]


class SegmentationConfig(ServerSettings, env_prefix="VPLAB_SEGMENTATION_"):
    """``cache_dir`` is read from ``VPLAB_SEGMENTATION_CACHE_DIR``, and so on; the frame's settings are in the base."""

    listen: str = "127.0.0.1:7303"
    registry_address: str | None = None
    """Where the registry listens; unset is what every client reads, ``VPLAB_REGISTRY_ADDRESS`` or ``VPLAB_ADDRESS``."""
    embedding_address: str | None = None
    """Where the embedding service listens; unset is ``VPLAB_EMBEDDING_ADDRESS`` or ``VPLAB_ADDRESS``."""
    cache_dir: Path = Field(default_factory=lambda: home() / "segmentation")
    """Folder for what can be had again: downloaded segmenters and prompt sets."""

    default_segmenter: str = "artifacts/nano-segmenter"
    """Segmenter of calls that name none."""
    default_feature_encoder: str = "artifacts/nano-encoder"
    """Encoder of the patch features of prompt sets that name none."""
    preload: bool = True
    """Whether the default segmenter is loaded at the start."""
    max_segmenters: Count = 4
    """Segmenters in memory; the least recently used leave."""

    adapter_bank_bytes: Annotated[int, Field(ge=0)] = 512 * MIB
    """Memory for adapters in each segmenter's bank, 0.4 MiB each; the least recently used leave. On a GPU it is taken
    when the first adapter comes, on the CPU as adapters come. 0 gives every adapter a graph of its own."""
    adapter_cache_bytes: Annotated[int, Field(ge=0)] = 512 * MIB
    """Bound of the adapters that no bank takes, about 20 MiB each for the nano segmenter; the least recently used
    leave. The one in use is kept even when it alone exceeds it."""

    embedding_precision: Literal["float16", "float32"] = "float16"
    """Precision of the embeddings asked for. float16 halves memory and wire and moves logits by about 0.01; float32
    equals segment-anything."""
    embedding_cache_bytes: Annotated[int, Field(ge=0)] = 256 * MIB
    """Bound of the embeddings kept in this process, so that the second click on an image asks nobody."""
    reference_cache_bytes: Annotated[int, Field(ge=0)] = 256 * MIB
    """Bound of the prompt sets' reference features in memory. The set in use is kept even when it alone exceeds it."""

    max_image_bytes: Count = 32 * MIB
    """Largest file or frame."""
    max_image_pixels: Count = 100_000_000
    """Largest width times height."""
    tile_side: Annotated[int, Field(ge=0, le=16384)] = 2048
    """Images whose long side is greater are cut into overlapping tiles of this side, in pixels; 0 never tiles."""
    max_tiles: Count = 64
    """Most tiles of one image; more is refused. Their embeddings are in memory together."""
    refines: Literal["auto", "always", "never"] = "auto"
    """Whether each mask is decoded a second time from its box and logits. ``auto``: where the segmenter draws no prompt
    raster, which is all published SAMs. Deviation: the nano segmenter skips the refinement, which gained it nothing."""

    providers: tuple[Provider, ...] = ()
    """What runs the graphs, in order of preference, a JSON list of ``tensorrt``, ``cuda`` and ``cpu``; empty takes CUDA
    where a device answers, else the CPU."""
    device_id: Annotated[int, Field(ge=0)] = 0
    """Which of the visible GPUs."""
    gpu_memory_limit_bytes: Count | None = None
    """Most that one graph's activations take on the GPU; unset is no limit. A run that needs more fails."""
    intra_op_threads: Annotated[int, Field(ge=0)] = 0
    """Threads of one run on the CPU; 0 means one for each core that the process may use."""
    queue_capacity: Count = 256
    """Decoder calls that may wait for the device."""
    max_batch_size: Count = 4
    """Decoder calls, of up to 32 prompts each, that share one run."""
    max_batch_wait_s: SecondsOrZero = 0.0
    """How long a call waits for others to share its run."""
    worker_threads: Count = min(4, num_cores())
    """Images that are matched at a time; as many more of the class batch, which give way to everything else."""
    quick_threads: Count = min(4, num_cores())
    """Digests, prompts and masks that are worked on at a time. No click waits for an image that is matched."""
    max_waiting: Count = 128
    """Pieces of work that may wait for threads of one kind; more is refused with OVERLOADED."""
    stream_frames_at_once: Count = 2
    """Frames of one stream that are worked on at a time; the others of ``max_in_flight`` wait and may be dropped."""

    @field_validator("default_segmenter", "default_feature_encoder")
    @classmethod
    def _check_name(cls, name: str) -> str:
        try:
            return str(parse_version_or_alias(name, field="name"))
        except InvalidInput as error:
            raise ValueError(error.message) from error
