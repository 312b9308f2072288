"""Adapters by name: each is the segmenter's graph with the adapter merged in, swapped when an alias moves."""

from collections.abc import Sequence

from vplab.segmentation import metrics
from vplab.segmentation.errors import AdapterBaseMismatch, ModelUnsupported
from vplab.segmentation.followed_names import FollowedNames
from vplab.segmentation.loaded_graphs import LoadedGraphs
from vplab.segmentation.ports import LoadedSegmenter, ModelSource, SegmenterLoader
from vplab.segmentation.values import AdapterVersion, SegmenterVersion


class Adapters:
    """Resolves names and keeps merged graphs in memory; a promoted version is loaded and run once before it serves."""

    def __init__(self, source: ModelSource, loader: SegmenterLoader, max_bytes: int) -> None:
        self._names: FollowedNames[AdapterVersion] = FollowedNames(source.find_adapter, self._prepare)
        self._graphs: LoadedGraphs[AdapterVersion] = LoadedGraphs(
            source, loader, "adapter", metrics.ADAPTERS_LOADED, max_bytes=max_bytes
        )

    async def resolve(self, name: str, base: SegmenterVersion) -> AdapterVersion:
        """Return the version that a full version or alias name means here, once it is certain that it fits ``base``.

        Raises NotFound, ModelUnsupported, Unavailable, AdapterBaseMismatch.
        """
        found = await self._names.resolve(name)
        if found.segmenter.digest != base.model.digest:
            raise AdapterBaseMismatch(found.model.name, expected=found.segmenter.digest, actual=base.model.digest)
        if found.spec.embedding_shape != base.spec.embedding_shape:
            shapes = f"{list(found.spec.embedding_shape)}, its segmenter's {list(base.spec.embedding_shape)}"
            raise ModelUnsupported(found.model.name, "an adapter", f"its graph takes embeddings of {shapes}")
        return found

    async def get(self, version: AdapterVersion) -> LoadedSegmenter:
        """Return the merged graph, loading and warming it up if needed. Raises as ``LoadedGraphs.get``."""
        return await self._graphs.get(version)

    def served(self) -> Sequence[tuple[AdapterVersion, LoadedSegmenter, tuple[str, ...]]]:
        """Return the loaded adapters with the aliases that lead to them here."""
        return [(version, graph, self._names.aliases_of(version.model)) for version, graph in self._graphs.loaded()]

    def moved(self, alias: str) -> None:
        """Take note that an alias may mean something else now."""
        self._names.moved(alias)

    async def close(self) -> None:
        """End what is under way and begin no further load."""
        await self._names.close()
        self._graphs.close()

    async def _prepare(self, old: AdapterVersion, new: AdapterVersion) -> None:
        """Load what an alias means now, if what it meant is loaded."""
        if self._graphs.holds(old):
            await self._graphs.get(new)
