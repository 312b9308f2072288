"""Embeddings in memory, then in a durable store; each tier bounded in bytes."""

import asyncio
from collections import OrderedDict

import structlog

from vplab.embedding import metrics
from vplab.embedding.ports import EmbeddingStore
from vplab.embedding.values import Embedding, FoundEmbedding, Tier
from vplab.errors import VPLabError

_log = structlog.get_logger(__name__)

# Embeddings that wait to be written are in memory; 64 float16 ones of SAM's are 128 MiB.
_MAX_PENDING_WRITES = 64


class HostCache:
    """Embeddings in memory; the least recently used go first."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[str, Embedding] = OrderedDict()
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> Embedding | None:
        """Return an embedding and make it the most recently used."""
        embedding = self._entries.get(key)
        if embedding is not None:
            self._entries.move_to_end(key)
        return embedding

    def put(self, embedding: Embedding) -> None:
        """Keep an embedding unless it alone exceeds the bound."""
        known = self._entries.pop(embedding.key, None)
        if known is not None:
            self.num_bytes -= known.num_bytes
        if embedding.num_bytes <= self._max_bytes:
            self._entries[embedding.key] = embedding
            self.num_bytes += embedding.num_bytes
        while self.num_bytes > self._max_bytes:
            _, dropped = self._entries.popitem(last=False)
            self.num_bytes -= dropped.num_bytes
            metrics.HOST.evicted()
        metrics.HOST.holds(len(self._entries), self.num_bytes)


class EmbeddingCache:
    """Both tiers; what is found in the lower one moves up."""

    def __init__(self, host: HostCache, store: EmbeddingStore | None) -> None:
        self._host = host
        self._store = store
        self._writes: dict[str, asyncio.Task[None]] = {}

    async def get(self, key: str) -> FoundEmbedding | None:
        """Look an embedding up, tier by tier."""
        embedding = self._host.get(key)
        metrics.HOST.looked_up(found=embedding is not None)
        if embedding is not None:
            return FoundEmbedding(embedding, Tier.HOST)
        if self._store is None:
            return None
        embedding = await self._store.read(key)
        metrics.DURABLE.looked_up(found=embedding is not None)
        if embedding is None:
            return None
        self._host.put(embedding)
        return FoundEmbedding(embedding, Tier.DURABLE)

    def in_memory(self, key: str) -> Embedding | None:
        """Return an embedding that is here now, which does not count as a lookup."""
        return self._host.get(key)

    def put(self, embedding: Embedding) -> None:
        """Keep a new embedding; the durable store gets it in the background, or not at all when it cannot keep up."""
        self._host.put(embedding)
        if self._store is None or embedding.key in self._writes:
            return
        if len(self._writes) >= _MAX_PENDING_WRITES:
            metrics.WRITES.labels("skipped").inc()
            return
        task = asyncio.create_task(self._write(self._store, embedding))
        self._writes[embedding.key] = task
        task.add_done_callback(lambda _: self._writes.pop(embedding.key, None))

    async def persist(self, embedding: Embedding) -> None:
        """Return once the durable store has the embedding. Raises ResourceExhausted, Unavailable."""
        under_way = self._writes.get(embedding.key)
        if under_way is not None:
            await asyncio.wait({under_way})
        if self._store is not None and not await self._store.contains(embedding.key):
            await self._store.write(embedding)
            metrics.WRITES.labels("written").inc()

    async def close(self) -> None:
        """Finish the writes that are under way."""
        await asyncio.gather(*self._writes.values())

    async def _write(self, store: EmbeddingStore, embedding: Embedding) -> None:
        try:
            await store.write(embedding)
            metrics.WRITES.labels("written").inc()
        except VPLabError as error:
            # The caller has its answer; the embedding is only computed again one day.
            metrics.WRITES.labels("failed").inc()
            _log.warning("embedding_not_stored", key=embedding.key, reason=error.reason, error=error.message)
