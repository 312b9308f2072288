"""The Prometheus series of this service; every one exists from the start."""

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

CACHE_LOOKUPS: Final = Counter(
    "vplab_segmentation_cache_lookups", "Look-ups in this process's caches, by outcome.", ("cache", "outcome")
)
CACHE_BYTES: Final = Gauge("vplab_segmentation_cache_bytes", "Bytes kept in this process.", ("cache",))
STAGE_SECONDS: Final = Histogram("vplab_segmentation_stage_seconds", "Seconds of SegmentImage's stages.", ("stage",))
SEGMENTERS_LOADED: Final = Gauge("vplab_segmentation_segmenters_loaded", "Segmenters in memory.")
ADAPTERS_LOADED: Final = Gauge("vplab_segmentation_adapters_loaded", "Adapters in memory with a graph of their own.")
BANK_ADAPTERS: Final = Gauge("vplab_segmentation_bank_adapters", "Adapters in the segmenters' banks.")
BANK_BYTES: Final = Gauge("vplab_segmentation_bank_bytes", "Bytes of those adapters.")
BANK_EVICTIONS: Final = Counter("vplab_segmentation_bank_evictions", "Adapters that made room for others in a bank.")
ALIAS_MOVES: Final = Counter("vplab_segmentation_alias_moves", "Aliases that moved, by outcome.", ("outcome",))
FRAMES: Final = Counter("vplab_segmentation_frames", "Frames of streams, by outcome.", ("outcome",))
FRAMES_HELD: Final = Gauge("vplab_segmentation_frames_held", "Frames held by all streams, answers included.")

for _cache in ("embedding", "references"):
    for _outcome in ("hit", "miss"):
        CACHE_LOOKUPS.labels(_cache, _outcome)
    CACHE_BYTES.labels(_cache)
for _stage in ("embed", "match", "decode", "total"):
    STAGE_SECONDS.labels(_stage)
for _outcome in ("followed", "refused"):
    ALIAS_MOVES.labels(_outcome)
for _outcome in ("result", "error", "dropped"):
    FRAMES.labels(_outcome)
