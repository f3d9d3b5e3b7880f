"""Feeds on the store in memory: founding, appending, reading, and going on after a restart or a restore."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio

from covey.contracts.feeds import Admit, KeyRevoke, OwnerStanding, Remove, SessionEnd
from covey.errors import CallError
from covey.store.checking import check_reader
from covey.store.feed_log import GENESIS_KEY, INCARNATION_KEY, read_entries, read_head, record, settle_anew
from covey.store.feeds import Author, Decision, Feeds, open_feeds
from covey.store.genesis import found as begin
from covey.store.genesis import parse_recovery_key
from covey.store.hybrid_clock import wall_seconds
from covey.store.identity import Identity
from covey.store.kv import Batch, Reader, StoreError
from covey.store.memory import MemoryStore
from covey.store.rows import KeyRow, MemberRow, SessionRow, StandingRow
from covey.store.view import VIEW_KEY, View
from covey.store.writer import Overlay, open_store
from covey.telemetry.metrics import Metrics

ALICE = Identity(b"\1" * 32)
MALLORY = Identity(b"\2" * 32)


class Shelf(MemoryStore):
    """Survives its closing, as a disk does."""

    def close(self) -> None:
        pass


class FixedClock:
    def __init__(self, seconds: float = 1_000_000.0) -> None:
        self.seconds = seconds

    def now(self) -> float:
        return self.seconds


@asynccontextmanager
async def node(kv: MemoryStore, *, clock: FixedClock | None = None, found: bool = True) -> AsyncGenerator[Feeds, None]:
    async with (
        open_store(kv, Metrics()) as store,
        open_feeds(store, ALICE, clock or FixedClock(), node_name="alice", roles=("auth", "web"), found=found) as feeds,
    ):
        yield feeds


async def test_a_network_whose_recovery_key_nobody_saw_is_founded_again() -> None:
    """A first start that failed, as where the port is taken: the key was in that process's memory alone."""
    kv = Shelf()
    async with node(kv) as feeds:
        first = feeds.network_id
    kv.write([(b"l/usage/counts", b"of a program that only chats")])
    async with node(kv) as feeds:
        assert kv.get(b"l/usage/counts") is not None
        assert feeds.recovery_key is not None
        second = feeds.network_id
        assert second != first
        assert feeds.heads() == {feeds.own("members"): 1}
        assert check_reader(feeds.reader).problems == ()
        await feeds.recovery_key_shown()
    async with node(kv) as feeds:
        assert (feeds.network_id, feeds.recovery_key) == (second, None)


@pytest.mark.parametrize("used", ["an entry", "a row of this node's own"])
async def test_a_network_that_was_used_stays_whoever_saw_its_recovery_key(used: str) -> None:
    kv = Shelf()
    async with node(kv) as feeds:
        network_id = feeds.network_id
        if used == "an entry":
            await feeds.append(lambda _: (SessionEnd(b"s"),))
    if used != "an entry":
        kv.write([(b"l/auth/invite/1", b"")])
    async with node(kv) as feeds:
        assert (feeds.network_id, feeds.recovery_key) == (network_id, None)


async def test_founding_admits_the_founder_and_shows_the_recovery_key_once() -> None:
    kv = Shelf()
    async with node(kv) as feeds:
        assert feeds.recovery_key is not None
        parse_recovery_key(feeds.recovery_key)
        member = feeds.view.get(MemberRow, ALICE.peer_id)
        assert member is not None
        assert (member.name, member.roles) == ("alice", ("auth", "web"))
        network_id, key = feeds.network_id, feeds.recovery_key
        assert feeds.heads() == {feeds.own("members"): 1}
    everything = b"".join(key + value for key, value in kv.scan(b""))
    assert bytes(parse_recovery_key(key)) not in everything
    async with node(kv, found=False) as feeds:
        assert feeds.network_id == network_id
        assert feeds.recovery_key is None
        assert feeds.heads() == {feeds.own("members"): 1}


async def test_without_a_network_it_is_refused() -> None:
    async with open_store(MemoryStore(), Metrics()) as store:
        with pytest.raises(CallError, match="covey join") as refusal:
            async with open_feeds(store, ALICE, FixedClock(), node_name="a"):
                pass
        assert refusal.value.reason == "no_network"
        assert store.reader.get(b"m/genesis") is None


async def test_another_node_s_key_is_refused() -> None:
    kv = Shelf()
    async with node(kv):
        pass
    async with open_store(kv, Metrics()) as store:
        with pytest.raises(CallError, match="not that of an auth node"):
            async with open_feeds(store, MALLORY, FixedClock(), node_name="m", found=True):
                pass


async def test_a_role_gained_later_is_admitted() -> None:
    kv = Shelf()
    async with node(kv):
        pass
    async with (
        open_store(kv, Metrics()) as store,
        open_feeds(store, ALICE, FixedClock(), node_name="x", roles=("gateway",)) as feeds,
    ):
        member = feeds.view.get(MemberRow, ALICE.peer_id)
        assert member is not None
        assert (member.name, member.roles) == ("alice", ("auth", "gateway", "web"))


async def test_one_append_may_write_several_kinds_at_once() -> None:
    async with node(MemoryStore()) as feeds:
        receipt = await feeds.append(lambda view: [SessionEnd(b"s"), KeyRevoke("k", "x"), KeyRevoke("l", "x")])
        assert receipt.heads == {feeds.own("keys"): 1, feeds.own("secret"): 1}
        assert [row.id for row in feeds.view.all(KeyRow)] == ["k", "l"]
        assert feeds.view.get(SessionRow, b"s".hex()) == SessionRow(id=b"s".hex(), ended=True)
        (secret,) = feeds.history("secret")
        assert secret.entry.deps == {feeds.own("members"): 1, feeds.own("keys"): 1}
        (keys,) = feeds.history("keys")
        assert keys.entry.deps == {feeds.own("members"): 1}
        await feeds.append(lambda view: [SessionEnd(b"t")])
        *_, last = feeds.history("secret")
        assert last.entry.deps == {}


async def test_nothing_to_do_writes_nothing() -> None:
    async with node(MemoryStore()) as feeds:
        receipt = await feeds.append(lambda view: [])
        assert receipt.heads == {}
        assert len(feeds.heads()) == 1


async def test_a_decision_sees_all_that_came_before_it() -> None:
    """64 tasks want the same epoch: each gets its own."""

    async with node(MemoryStore()) as feeds:

        def next_epoch(view: View) -> list[OwnerStanding]:
            row = view.get(StandingRow, "o")
            return [OwnerStanding("o", row.epoch + 1 if row else 1, True, "x")]

        async with trio.open_nursery() as nursery:
            for _ in range(64):
                nursery.start_soon(feeds.append, next_epoch)
        assert feeds.view.get(StandingRow, "o") == StandingRow(owner="o", epoch=64, active=True)


async def test_a_decision_may_refuse() -> None:
    def refuse(view: View) -> list[KeyRevoke]:
        raise CallError("conflict", "That name is taken.")

    async with node(MemoryStore()) as feeds:
        with pytest.raises(CallError, match="taken"):
            await feeds.append(refuse)
        assert len(feeds.heads()) == 1


async def test_too_large_a_change_is_refused_and_nothing_is_written() -> None:
    async with node(MemoryStore()) as feeds:
        with pytest.raises(CallError) as refusal:
            await feeds.append(
                lambda view: [Admit("p", (), "n", "x"), *(KeyRevoke("k" * 500, "x") for _ in range(999))]
            )
        assert refusal.value.code == "too_large"
        assert feeds.heads() == {feeds.own("members"): 1}


async def test_a_removed_node_writes_no_more() -> None:
    async with node(MemoryStore()) as feeds:
        await feeds.append(lambda view: [Remove(ALICE.peer_id, {}, "recovery")])
        with pytest.raises(CallError) as refusal:
            await feeds.append(lambda view: [KeyRevoke("k", "x")])
        assert refusal.value.code == "forbidden"


async def test_the_clock_never_goes_back() -> None:
    kv, clock = Shelf(), FixedClock()
    async with node(kv, clock=clock) as feeds:
        await feeds.append(lambda view: [KeyRevoke("k", "x")])
    clock.seconds -= 5000
    async with node(kv, clock=clock) as feeds:
        await feeds.append(lambda view: [KeyRevoke("l", "x")])
        clocks = [sealed.entry.clock for sealed in feeds.history("keys")]
        assert clocks == sorted(set(clocks))
        assert wall_seconds(clocks[-1]) >= 1_000_000
        newest = [sealed.entry.clock for sealed in feeds.history("keys", newest_first=True)]
        assert newest == clocks[::-1]


async def test_without_its_incarnation_a_node_begins_another() -> None:
    """As after a restore: sequence numbers of the old feed are never used again."""
    kv = Shelf()
    async with node(kv) as feeds:
        await feeds.append(lambda view: [KeyRevoke("k", "x")])
        old = feeds.own("keys")
    kv.write([(INCARNATION_KEY, None)])
    async with node(kv) as feeds:
        await feeds.append(lambda view: [KeyRevoke("l", "x")])
        assert feeds.own("keys") != old
        assert feeds.heads()[old] == feeds.heads()[feeds.own("keys")] == 1
        assert [sealed.entry.feed for sealed in feeds.history("keys")] == [old, feeds.own("keys")]
        *_, last = feeds.history("keys")
        assert last.entry.deps[old] == 1
        assert check_reader(kv).problems == ()


async def test_a_view_made_by_older_rules_is_made_anew() -> None:
    kv = Shelf()
    async with node(kv) as feeds:
        await feeds.append(lambda view: [KeyRevoke("k", "x")])
        expected = feeds.view.hash("keys")
    kv.write([(VIEW_KEY, b"0"), (b"v/keys/key/k", b"old"), (b"v/keys/key/stale", b"old")])
    async with node(kv) as feeds:
        assert feeds.view.hash("keys") == expected
        assert check_reader(kv).problems == ()


async def test_a_newer_view_is_refused_by_name() -> None:
    kv = Shelf()
    async with node(kv):
        pass
    kv.write([(VIEW_KEY, b"99")])
    async with open_store(kv, Metrics()) as store:
        with pytest.raises(StoreError, match="upgrade Covey"):
            async with open_feeds(store, ALICE, FixedClock(), node_name="a"):
                pass


async def test_entries_come_in_either_order_and_from_anywhere() -> None:
    kv = Shelf()
    async with node(kv) as feeds:
        for number in range(4):
            await feeds.append(lambda view, number=number: [KeyRevoke(f"k{number}", "x")])
        feed = feeds.own("keys")
    for after, seqs in ((0, [1, 2, 3, 4]), (2, [3, 4]), (4, [])):
        assert [sealed.entry.seq for sealed in read_entries(kv, feed, after=after)] == seqs
        assert [sealed.entry.seq for sealed in read_entries(kv, feed, after=after, reverse=True)] == seqs[::-1]


def blank(genesis: bytes) -> MemoryStore:
    """The store of a node that knows of a network, and no more."""
    kv = MemoryStore()
    overlay = Overlay(kv)
    overlay.put([(GENESIS_KEY, genesis)])
    settle_anew(overlay)
    kv.write(list(overlay.changes.items()))
    return kv


def test_two_nodes_that_hold_the_same_entries_have_the_same_view() -> None:
    """Two authors, their entries applied in opposite orders."""
    genesis, _ = begin(ALICE.peer_id, 1.0)
    alice_kv, bob_kv = blank(genesis), blank(genesis)
    bob = Identity(b"\3" * 32)
    alice_author, bob_author = Author(ALICE, genesis, "0" * 16), Author(bob, genesis, "1" * 16)

    def write(kv: MemoryStore, author: Author, now: float, *ops: object) -> None:
        kv.write(author.plan(kv, lambda _: ops, now)[0])  # type: ignore[arg-type, return-value]

    def copy(source: MemoryStore, target: MemoryStore, feed: str) -> None:
        for sealed in read_entries(source, feed, after=read_head(target, feed).seq):
            overlay = Overlay(target)
            record(overlay, sealed, read_head(target, feed))
            target.write(list(overlay.changes.items()))

    write(
        alice_kv,
        alice_author,
        2.0,
        Admit(ALICE.peer_id, ("auth",), "alice", "x"),
        Admit(bob.peer_id, ("auth",), "b", "x"),
    )
    copy(alice_kv, bob_kv, alice_author.own(alice_kv, "members"))
    write(alice_kv, alice_author, 9.0, OwnerStanding("o", 1, True, "x"), KeyRevoke("k", "x"))
    write(bob_kv, bob_author, 3.0, OwnerStanding("o", 1, False, "x"), Admit(bob.peer_id, ("auth",), "bob", "x"))
    copy(alice_kv, bob_kv, alice_author.own(alice_kv, "keys"))
    copy(bob_kv, alice_kv, bob_author.own(bob_kv, "keys"))
    copy(bob_kv, alice_kv, bob_author.own(bob_kv, "members"))
    for kind in ("members", "keys", "secret"):
        assert View(alice_kv).hash(kind) == View(bob_kv).hash(kind)
    assert View(bob_kv).get(StandingRow, "o") == StandingRow(owner="o", epoch=1, active=False)


class Recorder(MemoryStore):
    """Remembers which keys each batch wrote, and can refuse to write."""

    def __init__(self) -> None:
        self.batches: list[set[bytes]] = []
        self.full = False
        super().__init__()

    def write(self, batch: Batch) -> None:
        if self.full:
            raise StoreError("The disk is full.", reason="full")
        self.batches.append({key for key, _ in batch})
        super().write(batch)


async def test_a_decision_changes_feeds_and_this_node_s_own_corner_at_once_or_neither() -> None:
    kv = Recorder()
    async with node(kv) as feeds:

        def spend(reader: Reader) -> Decision[int]:
            left = int(reader.get(b"l/purse/coins") or b"3")
            if left == 0:
                raise CallError("conflict", "Nothing is left.")
            return Decision([KeyRevoke(f"k{left}", "x")], left - 1, [(b"l/purse/coins", str(left - 1).encode())])

        assert (await feeds.append_with(spend)).result == 2
        assert kv.batches[-1] >= {b"l/purse/coins", f"h/{feeds.own('keys')}".encode(), b"v/keys/key/k3"}
        kv.full = True
        with pytest.raises(StoreError):
            await feeds.append_with(spend)
        kv.full = False
        assert (kv.get(b"l/purse/coins"), len(list(feeds.view.all(KeyRow)))) == (b"2", 1)
        results = list[int]()

        async def one() -> None:
            try:
                results.append((await feeds.append_with(spend)).result)
            except CallError:
                results.append(-1)

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(one)
        assert sorted(results) == [-1] * 8 + [0, 1]
        assert len(list(feeds.view.all(KeyRow))) == 3


async def test_a_decision_may_concern_this_node_s_own_corner_alone() -> None:
    kv = MemoryStore()
    async with node(kv) as feeds:
        before = feeds.heads()
        kept = await feeds.append_with(lambda _: Decision((), "done", [(b"l/purse/coins", b"1")]))
        assert (kept.result, kept.heads) == ("done", {})
        assert (kv.get(b"l/purse/coins"), feeds.heads()) == (b"1", before)


async def test_a_decision_writes_to_the_feeds_by_operations_alone() -> None:
    kv = MemoryStore()
    async with node(kv) as feeds:
        with pytest.raises(ValueError, match="operations"):
            await feeds.append_with(lambda _: Decision((), None, [(b"v/keys/key/k", b"1")]))
        assert kv.get(b"v/keys/key/k") is None
