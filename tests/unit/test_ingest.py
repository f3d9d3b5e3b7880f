"""Entries from elsewhere: what is believed, in whatever order it comes, and what is refused without a trace."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from covey.contracts.feeds import Admit, Op, Remove, Rename, SessionEnd
from covey.store import ingest as module
from covey.store.checking import check_reader
from covey.store.entries import ENTRY_DOMAIN, NO_HASH, Entry, EntryError, FeedId, UnknownOpError, seal, unseal
from covey.store.feed_log import GENESIS_KEY
from covey.store.feeds import Feeds, open_feeds
from covey.store.identity import SIGNATURE_BYTES, Identity
from covey.store.ingest import Ingested, batches_after, install, next_batch, vector
from covey.store.kv import StoreError
from covey.store.memory import MemoryStore
from covey.store.rows import MemberRow
from covey.store.view import View
from covey.store.writer import Store, open_store
from covey.telemetry.metrics import Metrics

ALICE, BOB, CAROL, MALLORY = (Identity(bytes([number]) * 32) for number in range(1, 5))
NOW = 1_800_000_000.0


class Clock:
    def __init__(self, ahead_seconds: float = 0.0) -> None:
        self.ahead_seconds = ahead_seconds

    def now(self) -> float:
        return NOW + self.ahead_seconds


@asynccontextmanager
async def blank() -> AsyncGenerator[Store, None]:
    async with open_store(MemoryStore(), Metrics()) as store:
        yield store


@asynccontextmanager
async def alice() -> AsyncGenerator[tuple[Store, Feeds], None]:
    """The founder, with Bob let in as an auth node and Carol as an inference node."""
    async with blank() as store, open_feeds(store, ALICE, Clock(), node_name="alice", found=True) as feeds:
        await feeds.append(lambda _: [Admit(BOB.peer_id, ("auth",), "bob", "operator")])
        await feeds.append(lambda _: [Admit(CAROL.peer_id, ("inference",), "carol", "operator")])
        yield store, feeds


@asynccontextmanager
async def follower(store: Store) -> AsyncGenerator[Store, None]:
    """Another store, from the genesis on, with all that `store` holds."""
    async with blank() as other:
        await install(other, genesis(store), network(store), everything(store), now=NOW)
        yield other


@asynccontextmanager
async def bob(store: Store, clock: Clock | None = None) -> AsyncGenerator[tuple[Store, Feeds], None]:
    """Bob's node, who has heard all of Alice so far."""
    async with follower(store) as mine, open_feeds(mine, BOB, clock or Clock(), node_name="") as feeds:
        yield mine, feeds


def genesis(store: Store) -> bytes:
    return store.reader.get(GENESIS_KEY) or b""


def network(store: Store) -> str:
    return module.network_of(store.reader)


def everything(store: Store, have: dict[str, int] | None = None) -> list[bytes]:
    return [entry for batch in batches_after(store.reader, "members", have or {}) for entry in batch]


def members(store: Store) -> str:
    return View(store.reader).hash("members")


def forge(store: Store, author: Identity, *ops: Op, **fields: object) -> bytes:
    """The first entry of a new feed of an author; `fields` of `Entry` override."""
    entry = Entry(
        net=bytes.fromhex(network(store)),
        feed=str(FeedId("members", author.peer_id, "f" * 16)),
        seq=1,
        prev_hash=NO_HASH,
        clock=int(NOW * 1000) << 16,
        deps={},
        ops=ops or (Rename(ALICE.peer_id, "eve", "operator"),),
    )
    return seal(author, msgspec.structs.replace(entry, **fields)).stored


async def ingest(store: Store, entries: Sequence[bytes]) -> Ingested:
    return await module.ingest(store, "members", entries, now=NOW)


async def refused(store: Store, flaw: str, entries: Sequence[bytes]) -> None:
    """Nothing of it changes anything."""
    before = (members(store), vector(store.reader, "members"))
    taken = await ingest(store, entries)
    assert [error.reason for error in taken.refused][:1] == [flaw], taken
    assert "\n" not in taken.refused[0].message
    assert (members(store), vector(store.reader, "members")) == before


async def waits(store: Store, entries: Sequence[bytes]) -> None:
    """Nothing changes, and all of them are given back to be tried again."""
    before = (members(store), vector(store.reader, "members"))
    taken = await ingest(store, entries)
    assert sorted(sealed.stored for sealed in taken.early) == sorted(entries)
    assert not taken.refused
    assert (members(store), vector(store.reader, "members")) == before


async def test_a_blank_store_becomes_a_member_s() -> None:
    async with alice() as (store, feeds), follower(store) as other:
        assert members(other) == members(store)
        assert vector(other.reader, "members") == vector(store.reader, "members") == {feeds.own("members"): 3}
        assert network(other) == feeds.network_id
        assert not check_reader(other.reader).problems


async def test_installing_is_for_a_store_without_a_network() -> None:
    async with alice() as (store, _), follower(store) as other:
        with pytest.raises(StoreError) as refusal:
            await install(other, genesis(store), network(store), everything(store), now=NOW)
        assert refusal.value.reason == "in_use"


async def test_installing_another_network_than_the_invited_is_refused() -> None:
    async with alice() as (store, _), alice() as (others, _), blank() as mine:
        with pytest.raises(EntryError) as refusal:
            await install(mine, genesis(others), network(store), everything(others), now=NOW)
        assert refusal.value.reason == "wrong_network"
        with pytest.raises(EntryError) as refusal:
            await install(mine, genesis(store), network(store), everything(others), now=NOW)
        assert refusal.value.reason in ("wrong_network", "broken_chain")
        assert mine.reader.get(GENESIS_KEY) is None


async def test_a_node_without_a_network_takes_nothing_in() -> None:
    async with alice() as (store, _), blank() as mine:
        with pytest.raises(StoreError) as refusal:
            await ingest(mine, everything(store))
        assert refusal.value.reason == "no_network"


async def test_what_is_known_already_is_no_error_and_no_news() -> None:
    async with alice() as (store, feeds), follower(store) as other:
        assert (await ingest(other, everything(store))).applied == 0
        await feeds.append(lambda _: [Rename(CAROL.peer_id, "carla", "operator")])
        assert (await ingest(other, everything(store))).applied == 1
        assert members(other) == members(store)


async def test_not_one_bit_may_change() -> None:
    async with alice() as (store, feeds), follower(store) as other:
        await feeds.append(lambda _: [Rename(CAROL.peer_id, "carla", "operator")])
        (good,) = everything(store, vector(other.reader, "members"))
        before = members(other)
        for position in range(len(good)):
            bad = bytearray(good)
            bad[position] ^= 1 << position % 8
            assert (await ingest(other, [bytes(bad)])).refused
        for size in (0, 1, SIGNATURE_BYTES, len(good) - 1):
            assert (await ingest(other, [good[:size]])).refused
        assert members(other) == before
        assert (await ingest(other, [good])).applied == 1


async def test_out_of_order_and_with_gaps_nothing_is_taken() -> None:
    async with alice() as (store, feeds), follower(store) as other:
        for name in ("one", "two", "three"):
            await feeds.append(lambda _, name=name: [Rename(CAROL.peer_id, name, "operator")])
        one, two, three = everything(store, vector(other.reader, "members"))
        await waits(other, [three])
        await waits(other, [three, two])
        forked = forge(store, ALICE, feed=feeds.own("members"), seq=4, prev_hash=b"?" * 32)
        await refused(other, "broken_chain", [forked])
        assert (await ingest(other, [one])).applied == 1
        assert (await ingest(other, [one, two, three])).applied == 2


async def test_one_bad_entry_spoils_no_other_feed() -> None:
    async with alice() as (store, feeds), follower(store) as other:
        await feeds.append(lambda _: [Rename(CAROL.peer_id, "carla", "operator")])
        good = everything(store, vector(other.reader, "members"))
        bad = forge(store, BOB, prev_hash=b"?" * 32)
        after = forge(store, BOB, seq=2)
        taken = await ingest(other, [bad, after, *good])
        assert (taken.applied, [error.reason for error in taken.refused]) == (1, ["broken_chain"])
        assert members(other) == members(store)


async def test_only_auth_nodes_write() -> None:
    async with alice() as (store, _), follower(store) as other:
        await waits(other, [forge(store, MALLORY)])
        await waits(other, [forge(store, CAROL)])
        assert (await ingest(other, [forge(store, BOB)])).applied == 1


async def test_a_stranger_cannot_let_itself_in() -> None:
    async with alice() as (store, _), follower(store) as other:
        admit = Admit(MALLORY.peer_id, ("auth",), "m", "operator")
        await waits(other, [forge(store, MALLORY, admit)])


async def test_a_signature_by_another_key_is_refused() -> None:
    async with alice() as (store, _), follower(store) as other:
        good = forge(store, BOB)
        forged = MALLORY.sign(ENTRY_DOMAIN, good[SIGNATURE_BYTES:]) + good[SIGNATURE_BYTES:]
        await refused(other, "bad_signature", [forged])


async def test_entries_of_another_network_or_kind_are_refused() -> None:
    async with alice() as (store, feeds), follower(store) as other:
        await refused(other, "wrong_network", [forge(store, BOB, net=bytes(32))])
        await feeds.append(lambda _: [SessionEnd(b"s")])
        (secret,) = feeds.history("secret")
        await refused(other, "wrong_kind", [secret.stored])


async def test_an_operation_of_a_newer_covey_stops_its_feed() -> None:
    class Later(msgspec.Struct, frozen=True, tag="member.admit/2"):
        peer: str

    async with alice() as (store, _), follower(store) as other:
        body = msgspec.msgpack.decode(forge(store, BOB)[SIGNATURE_BYTES:])
        body["ops"] = [msgspec.to_builtins(Later("x"))]
        encoded = msgspec.msgpack.encode(body)
        (error,) = (await ingest(other, [BOB.sign(ENTRY_DOMAIN, encoded) + encoded])).refused
        assert isinstance(error, UnknownOpError)
        assert "upgrade" in error.message


async def test_two_different_entries_of_one_number_are_told_from_a_forgery() -> None:
    async with alice() as (store, _), follower(store) as other:
        await ingest(other, [forge(store, BOB)])
        twin = forge(store, BOB, Rename(BOB.peer_id, "b", "operator"))
        await refused(other, "bad_signature", [bytes(SIGNATURE_BYTES) + twin[SIGNATURE_BYTES:]])
        assert (await ingest(other, [twin])).frozen == [unseal(twin).entry.feed]


async def test_an_entry_waits_for_what_it_builds_on() -> None:
    async with alice() as (store, feeds), follower(store) as other:
        await feeds.append(lambda _: [Rename(CAROL.peer_id, "carla", "operator")])
        early = forge(store, BOB, deps={feeds.own("members"): 4})
        await waits(other, [early])
        news = everything(store, vector(other.reader, "members"))
        assert (await ingest(other, [early, *news])).applied == 2


async def two_authors(store: Store, feeds: Feeds, ahead_seconds: float = 0.0) -> list[bytes]:
    """Alice and Bob write in turns, each hearing the other; then Alice removes Bob. All of it, in a sender's order."""
    async with bob(store, Clock(ahead_seconds)) as (theirs, bobs):
        for turn in range(3):
            await bobs.append(lambda _, turn=turn: [Rename(CAROL.peer_id, f"c{turn}", "operator")])
            await ingest(store, everything(theirs, vector(store.reader, "members")))
            await feeds.append(lambda _, turn=turn: [Rename(BOB.peer_id, f"b{turn}", "operator")])
            await ingest(theirs, everything(store, vector(theirs.reader, "members")))
        cutoffs = {bobs.own("members"): 3}
        await feeds.append(lambda _: [Remove(BOB.peer_id, cutoffs, "operator")])
        await bobs.append(lambda _: [Rename(CAROL.peer_id, "late", "operator")])
        late = everything(theirs, vector(store.reader, "members"))
        assert len(late) == 1
        before = members(store)
        assert (await ingest(store, late)).applied == 1  # kept, for others may have built on it
        assert members(store) == before
    return everything(store)


@pytest.mark.parametrize("ahead_seconds", [0.0, 7200.0, -7200.0])
async def test_any_two_batches_of_a_sender_can_be_cut_apart(
    ahead_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where an author's clock is out of all reason: dependencies come first, whatever the clocks say."""
    async with alice() as (store, feeds):
        await two_authors(store, feeds, ahead_seconds)
        monkeypatch.setattr(module, "BATCH_ENTRIES_MAX", 1)
        async with blank() as other:
            await install(other, genesis(store), network(store), [], now=NOW)
            for batch in batches_after(store.reader, "members", {}):
                assert len(batch) == 1
                assert (await ingest(other, batch)).applied == 1
            assert members(other) == members(store)


async def test_a_removed_author_s_entries_count_up_to_the_cutoff_even_after_the_removal() -> None:
    """As when they come from another node, or in another kind of feed. A forgery in its name still needs its key."""
    async with alice() as (store, feeds), follower(store) as other:
        feed = str(FeedId("members", BOB.peer_id, "f" * 16))
        await feeds.append(lambda _: [Remove(BOB.peer_id, {feed: 1}, "operator")])
        await ingest(other, everything(store, vector(other.reader, "members")))
        first = forge(store, BOB, clock=int(NOW * 1000) + 1 << 16)
        after = forge(store, BOB, seq=2, prev_hash=unseal(first).hash, clock=int(NOW * 1000) + 2 << 16)
        before = members(other)
        assert (await ingest(other, [forge(store, BOB, feed=feed[:-1] + "e")])).applied == 1
        assert members(other) == before
        assert (await ingest(other, [first])).applied == 1
        assert members(other) != before
        before = members(other)
        assert (await ingest(other, [after])).applied == 1
        assert members(other) == before


def shuffles(entries: list[bytes]) -> st.SearchStrategy[list[bytes]]:
    """Any order that keeps each feed's own."""
    feeds: dict[str, list[bytes]] = {}
    for entry in entries:
        feeds.setdefault(unseal(entry).entry.feed, []).append(entry)
    turns = [feed for feed, of_feed in feeds.items() for _ in of_feed]

    def dealt(order: list[str]) -> list[bytes]:
        hands = {feed: iter(of_feed) for feed, of_feed in feeds.items()}
        return [next(hands[feed]) for feed in order]

    return st.permutations(turns).map(dealt)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_feeds_may_be_interleaved_in_any_way(data: st.DataObject) -> None:
    async def check() -> None:
        async with alice() as (store, feeds):
            entries = await two_authors(store, feeds)
            shuffled = data.draw(shuffles(entries))
            cut = data.draw(st.integers(0, len(entries)))
            async with blank() as other:
                await install(other, genesis(store), network(store), entries[:cut], now=NOW)
                await ingest(other, shuffled)
                assert members(other) == members(store)
                assert View(other.reader).get(MemberRow, BOB.peer_id) == feeds.view.get(MemberRow, BOB.peer_id)

    run(check)


def run(story: Callable[[], object]) -> None:
    trio.run(story)  # type: ignore[arg-type]


async def test_batches_are_bounded_and_say_where_they_lead(monkeypatch: pytest.MonkeyPatch) -> None:
    async with alice() as (store, feeds):
        for number in range(10):
            await feeds.append(lambda _, number=number: [Rename(CAROL.peer_id, f"c{number}", "operator")])
        own = feeds.own("members")
        assert next_batch(store.reader, "members", {own: 13}) is None
        assert next_batch(store.reader, "members", {own: 99}) is None  # a reader that is ahead
        monkeypatch.setattr(module, "BATCH_ENTRIES_MAX", 4)
        batch = next_batch(store.reader, "members", {own: 2, "members/unknown": 7})
        assert batch is not None
        assert (len(batch.entries), batch.vector) == (4, {own: 6, "members/unknown": 7})
        assert [len(batch) for batch in batches_after(store.reader, "members", {own: -5})] == [4, 4, 4, 1]
        monkeypatch.setattr(module, "BATCH_BYTES_MAX", 1)
        assert {len(batch) for batch in batches_after(store.reader, "members", {})} == {1}
