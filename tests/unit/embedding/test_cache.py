"""Both tiers stay within their bounds and never return what was damaged."""

import asyncio
import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from obstore.store import LocalStore

from fakes.s3_server import running_s3
from vplab.embedding.backends._embedding_file import Damaged, decode_embedding, encode_embedding
from vplab.embedding.backends.obstore_embeddings import ObstoreEmbeddings, open_bucket
from vplab.embedding.cache import EmbeddingCache, HostCache
from vplab.embedding.values import Embedding, ModelRef, NamedTensor, Precision, Tier
from vplab.errors import ResourceExhausted, Unavailable


def an_embedding(number: int, precision: Precision = Precision.FLOAT32) -> Embedding:
    """1,024 or 512 bytes of values."""
    values = np.random.default_rng(number).normal(size=(4, 8, 8)).astype(precision.value)
    return Embedding(
        key=f"{number:064x}",
        encoder=ModelRef("artifacts/tiny/versions/1", "d" * 64),
        image_digest="e" * 64,
        image_hw=(480, 640),
        precision=precision,
        tensors=(NamedTensor("image_embedding", "image_embedding", values),),
    )


def same(left: Embedding, right: Embedding) -> bool:
    arrays = zip(left.tensors, right.tensors, strict=True)
    head = [
        (e.key, e.encoder, e.image_digest, e.image_hw, e.precision, [(t.name, t.role) for t in e.tensors])
        for e in (left, right)
    ]
    return head[0] == head[1] and all(
        a.array.dtype == b.array.dtype and np.array_equal(a.array, b.array) for a, b in arrays
    )


def test_the_host_cache_drops_what_was_used_longest_ago() -> None:
    cache = HostCache(max_bytes=3 * 1024)
    for number in (1, 2, 3):
        cache.put(an_embedding(number))
    assert cache.get(an_embedding(1).key) is not None
    cache.put(an_embedding(4))
    assert cache.get(an_embedding(2).key) is None
    assert cache.get(an_embedding(1).key) is not None
    assert cache.num_bytes == 3 * 1024


def test_the_host_cache_does_not_count_an_entry_twice_and_refuses_giants() -> None:
    cache = HostCache(max_bytes=2000)
    for _ in range(3):
        cache.put(an_embedding(1))
    assert (len(cache), cache.num_bytes) == (1, 1024)
    HostCache(max_bytes=1000).put(an_embedding(2))
    small = HostCache(max_bytes=1000)
    small.put(an_embedding(1))
    assert (len(small), small.num_bytes) == (0, 0)


@pytest.mark.parametrize("precision", Precision)
def test_an_embedding_survives_its_file(precision: Precision) -> None:
    embedding = an_embedding(5, precision)
    assert same(decode_embedding(encode_embedding(embedding)), embedding)


@given(position=st.integers(0, 10_000), flip=st.integers(1, 255), keep=st.integers(0, 10_000))
def test_a_changed_or_cut_file_is_damaged(position: int, flip: int, keep: int) -> None:
    data = bytearray(encode_embedding(an_embedding(1)))
    cut = bytes(data[: keep % len(data)])
    with pytest.raises(Damaged):
        decode_embedding(cut)
    data[position % len(data)] ^= flip
    try:
        read = decode_embedding(bytes(data))
    except Damaged:
        return
    # A flip in a JSON blank or such changes nothing that is read.
    assert same(read, an_embedding(1))


@given(st.binary(max_size=300))
def test_any_other_bytes_are_damaged(data: bytes) -> None:
    with pytest.raises(Damaged):
        decode_embedding(data)


async def test_a_stored_embedding_is_found_after_a_restart(tmp_path: Path) -> None:
    for turn in range(2):
        store = ObstoreEmbeddings(LocalStore(tmp_path), max_bytes=1 << 20)
        await store.index()
        if turn == 0:
            await store.write(an_embedding(1))
        assert await store.contains(an_embedding(1).key)
        found = await store.read(an_embedding(1).key)
        assert found is not None
        assert same(found, an_embedding(1))
        assert await store.read(an_embedding(2).key) is None
        store.close()


async def test_a_damaged_file_is_a_miss_and_removed(tmp_path: Path) -> None:
    store = ObstoreEmbeddings(LocalStore(tmp_path), max_bytes=1 << 20)
    await store.write(an_embedding(1))
    (file,) = tmp_path.glob("*/*.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert await store.read(an_embedding(1).key) is None
    assert not file.exists()
    assert not await store.contains(an_embedding(1).key)


async def test_a_file_under_another_key_is_a_miss(tmp_path: Path) -> None:
    store = ObstoreEmbeddings(LocalStore(tmp_path), max_bytes=1 << 20)
    await store.write(an_embedding(1))
    (file,) = tmp_path.glob("*/*.safetensors")
    wrong = file.with_name(f"{2:064x}.safetensors")
    file.rename(wrong)
    assert await store.read(f"{2:064x}") is None
    assert not wrong.exists()


async def test_the_store_drops_what_was_used_longest_ago_also_after_a_restart(tmp_path: Path) -> None:
    size = len(encode_embedding(an_embedding(1)))
    store = ObstoreEmbeddings(LocalStore(tmp_path), max_bytes=4 * size)
    for number in (1, 2, 3, 4):
        await store.write(an_embedding(number))
        path = tmp_path / "00" / f"{number:064x}.safetensors"
        os.utime(path, (time.time() - 1000 + number, time.time() - 1000 + number))
    assert await store.read(an_embedding(1).key) is not None  # now the newest

    store = ObstoreEmbeddings(LocalStore(tmp_path), max_bytes=2 * size)
    await store.index()
    kept = {number for number in (1, 2, 3, 4) if await store.read(an_embedding(number).key)}
    assert kept == {1, 4}


async def test_staging_files_of_a_killed_write_are_removed(tmp_path: Path) -> None:
    (tmp_path / "ab").mkdir()
    leftover = tmp_path / "ab" / "cd.safetensors#1"
    leftover.write_bytes(b"half")
    store = ObstoreEmbeddings(LocalStore(tmp_path), max_bytes=1000)
    await store.index()
    assert not leftover.exists()


async def test_what_is_found_in_the_store_moves_into_memory(tmp_path: Path) -> None:
    store = ObstoreEmbeddings(LocalStore(tmp_path), max_bytes=1 << 20)
    await store.write(an_embedding(1))
    cache = EmbeddingCache(HostCache(1 << 20), store)
    tiers = []
    for _ in range(2):
        found = await cache.get(an_embedding(1).key)
        assert found is not None
        tiers.append(found.tier)
    assert tiers == [Tier.DURABLE, Tier.HOST]


async def test_a_full_disk_costs_the_embedding_and_not_the_request() -> None:
    class FullStore:
        async def read(self, key: str) -> None:
            return None

        async def contains(self, key: str) -> bool:
            return False

        async def write(self, embedding: Embedding) -> None:
            raise ResourceExhausted("full", reason="STORAGE_FULL")

    cache = EmbeddingCache(HostCache(1 << 20), FullStore())
    cache.put(an_embedding(1))
    await cache.close()
    assert (await cache.get(an_embedding(1).key)).tier is Tier.HOST
    with pytest.raises(ResourceExhausted):
        await cache.persist(an_embedding(1))


async def test_an_embedding_that_is_being_written_is_waited_for_and_not_written_twice() -> None:
    class SlowStore:
        def __init__(self) -> None:
            self.written: list[str] = []

        async def read(self, key: str) -> Embedding | None:
            return None

        async def write(self, embedding: Embedding) -> None:
            await asyncio.sleep(0.01)
            self.written.append(embedding.key)

        async def contains(self, key: str) -> bool:
            return key in self.written

    store = SlowStore()
    cache = EmbeddingCache(HostCache(1 << 20), store)
    cache.put(an_embedding(1))
    await cache.persist(an_embedding(1))
    assert store.written == [an_embedding(1).key]
    await cache.close()


async def test_a_bucket_keeps_embeddings_like_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    with running_s3() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        size = len(encode_embedding(an_embedding(1)))
        for turn in range(2):
            store = ObstoreEmbeddings(open_bucket(server.url("embeddings")), max_bytes=2 * size)
            await store.index()
            if turn == 0:
                for number in (1, 2, 3):
                    await store.write(an_embedding(number))
            kept = {number for number in (1, 2, 3) if await store.read(an_embedding(number).key)}
            assert kept == {2, 3}
            store.close()


async def test_a_bucket_that_is_away_costs_a_miss_and_is_left_alone_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environment = {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_REGION": "us-east-1"}
    for name, value in (environment | {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}).items():
        monkeypatch.setenv(name, value)
    store = ObstoreEmbeddings(open_bucket("s3://absent/embeddings"), max_bytes=1 << 20)
    assert await store.read(an_embedding(1).key) is None
    with pytest.raises(Unavailable):
        await store.write(an_embedding(1))

    def asked_again(*_: object) -> None:
        raise AssertionError("the bucket was asked again")

    monkeypatch.setattr("obstore.get", asked_again)
    assert await store.read(an_embedding(1).key) is None
    store.close()
