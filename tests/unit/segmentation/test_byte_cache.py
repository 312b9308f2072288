"""A cache that counts bytes."""

from vplab.segmentation.byte_cache import ByteCache


def cache(max_bytes: int, *, keeps_newest: bool = False) -> ByteCache[bytes]:
    return ByteCache("embedding", max_bytes, len, keeps_newest=keeps_newest)


def test_the_least_recently_used_goes_first() -> None:
    kept = cache(10)
    kept.put("a", b"1234")
    kept.put("b", b"1234")
    assert kept.get("a") == b"1234"
    kept.put("c", b"1234")
    assert kept.get("b") is None
    assert kept.get("a") is not None
    assert kept.num_bytes == 8


def test_what_exceeds_the_bound_alone_is_kept_only_where_asked_for() -> None:
    strict, lenient = cache(3), cache(3, keeps_newest=True)
    for kept in (strict, lenient):
        kept.put("small", b"12")
        kept.put("large", b"12345")
    assert len(strict) == 0
    assert lenient.get("large") == b"12345"
    assert len(lenient) == 1


def test_putting_again_counts_once() -> None:
    kept = cache(10)
    for _ in range(5):
        kept.put("a", b"1234")
    assert kept.num_bytes == 4
