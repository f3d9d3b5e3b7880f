"""The reading end of the tails, by itself: what comes of two kinds at once waits for nothing that is there."""

import pytest
import trio
from trio.testing import MockClock

from covey.contracts.auth import ADD_USER, Actor, AddUser
from covey.contracts.feeds import OwnerStanding, SessionEnd
from covey.contracts.replication import FeedEntries
from covey.store.feed_log import GENESIS_KEY
from covey.store.feeds import Author
from covey.store.ingest import batches_after
from covey.testing.cluster import CHEAP_AUTH, open_memory_cluster


@pytest.mark.parametrize("first", ["secret", "keys"])
async def test_what_builds_on_another_kind_is_taken_in_whichever_comes_first(
    autojump_clock: MockClock, seed: int, first: str
) -> None:
    async with open_memory_cluster(seed=seed) as cluster:
        alice = await cluster.found("alice")
        bob = await cluster.join("bob", run=[CHEAP_AUTH])
        await cluster.linked()
        await trio.sleep(1)
        cluster.network.cut(alice.machine, bob.machine)
        await trio.sleep(30)
        with trio.CancelScope(shield=True):
            autojump_clock.autojump_threshold = 0.2  # hashing a password takes a thread's time
            await alice.operator.call(ADD_USER, AddUser(Actor(), "ann", "correct horse battery 7"))
            autojump_clock.autojump_threshold = 0
        sync = bob.cluster.sync
        kinds = sorted(("secret", "keys"), key=lambda kind: kind != first)
        async with trio.open_nursery() as nursery:
            for kind in kinds:
                have = {feed: seq for feed, seq in sync.heads().items() if feed.startswith(kind)}
                (entries,) = batches_after(alice.store.reader, kind, have)  # type: ignore[arg-type]
                nursery.start_soon(sync._take, kind, alice.peer_id, FeedEntries(entries, {}))
        assert len(sync.quarantine) == 0
        assert sync.caught_up
        assert sync.heads() == alice.cluster.sync.heads()


async def test_a_joiner_has_caught_up_as_soon_as_it_has_all_that_was_named(
    autojump_clock: MockClock, seed: int
) -> None:
    """Not with the next heartbeat, where one kind had to wait for another."""
    async with open_memory_cluster(seed=seed) as cluster:
        alice = await cluster.found("alice")
        for number in range(5):
            ops = [OwnerStanding(f"o{number}", 1, True, "x"), SessionEnd(f"s{number}".encode())]
            author = Author(alice.identity, alice.store.reader.get(GENESIS_KEY) or b"")
            await alice.store.commit(
                lambda reader, author=author, ops=ops: author.write(reader, ops, alice.clock.now())  # type: ignore[misc]
            )
        bob = await cluster.join("bob", run=[CHEAP_AUTH])
        took = await cluster.linked([alice, bob])
        with trio.fail_after(3.0):
            while not bob.cluster.sync.caught_up:  # noqa: ASYNC110 - on virtual time
                await trio.sleep(0.05)
        assert took < 5
