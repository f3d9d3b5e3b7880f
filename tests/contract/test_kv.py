"""One suite over every key-value store: in memory and LevelDB behave alike."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from covey.store.kv import FORMAT_KEY, KeyValues, StoreError, after_prefix, claim_format
from covey.store.leveldb import open_leveldb
from covey.store.memory import MemoryStore
from covey.store.writer import Overlay

Open = Callable[[], KeyValues]


@pytest.fixture(params=["memory", "leveldb"])
def kv(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[KeyValues]:
    store: KeyValues = MemoryStore() if request.param == "memory" else open_leveldb(tmp_path / "data")
    yield store
    store.close()


def test_what_is_written_is_read(kv: KeyValues) -> None:
    kv.write([(b"a", b"1"), (b"b", b""), (b"c", None)])
    assert (kv.get(b"a"), kv.get(b"b"), kv.get(b"c")) == (b"1", b"", None)


def test_within_a_batch_the_last_one_counts(kv: KeyValues) -> None:
    kv.write([(b"a", b"1"), (b"a", None), (b"b", None), (b"b", b"2")])
    assert (kv.get(b"a"), kv.get(b"b")) == (None, b"2")


def test_scans_are_sorted_bounded_and_start_where_told(kv: KeyValues) -> None:
    kv.write([(key, b"") for key in (b"x/2", b"x/1", b"x/3", b"w", b"x0", b"y")])

    def keys(**how: object) -> list[bytes]:
        return [key for key, _ in kv.scan(b"x/", **how)]  # type: ignore[arg-type]

    assert keys() == [b"x/1", b"x/2", b"x/3"]
    assert keys(reverse=True) == [b"x/3", b"x/2", b"x/1"]
    assert keys(start=b"x/2") == [b"x/2", b"x/3"]
    assert keys(start=b"x/2", reverse=True) == [b"x/2", b"x/1"]
    assert keys(limit=2) == [b"x/1", b"x/2"]
    assert keys(limit=1, reverse=True) == [b"x/3"]
    assert keys(limit=0) == []
    assert keys(start=b"a") == keys() == list(reversed(keys(start=b"z", reverse=True)))
    assert keys(start=b"z") == [] == keys(start=b"a", reverse=True)


def test_a_prefix_of_high_bytes(kv: KeyValues) -> None:
    kv.write([(b"\xff", b"1"), (b"\xff\xff", b"2"), (b"\xfe", b"3")])
    assert [key for key, _ in kv.scan(b"\xff")] == [b"\xff", b"\xff\xff"]
    assert [key for key, _ in kv.scan(b"\xff", start=b"\xff", reverse=True)] == [b"\xff"]
    assert [key for key, _ in kv.scan(b"", limit=100)] == [b"m/format", b"\xfe", b"\xff", b"\xff\xff"]
    assert after_prefix(b"a\xff") == b"b"


def test_a_scan_does_not_see_what_is_written_during_it(kv: KeyValues) -> None:
    kv.write([(b"x/1", b"old"), (b"x/2", b"old")])
    pairs = kv.scan(b"x/")
    assert next(pairs) == (b"x/1", b"old")
    kv.write([(b"x/2", b"new"), (b"x/3", b"new")])
    assert list(pairs) == [(b"x/2", b"old")]


def test_a_snapshot_stays_as_it_was(kv: KeyValues) -> None:
    kv.write([(b"x/1", b"old")])
    with kv.snapshot() as snapshot:
        kv.write([(b"x/1", b"new"), (b"x/2", b"new")])
        assert snapshot.get(b"x/1") == b"old"
        assert list(snapshot.scan(b"x/")) == [(b"x/1", b"old")]
        with snapshot.snapshot() as again:
            assert again.get(b"x/2") is None
    assert kv.get(b"x/1") == b"new"


def test_a_closed_store_says_so(kv: KeyValues) -> None:
    kv.close()
    kv.close()
    for work in (lambda: kv.get(b"a"), lambda: list(kv.scan(b"")), lambda: kv.write([(b"a", b"")])):
        with pytest.raises(StoreError, match="closed") as refusal:
            work()
        assert refusal.value.reason == "closed"


def test_a_newer_format_is_refused_by_name(kv: KeyValues) -> None:
    kv.write([(FORMAT_KEY, b"7")])
    with pytest.raises(StoreError, match=r"format 7.*upgrade Covey"):
        claim_format(kv, "here")


def test_a_strange_format_is_refused(kv: KeyValues) -> None:
    kv.write([(FORMAT_KEY, b"\xff")])
    with pytest.raises(StoreError, match="covey store repair"):
        claim_format(kv, "here")
    kv.write([(FORMAT_KEY, None), (b"x", b"")])
    with pytest.raises(StoreError, match="not Covey's"):
        claim_format(kv, "here")


_KEYS = st.binary(min_size=1, max_size=3).map(lambda key: b"x/" + key)
_BATCHES = st.lists(st.tuples(_KEYS, st.none() | st.binary(max_size=2)), max_size=12)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    below=_BATCHES,
    above=_BATCHES,
    prefix=st.sampled_from([b"", b"x", b"x/\x00"]),
    start=st.none() | _KEYS,
    limit=st.none() | st.integers(0, 6),
    reverse=st.booleans(),
)
def test_an_overlay_reads_as_if_it_had_been_written(
    kv: KeyValues,
    below: list[tuple[bytes, bytes | None]],
    above: list[tuple[bytes, bytes | None]],
    prefix: bytes,
    start: bytes | None,
    limit: int | None,
    reverse: bool,
) -> None:
    """Both stores, and the writer's overlay over each, against a sorted dict."""
    kv.write([(key, None) for key, _ in kv.scan(b"x/")])
    kv.write(below)
    overlay = Overlay(kv)
    overlay.put(above)
    model = {FORMAT_KEY: b"1"}
    for key, value in [*below, *above]:
        if value is None:
            model.pop(key, None)
        else:
            model[key] = value
    expected = [pair for pair in sorted(model.items(), reverse=reverse) if pair[0].startswith(prefix)]
    if start is not None:
        expected = [pair for pair in expected if (pair[0] <= start if reverse else pair[0] >= start)]
    expected = expected if limit is None else expected[:limit]
    assert list(overlay.scan(prefix, start=start, limit=limit, reverse=reverse)) == expected
    with overlay.snapshot() as frozen:
        overlay.put([(b"x/late", b"")])
        assert list(frozen.scan(prefix, start=start, limit=limit, reverse=reverse)) == expected
    kv.write(above)
    assert list(kv.scan(prefix, start=start, limit=limit, reverse=reverse)) == expected
