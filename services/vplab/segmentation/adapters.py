"""Adapters by name: rows of the segmenter's bank, or graphs of their own, swapped when an alias moves."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from vplab.errors import DataLoss, InvalidInput
from vplab.segmentation import metrics
from vplab.segmentation.adapter_bank import AdapterBank, BankedAdapter
from vplab.segmentation.errors import AdapterBaseMismatch, ModelUnsupported
from vplab.segmentation.followed_names import FollowedNames
from vplab.segmentation.loaded_graphs import LoadedGraphs
from vplab.segmentation.ports import BankLoader, LoadedSegmenter, ModelSource, Row, SegmenterLoader
from vplab.segmentation.values import AdapterVersion, SegmenterVersion
from vplab.vision.adapters.bank_layout import has_place_for
from vplab.vision.specs import SegmenterSpec

_log = structlog.get_logger(__name__)


class Adapters:
    """Resolves names and keeps adapters in memory; a promoted version is ready before it serves.

    An adapter of the kind that its segmenter's bank takes is a row there and shares its runs with others; any other is
    the segmenter's graph with the adapter merged in.
    """

    def __init__(
        self,
        source: ModelSource,
        loader: SegmenterLoader,
        banks: BankLoader | None,
        *,
        max_graph_bytes: int,
        max_banks: int,
    ) -> None:
        """banks: None leaves banks unused. max_graph_bytes: of graphs with an adapter merged in, together."""
        self._source = source
        self._rows = banks
        self._names: FollowedNames[AdapterVersion] = FollowedNames(source.find_adapter, self._prepare)
        self._graphs: LoadedGraphs[AdapterVersion, LoadedSegmenter] = LoadedGraphs(
            source, loader, "adapter", metrics.ADAPTERS_LOADED, max_bytes=max_graph_bytes
        )
        self._banks: LoadedGraphs[SegmenterVersion, AdapterBank] | None = None
        if banks is not None:
            self._banks = LoadedGraphs(source, _Banks(banks), "bank", None, max_loaded=max_banks)
        self._bases: dict[str, SegmenterVersion] = {}
        self._without_row: set[str] = set()

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
        self._bases[base.model.digest] = base  # as many as there are versions of segmenters in use
        return found

    @asynccontextmanager
    async def decoder(self, version: AdapterVersion) -> AsyncIterator[LoadedSegmenter | BankedAdapter]:
        """Give what decodes with an adapter that ``resolve`` returned, kept in memory for as long as the context lasts.

        Raises as ``LoadedGraphs.get``.
        """
        bank = await self._bank_for(version)
        banked = None if bank is None else await self._take(bank, version)
        if bank is None or banked is None:
            yield await self._graphs.get(version)
            return
        try:
            yield banked
        finally:
            bank.give_back(banked)

    def served(self) -> Sequence[tuple[AdapterVersion, LoadedSegmenter | AdapterBank, tuple[str, ...]]]:
        """Return the adapters in memory, what runs them, and the aliases that lead to them here."""
        merged: list[tuple[AdapterVersion, LoadedSegmenter | AdapterBank]] = list(self._graphs.loaded())
        banked = [(version, bank) for bank in self._loaded_banks() for version in bank.resident()]
        return [(version, graph, self._names.aliases_of(version.model)) for version, graph in (*merged, *banked)]

    def moved(self, alias: str) -> None:
        """Take note that an alias may mean something else now."""
        self._names.moved(alias)

    async def close(self) -> None:
        """End what is under way and begin no further load."""
        await self._names.close()
        self._graphs.close()
        for bank in self._loaded_banks():
            bank.close()
        if self._banks is not None:
            self._banks.close()

    async def _prepare(self, old: AdapterVersion, new: AdapterVersion) -> None:
        """Have in memory what an alias means now, if what it meant is."""
        if self._graphs.holds(old) or any(bank.holds(old) for bank in self._loaded_banks()):
            async with self.decoder(new):
                pass

    async def _bank_for(self, version: AdapterVersion) -> AdapterBank | None:
        """Return the bank of an adapter's segmenter if it takes the adapter, loading it if needed."""
        base = self._bases.get(version.segmenter.digest)
        if self._banks is None or base is None or base.spec.adapter_bank is None or version.adapter is None:
            return None
        if version.model.digest in self._without_row or version.spec.without_bank != base.spec.without_bank:
            return None
        if not has_place_for(base.spec.adapter_bank.adapter, version.adapter):
            return None
        return await self._banks.get(base)

    async def _take(self, bank: AdapterBank, version: AdapterVersion) -> BankedAdapter | None:
        try:
            banked = await bank.take(version, lambda: self._read(version, bank))
        except (InvalidInput, DataLoss) as error:
            # Numbers beyond half precision, say. Its graph was compared when it was published, so that is served.
            _log.warning("adapter_not_banked", name=version.model.name, error=error.message)
            self._without_row.add(version.model.digest)
            return None
        resident = [(len(bank.resident()), bank.row_bytes) for bank in self._loaded_banks()]
        metrics.BANK_ADAPTERS.set(sum(count for count, _ in resident))
        metrics.BANK_BYTES.set(sum(count * row_bytes for count, row_bytes in resident))
        return banked

    async def _read(self, version: AdapterVersion, bank: AdapterBank) -> Row:
        assert self._rows is not None
        rows = self._rows
        async with self._source.files(version.model) as folder:
            return await asyncio.to_thread(rows.read_row, folder, bank.layout)

    def _loaded_banks(self) -> list[AdapterBank]:
        return [] if self._banks is None else [bank for _, bank in self._banks.loaded()]


class _Banks:
    """Implements GraphLoader for banks with their rows."""

    def __init__(self, loader: BankLoader) -> None:
        self._loader = loader

    def load(self, name: str, role: str, folder: Path, spec: SegmenterSpec) -> AdapterBank:
        return AdapterBank(self._loader.load(name, role, folder, spec))
