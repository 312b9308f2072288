"""The Prometheus series of this service; every one exists from the start."""

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

LOOKUPS: Final = Counter("vplab_embedding_lookups", "Embeddings looked up, by tier and outcome.", ("tier", "outcome"))
CACHE_BYTES: Final = Gauge("vplab_embedding_cache_bytes", "Bytes of embeddings kept.", ("tier",))
CACHE_ENTRIES: Final = Gauge("vplab_embedding_cache_entries", "Embeddings kept.", ("tier",))
EVICTIONS: Final = Counter("vplab_embedding_evictions", "Embeddings dropped to stay within the bound.", ("tier",))
DAMAGED: Final = Counter("vplab_embedding_damaged", "Stored embeddings that failed their checksum and were removed.")
WRITES: Final = Counter("vplab_embedding_writes", "Writes to the durable store, by outcome.", ("outcome",))
ENCODERS_LOADED: Final = Gauge("vplab_embedding_encoders_loaded", "Encoders in memory.")
ENCODER_BYTES: Final = Gauge("vplab_embedding_encoder_bytes", "Bytes of the encoders in memory.")
LOAD_SECONDS: Final = Histogram("vplab_embedding_load_seconds", "Seconds to load and warm up an encoder.")
ALIAS_MOVES: Final = Counter("vplab_embedding_alias_moves", "Aliases that moved, by outcome.", ("outcome",))
PREPARE_SECONDS: Final = Histogram(
    "vplab_embedding_prepare_seconds", "Seconds to decode and preprocess an image, without waiting."
)
JOB_IMAGES: Final = Counter("vplab_embedding_job_images", "Images of precompute jobs, by outcome.", ("outcome",))


class TierMetrics:
    """The series of one tier: all of them exist from the start, and none is looked up again."""

    def __init__(self, tier: str) -> None:
        self._hits, self._misses = (LOOKUPS.labels(tier, outcome) for outcome in ("hit", "miss"))
        self._bytes = CACHE_BYTES.labels(tier)
        self._entries = CACHE_ENTRIES.labels(tier)
        self._evictions = EVICTIONS.labels(tier)

    def looked_up(self, *, found: bool) -> None:
        """Note a look-up."""
        (self._hits if found else self._misses).inc()

    def holds(self, num_entries: int, num_bytes: int) -> None:
        """Note what is kept."""
        self._entries.set(num_entries)
        self._bytes.set(num_bytes)

    def evicted(self) -> None:
        """Note an embedding that made room."""
        self._evictions.inc()


HOST: Final = TierMetrics("host")
DURABLE: Final = TierMetrics("durable")

for _outcome in ("written", "failed", "skipped"):
    WRITES.labels(_outcome)
for _outcome in ("followed", "refused"):
    ALIAS_MOVES.labels(_outcome)
for _outcome in ("done", "failed"):
    JOB_IMAGES.labels(_outcome)
