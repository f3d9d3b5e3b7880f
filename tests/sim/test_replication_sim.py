"""Several auth nodes on virtual time: any of them takes writes, and all of them come to one view."""

import msgspec
import pytest
import trio
from auth_nodes import OPERATOR, agreed, auth_nodes, hashes, new_key
from trio.testing import MockClock

from covey.bus.caller import Caller
from covey.bus.replies import Emit
from covey.bus.serving import Served
from covey.contracts.auth import REVOKE_KEY, NewKey, RevokeKey
from covey.contracts.feeds import KeyRevoke
from covey.contracts.membership import (
    INVITE_NODE,
    LIST_INVITES,
    REMOVE_NODE,
    REVOKE_INVITE,
    InviteNode,
    ListInvites,
    RemoveNode,
    RevokeInvite,
)
from covey.contracts.replication import TAIL_KEYS, FeedEntries, Tail
from covey.errors import CallError
from covey.store.checking import check_reader
from covey.store.entries import ENTRY_BYTES_MAX, NO_HASH, Entry, FeedId, seal
from covey.store.feed_log import read_verdict
from covey.store.identity import Identity
from covey.store.rows import KeyRow
from covey.store.view import View
from covey.testing.cluster import CHEAP_AUTH, MemoryNode, open_memory_cluster


def is_revoked(node: MemoryNode, key: NewKey) -> bool:
    row = View(node.store.reader).get(KeyRow, key.id)
    return row is not None and row.revoked


async def test_any_auth_node_takes_writes_and_all_have_them(autojump_clock: MockClock, seed: int) -> None:
    async with open_memory_cluster(seed=seed) as cluster:
        nodes = await auth_nodes(cluster, "alice", "bob", "carol")
        keys = [await new_key(node) for node in nodes]
        await agreed(nodes)
        for node in nodes:
            assert all(View(node.store.reader).get(KeyRow, key.id) for key in keys)
        await nodes[2].operator.call(REVOKE_KEY, RevokeKey(OPERATOR, keys[0].id))
        await agreed(nodes)
        assert all(is_revoked(node, keys[0]) for node in nodes)


async def test_an_acknowledged_write_is_on_two_disks(autojump_clock: MockClock, seed: int) -> None:
    async with open_memory_cluster(seed=seed) as cluster:
        nodes = await auth_nodes(cluster, "alice", "bob", "carol")
        key = await new_key(nodes[0])
        assert sum(View(node.store.reader).get(KeyRow, key.id) is not None for node in nodes) >= 2


async def test_a_partition_takes_writes_on_both_sides_and_heals(autojump_clock: MockClock, seed: int) -> None:
    async with open_memory_cluster(seed=seed) as cluster:
        nodes = await auth_nodes(cluster, "alice", "bob", "carol")
        alice, bob, carol = nodes
        key = await new_key(alice)
        await agreed(nodes)
        for other in (bob, carol):
            cluster.network.cut(alice.machine, other.machine)
        await trio.sleep(30)
        here, there = await new_key(alice), await new_key(bob)
        await alice.operator.call(REVOKE_KEY, RevokeKey(OPERATOR, key.id))
        assert not is_revoked(carol, key)
        for other in (bob, carol):
            cluster.network.heal(alice.machine, other.machine)
        await agreed(nodes)
        for node in nodes:
            assert is_revoked(node, key)
            assert all(View(node.store.reader).get(KeyRow, made.id) for made in (here, there))


async def test_a_new_auth_node_answers_nobody_before_it_knows_who_there_is(
    autojump_clock: MockClock, seed: int
) -> None:
    async with open_memory_cluster(seed=seed) as cluster:
        alice = await cluster.found("alice")
        key = await new_key(alice)
        bob = await cluster.admit("bob", run=[CHEAP_AUTH])
        cluster.network.cut(alice.machine, bob.machine)
        await cluster.start(bob)
        await trio.sleep(10)
        with pytest.raises(CallError) as refusal:
            await new_key(bob)
        assert refusal.value.code == "unreachable"
        assert "auth" in bob.lifecycle.missing
        cluster.network.heal(alice.machine, bob.machine)
        await agreed([alice, bob])
        await trio.sleep(1)
        assert not bob.lifecycle.missing
        assert View(bob.store.reader).get(KeyRow, key.id)
        await new_key(bob)
        await cluster.restart(bob)  # complete for good
        await new_key(bob)


async def test_any_auth_node_lists_every_invite_and_passes_its_revocation_to_the_issuer(
    autojump_clock: MockClock, seed: int
) -> None:
    async with open_memory_cluster(seed=seed) as cluster:
        alice, bob, carol = await auth_nodes(cluster, "alice", "bob", "carol")
        made = [await node.operator.call(INVITE_NODE, InviteNode(OPERATOR)) for node in (alice, bob)]
        listed = await carol.operator.call(LIST_INVITES, ListInvites(OPERATOR))
        assert {invite.id for invite in listed.invites} >= {invite.id for invite in made}
        assert listed.silent == ()
        await carol.operator.call(REVOKE_INVITE, RevokeInvite(OPERATOR, made[1].id))
        (revoked,) = [
            invite
            for invite in (await alice.operator.call(LIST_INVITES, ListInvites(OPERATOR))).invites
            if invite.id == made[1].id
        ]
        assert revoked.revoked
        assert revoked.issuer == bob.peer_id
        with pytest.raises(CallError) as refusal:
            await carol.operator.call(REVOKE_INVITE, RevokeInvite(OPERATOR, "nosuchinvite"))
        assert refusal.value.code == "not_found"
        await cluster.lose_power(bob)
        listed = await carol.operator.call(LIST_INVITES, ListInvites(OPERATOR))
        assert listed.silent == ("bob",) or made[1].id not in {invite.id for invite in listed.invites}


async def test_a_removal_s_cutoff_is_what_any_reachable_auth_node_holds(autojump_clock: MockClock, seed: int) -> None:
    async with open_memory_cluster(seed=seed) as cluster:
        alice, bob, carol = await auth_nodes(cluster, "alice", "bob", "carol")
        cluster.network.cut(alice.machine, bob.machine)
        await trio.sleep(30)
        key = await new_key(bob)  # carol has it; alice will, through carol, if not at once
        await agreed([bob, carol])
        await alice.operator.call(REMOVE_NODE, RemoveNode(OPERATOR, "bob"))
        await agreed([alice, carol])
        for node in (alice, carol):
            row = View(node.store.reader).get(KeyRow, key.id)
            assert row is not None
            assert row.created is not None


async def test_a_disk_put_back_to_an_older_state_uses_no_number_twice(autojump_clock: MockClock, seed: int) -> None:
    """Nothing tells the node: it asks another one what it wrote, before it writes."""
    async with open_memory_cluster(seed=seed) as cluster:
        nodes = await auth_nodes(cluster, "alice", "bob", "carol")
        bob = nodes[1]
        old = bob.disk.copy()
        keys = [await new_key(bob) for _ in range(3)]
        await agreed(nodes)
        await cluster.kill(bob)
        bob.disk = old
        await cluster.start(bob)
        keys.append(await new_key(bob))
        await agreed(nodes)
        for node in nodes:
            assert read_verdict(node.store.reader).frozen == {}
            assert all(View(node.store.reader).get(KeyRow, key.id) for key in keys)


async def test_a_node_that_is_alone_with_an_old_disk_is_found_out_and_goes_on_in_new_feeds(
    autojump_clock: MockClock, seed: int
) -> None:
    async with open_memory_cluster(seed=seed) as cluster:
        nodes = await auth_nodes(cluster, "alice", "bob", "carol")
        alice, bob, carol = nodes
        old = bob.disk.copy()
        await new_key(bob)
        await agreed(nodes)
        await cluster.kill(bob)
        bob.disk = old
        for other in (alice, carol):
            cluster.network.cut(bob.machine, other.machine)
        await cluster.start(bob)
        alone = await new_key(bob)  # the same number again
        await bob.operator.call(REVOKE_KEY, RevokeKey(OPERATOR, alone.id))
        for other in (alice, carol):
            cluster.network.heal(bob.machine, other.machine)
        await agreed(nodes)
        for node in nodes:
            assert len(read_verdict(node.store.reader).frozen) == 1
            assert is_revoked(node, alone)  # a denial of a frozen feed is said again
            assert not check_reader(node.store.reader).problems
        after = await new_key(bob)
        await agreed(nodes)
        assert View(alice.store.reader).get(KeyRow, after.id)


async def test_an_auth_node_that_sends_what_is_wrong_is_refused_and_told_of(
    autojump_clock: MockClock, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A stolen machine: forged, foreign, malformed, too large and future entries, and proofs that prove nothing."""
    async with open_memory_cluster(seed=seed) as cluster:
        alice, bob, carol = await auth_nodes(cluster, "alice", "bob", "carol")
        stranger = Identity(b"s" * 32)
        net = bytes.fromhex(alice.cluster.membership.network_id)

        def entry(author: Identity, signer: Identity, **fields: object) -> bytes:
            plain = Entry(
                net=net, feed=str(FeedId("keys", author.peer_id, "f" * 16)), seq=1, prev_hash=NO_HASH,
                clock=int(alice.clock.now() * 1000) << 16, deps={}, ops=(KeyRevoke("victim", "x"),),
            )  # fmt: skip
            return seal(signer, msgspec.structs.replace(plain, **fields)).stored

        wrong = [
            b"", b"\0" * 300, b"x" * (ENTRY_BYTES_MAX + 100),
            entry(stranger, stranger), entry(carol.identity, stranger),
            entry(bob.identity, bob.identity, net=bytes(32)),
        ]  # fmt: skip
        key = await new_key(alice)
        await agreed([alice, bob, carol])
        before = hashes(carol)

        async def lie(caller: Caller, request: Tail, emit: Emit[FeedEntries]) -> None:
            for stored in wrong:
                await emit(FeedEntries((stored,), {}, {}, ((stored, wrong[-1]), (wrong[-1], wrong[-1]))))
            await trio.sleep_forever()

        bob.bus._served[TAIL_KEYS.name] = Served(TAIL_KEYS, lie)
        await cluster.kill(carol)
        await cluster.start(carol)
        await cluster.linked()
        await trio.sleep(30)
        assert hashes(carol) == before
        refused = carol.cluster.sync.refusals
        assert {"malformed", "too_large", "bad_signature", "wrong_network"} <= refused.keys(), refused
        assert len(carol.cluster.sync.quarantine) <= 1  # the stranger's, who may yet be admitted
        assert "was refused" in caplog.text
        await alice.operator.call(REVOKE_KEY, RevokeKey(OPERATOR, key.id))
        with trio.fail_after(10):
            while not is_revoked(carol, key):  # noqa: ASYNC110 - through alice, on virtual time
                await trio.sleep(0.05)
