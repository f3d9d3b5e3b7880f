"""What people see of several auth nodes, on virtual time: who has a change, names in conflict, promotion, recovery."""

from collections.abc import Awaitable, Callable

import pytest
import trio
from auth_nodes import OPERATOR, agreed, auth_nodes, new_key
from trio.testing import MockClock

from covey.bus.bus import Bus
from covey.cluster.cluster import Cluster
from covey.cluster.invites import Invite, parse_invite
from covey.contracts.audit import AUDIT, Audit, AuditStanding
from covey.contracts.auth import (
    ADD_USER,
    CREATE_KEY,
    INVITE_PERSON,
    LIMIT_USER,
    REVOKE_KEY,
    TAKE_RECOVERY_KEY,
    VERIFY,
    AddUser,
    CreateKey,
    Identity,
    InvitePerson,
    KeyLimits,
    LimitUser,
    NewKey,
    RevokeKey,
    VerifyKey,
)
from covey.contracts.keys import parse
from covey.contracts.membership import (
    INVITE_NODE,
    LABEL_NODE,
    LIST_MINTED,
    MINTED_SHOWN,
    PROMOTE_NODE,
    REMOVE_NODE,
    InviteNode,
    LabelNode,
    ListMinted,
    Made,
    PromoteNode,
    RemoveNode,
)
from covey.contracts.method import Nothing
from covey.contracts.recovery import RECOVER_PROMOTE, RECOVER_REMOVE, RecoverPromote, RecoverRemove
from covey.errors import CallError
from covey.join import use_as_member
from covey.node import unwrapped
from covey.store.genesis import format_recovery_key
from covey.store.hybrid_clock import AHEAD_SECONDS_MAX
from covey.store.ingest import batches_after, ingest
from covey.store.rows import KeyRow, MemberRow
from covey.store.sync import RELEASE_SECONDS
from covey.store.view import View
from covey.store.writer import open_store
from covey.telemetry.metrics import Metrics
from covey.testing.cluster import CHEAP_AUTH, MemoryClock, MemoryCluster, MemoryNode, open_memory_cluster
from covey.testing.memory_host import memory_hosts
from covey.transport.base import PeerId

# Who has it


async def test_a_change_says_who_has_it(autojump_clock: MockClock, seed: int) -> None:
    async with open_memory_cluster(seed=seed) as cluster:
        alice, bob = await auth_nodes(cluster, "alice", "bob")
        key = await new_key(alice)
        assert key.held_by == ("bob",)
        cluster.network.cut(alice.machine, bob.machine)
        await trio.sleep(30)
        began = trio.current_time()
        assert (await new_key(alice)).held_by == ()
        assert trio.current_time() - began < 0.5  # nobody is waited for who is not there


async def test_a_revocation_waits_for_every_live_node_that_checks_keys(autojump_clock: MockClock, seed: int) -> None:
    async with open_memory_cluster(seed=seed) as cluster:
        alice, bob, carol = await auth_nodes(cluster, "alice", "bob", "carol")
        gateway = await cluster.join("gw1", roles=["gateway"])
        await cluster.join("worker", roles=["inference"])
        await cluster.linked()
        key = await new_key(alice)
        info = await alice.operator.call(REVOKE_KEY, RevokeKey(OPERATOR, key.id))
        assert (info.state, info.held_by, info.not_held_by) == ("revoked", ("bob", "carol", "gw1"), ())

        other = await new_key(bob)
        for node in (alice, bob, gateway):
            cluster.network.cut(node.machine, carol.machine)
        await trio.sleep(30)
        began = trio.current_time()
        info = await bob.operator.call(REVOKE_KEY, RevokeKey(OPERATOR, other.id))
        assert (info.held_by, info.not_held_by) == (("alice", "gw1"), ("carol",))
        assert trio.current_time() - began < 0.5

        for node in (alice, bob, gateway):
            cluster.network.heal(node.machine, carol.machine)
        await cluster.linked()
        await agreed([alice, bob, carol])
        await trio.sleep(1)
        info = await alice.operator.call(REVOKE_KEY, RevokeKey(OPERATOR, other.id))  # again, to ask who has it by now
        assert (info.held_by, info.not_held_by) == (("bob", "carol", "gw1"), ())


async def test_a_node_alone_names_nobody(autojump_clock: MockClock, seed: int) -> None:
    async with open_memory_cluster(seed=seed) as cluster:
        alice = await cluster.found("alice")
        key = await new_key(alice)
        info = await alice.operator.call(REVOKE_KEY, RevokeKey(OPERATOR, key.id))
        assert (key.held_by, info.held_by, info.not_held_by) == ((), (), ())


# The audit


async def test_what_a_removed_node_said_too_late_is_void_in_the_audit(autojump_clock: MockClock, seed: int) -> None:
    async with open_memory_cluster(seed=seed) as cluster:
        alice, bob, carol = await auth_nodes(cluster, "alice", "bob", "carol")
        early = await new_key(bob)
        await agreed([alice, bob, carol])
        for node in (alice, carol):
            cluster.network.cut(node.machine, bob.machine)
        await trio.sleep(30)
        late = await new_key(bob)
        await alice.operator.call(REMOVE_NODE, RemoveNode(OPERATOR, "bob"))
        with pytest.raises(CallError) as nobody:
            await alice.operator.call(REVOKE_KEY, RevokeKey(OPERATOR, late.id))
        assert nobody.value.code == "not_found"

        # What it wrote beyond the cutoff comes in by somebody who had it, and counts for nothing.
        for batch in batches_after(bob.store.reader, "keys", {}):
            await ingest(alice.store, "keys", batch, now=alice.clock.now())
        page = await alice.operator.call(AUDIT, Audit(OPERATOR))
        standings = {record.subject: record.standing for record in page.records if "was made" in record.what}
        assert standings == {early.id: "counts", late.id: "void"}
        assert [record.node for record in page.records if record.what == "The machine bob was removed."] == ["alice"]


async def test_what_a_clock_far_ahead_said_waits_in_the_audit(autojump_clock: MockClock, seed: int) -> None:
    async with open_memory_cluster(seed=seed) as cluster:
        alice, bob = await auth_nodes(cluster, "alice", "bob")
        bob.clock = MemoryClock(alice.clock.now() + 7 * 24 * 3600)
        await cluster.restart(bob)
        await cluster.linked()
        key = await new_key(bob)
        await told(alice, key.id, ["waits"])
        await bob.operator.call(REVOKE_KEY, RevokeKey(OPERATOR, key.id))
        await told(alice, key.id, ["counts", "waits"])  # what denies never waits


async def told(node: MemoryNode, subject: str, standings: list[AuditStanding]) -> None:
    """Until the audit has this of a subject, the latest first."""
    with trio.fail_after(30):
        while True:
            page = await node.operator.call(AUDIT, Audit(OPERATOR))
            if [record.standing for record in page.records if record.subject == subject] == standings:
                return
            await trio.sleep(0.1)


# Promotion


async def test_a_gateway_is_promoted_fetches_everything_and_serves(autojump_clock: MockClock, seed: int) -> None:
    async with open_memory_cluster(seed=seed) as cluster:
        alice = await cluster.found("alice")
        bob = await cluster.join("bob", roles=["gateway"])
        await cluster.linked()
        key = await new_key(alice)
        promoted = await alice.operator.call(PROMOTE_NODE, PromoteNode(OPERATOR, "bob", ("auth",)))
        assert (promoted.roles, promoted.removed) == (("auth", "gateway"), False)
        again = await alice.operator.call(PROMOTE_NODE, PromoteNode(OPERATOR, "bob", ("auth",)))
        assert (again.roles, again.held_by) == (("auth", "gateway"), ())  # nothing was written
        await until(lambda: own_roles(bob) == {"auth", "gateway"})

        bob.run = (CHEAP_AUTH,)
        cluster.network.cut(alice.machine, bob.machine)
        await cluster.restart(bob)
        await trio.sleep(10)
        assert "auth" in bob.lifecycle.missing  # it knows nobody yet, and so answers nobody
        cluster.network.heal(alice.machine, bob.machine)
        await agreed([alice, bob])
        await until(lambda: not bob.lifecycle.missing)
        assert View(bob.store.reader).get(KeyRow, key.id)
        assert (await new_key(bob)).held_by == ("alice",)


async def test_promoting_is_checked(autojump_clock: MockClock, seed: int) -> None:
    async with open_memory_cluster(seed=seed) as cluster:
        alice = await cluster.found("alice")
        await cluster.join("bob", roles=["gateway"])
        for name, roles, code in [
            ("bob", (), "invalid"),
            ("bob", ("operator",), "invalid"),
            ("bob", ("a b",), "invalid"),
            ("carol", ("auth",), "not_found"),
        ]:
            await refused(code, alice.operator.call(PROMOTE_NODE, PromoteNode(OPERATOR, name, roles)))
        await alice.operator.call(REMOVE_NODE, RemoveNode(OPERATOR, "bob"))
        await refused("conflict", alice.operator.call(PROMOTE_NODE, PromoteNode(OPERATOR, "bob", ("auth",))))


# What a removed node made


async def test_what_a_node_made_is_listed_and_its_keys_can_be_revoked(autojump_clock: MockClock, seed: int) -> None:
    async with open_memory_cluster(seed=seed) as cluster:
        alice, bob = await auth_nodes(cluster, "alice", "bob")
        mine = await new_key(alice)
        theirs = [await new_key(bob) for _ in range(MINTED_SHOWN + 2)]
        await bob.operator.call(REVOKE_KEY, RevokeKey(OPERATOR, theirs[0].id))
        await bob.operator.call(INVITE_PERSON, InvitePerson(OPERATOR, label="for Eve"))
        await cluster.join("worker", issuer=bob)
        await agreed([alice, bob])
        minted = await alice.operator.call(LIST_MINTED, ListMinted(OPERATOR, "bob"))
        assert (minted.keys.count, len(minted.keys.names)) == (MINTED_SHOWN + 1, MINTED_SHOWN)
        assert minted.invitations == Made(1, ("for Eve",))
        assert minted.machines == Made(1, ("worker",))
        assert minted.accounts.count == 0

        await alice.operator.call(REMOVE_NODE, RemoveNode(OPERATOR, "bob"))
        assert [is_revoked(alice, key) for key in theirs] == [True] + [False] * (MINTED_SHOWN + 1)
        await alice.operator.call(REMOVE_NODE, RemoveNode(OPERATOR, bob.peer_id, revoke_keys=True))
        assert all(is_revoked(alice, key) for key in theirs)
        assert not is_revoked(alice, mine)
        assert (await alice.operator.call(LIST_MINTED, ListMinted(OPERATOR, bob.peer_id))).keys.count == 0


# Recovery


async def test_the_recovery_key_settles_a_mutual_removal_and_the_other_is_back(
    autojump_clock: MockClock, seed: int
) -> None:
    async with open_memory_cluster(seed=seed) as cluster:
        alice, bob = await auth_nodes(cluster, "alice", "bob")
        recovery_key = (await alice.operator.call(TAKE_RECOVERY_KEY, Nothing())).recovery_key
        carol = await cluster.join("carol", roles=["gateway"])
        await cluster.linked()
        key = await new_key(alice)
        await agreed([alice, bob])
        cluster.network.cut(alice.machine, bob.machine)
        await trio.sleep(30)
        await alice.operator.call(REMOVE_NODE, RemoveNode(OPERATOR, "bob"))
        await bob.operator.call(REMOVE_NODE, RemoveNode(OPERATOR, "alice"))
        await all_hear_of_both(cluster, alice, bob, carol)

        # Carol becomes an auth node by the key, and bob is out for good; alice, who hears the key too, is back.
        await recover_by(carol, recovery_key, cluster)
        await alice.operator.call(RECOVER_REMOVE, RecoverRemove(recovery_key, "bob"))
        await until(lambda: not alice.cluster.removed)
        await cluster.linked([alice, carol])
        await agreed([alice, carol])
        assert removed(alice) == removed(carol) == {"bob"}
        assert bob.cluster.removed
        assert (await new_key(alice)).held_by == ("carol",)
        await carol.operator.call(REVOKE_KEY, RevokeKey(OPERATOR, key.id))
        await cluster.restart(alice)  # back for good
        await cluster.linked([alice, carol])
        await agreed([alice, carol])
        assert is_revoked(alice, key)


async def test_a_machine_that_was_removed_and_is_back_joins_again_after_its_process_ended(
    autojump_clock: MockClock, seed: int
) -> None:
    async with open_memory_cluster(seed=seed) as cluster:
        alice, bob = await auth_nodes(cluster, "alice", "bob")
        recovery_key = (await alice.operator.call(TAKE_RECOVERY_KEY, Nothing())).recovery_key
        carol = await cluster.join("carol", roles=["gateway"])
        await cluster.linked()
        cluster.network.cut(alice.machine, bob.machine)
        await trio.sleep(30)
        await alice.operator.call(REMOVE_NODE, RemoveNode(OPERATOR, "bob"))
        await bob.operator.call(REMOVE_NODE, RemoveNode(OPERATOR, "alice"))
        await all_hear_of_both(cluster, alice, bob, carol)
        await cluster.stop(alice)
        await recover_by(carol, recovery_key, cluster)

        for name, node, code in (("alice", alice, ""), ("bob", bob, "removed")):
            token = (await carol.operator.call(INVITE_NODE, InviteNode(OPERATOR, ("auth",)))).token
            if node.running:
                await cluster.stop(node)
            if code:
                assert (await refused("forbidden", gain(cluster, node, parse_invite(token)))).reason == code, name
            else:
                await gain(cluster, node, parse_invite(token))
        await cluster.start(alice)
        await cluster.linked([alice, carol])
        await agreed([alice, carol])
        assert not alice.cluster.removed
        assert removed(alice) == {"bob"}


async def gain(cluster: MemoryCluster, node: MemoryNode, invite: Invite) -> None:
    """What `covey join` does on a machine that is a member, or was."""
    metrics = Metrics()
    with unwrapped():
        await _gain(cluster, node, invite, metrics)


async def _gain(cluster: MemoryCluster, node: MemoryNode, invite: Invite, metrics: Metrics) -> None:
    async with open_store(node.disk, metrics, in_thread=False) as store:
        opener = memory_hosts(cluster.network, lambda: node.machine, lambda _: None)
        hosting = opener(node.identity, "none", is_member=lambda _: False, on_rpc=_hang_up, on_join=_hang_up)
        async with hosting as host:
            await use_as_member(host, store, invite, node.wish)
            known = Cluster(Bus(node.peer_id, metrics), store, node.identity, node.config, opener, node.clock)
            await known.let_back_in()


async def _hang_up(peer: PeerId, stream: trio.abc.Stream) -> None:
    await trio.aclose_forcefully(stream)


async def all_hear_of_both(cluster: MemoryCluster, alice: MemoryNode, bob: MemoryNode, carol: MemoryNode) -> None:
    """Of both removals, however early each had cut the other one off."""
    cluster.network.heal(alice.machine, bob.machine)
    for node in (alice, bob, carol):
        for other in (alice, bob):
            for batch in batches_after(other.store.reader, "members", {}):
                await ingest(node.store, "members", batch, now=node.clock.now())
    assert removed(carol) == {"alice", "bob"}
    await until(lambda: bool(alice.cluster.removed and bob.cluster.removed))


async def recover_by(carol: MemoryNode, recovery_key: str, cluster: MemoryCluster) -> None:
    """A machine that is left becomes an auth node, and has bob removed for good."""
    made = await carol.operator.call(RECOVER_PROMOTE, RecoverPromote(recovery_key, "carol", ("auth",)))
    assert made.roles == ("auth", "gateway")
    carol.run = (CHEAP_AUTH,)
    await cluster.restart(carol)
    gone = await carol.operator.call(RECOVER_REMOVE, RecoverRemove(recovery_key, "bob"))
    assert gone.removed
    assert removed(carol) == {"bob"}


async def test_the_recovery_key_replaces_the_last_auth_node(autojump_clock: MockClock, seed: int) -> None:
    async with open_memory_cluster(seed=seed) as cluster:
        alice = await cluster.found("alice")
        recovery_key = (await alice.operator.call(TAKE_RECOVERY_KEY, Nothing())).recovery_key
        bob = await cluster.join("bob", roles=["gateway"])
        worker = await cluster.join("worker", roles=["inference"])
        await cluster.linked()
        key = await new_key(alice)
        await until(lambda: View(bob.store.reader).get(KeyRow, key.id) is not None)
        await cluster.kill(alice)  # for ever

        for refusal in (
            bob.operator.call(RECOVER_REMOVE, RecoverRemove(recovery_key, "alice")),
            worker.operator.call(RECOVER_PROMOTE, RecoverPromote(recovery_key, "bob", ("auth",))),
            bob.operator.call(RECOVER_PROMOTE, RecoverPromote(recovery_key, "bob", ("web",))),
        ):
            assert (await refused("conflict", refusal)).reason == "no_auth"
        await bob.operator.call(RECOVER_PROMOTE, RecoverPromote(recovery_key, "bob", ("auth",)))
        bob.run = (CHEAP_AUTH,)
        await cluster.restart(bob)
        assert not bob.lifecycle.missing  # it has all that is left
        await bob.operator.call(REVOKE_KEY, RevokeKey(OPERATOR, key.id))
        gone = await bob.operator.call(REMOVE_NODE, RemoveNode(OPERATOR, "alice"))
        assert gone.removed
        await until(lambda: removed(worker) == {"alice"})
        carol = await cluster.join("carol", run=[CHEAP_AUTH], issuer=bob)
        await cluster.linked([bob, worker, carol])
        await agreed([bob, carol])
        page = await carol.operator.call(AUDIT, Audit(OPERATOR))
        (said,) = [record for record in page.records if record.by == "recovery"]
        assert (said.what, said.node) == ("The machine bob was admitted as auth, gateway.", "recovery")


async def test_a_key_that_is_not_the_networks_recovers_nothing(autojump_clock: MockClock, seed: int) -> None:
    async with open_memory_cluster(seed=seed) as cluster:
        alice, _ = await auth_nodes(cluster, "alice", "bob")
        recovery_key = (await alice.operator.call(TAKE_RECOVERY_KEY, Nothing())).recovery_key
        for text, code in [
            (format_recovery_key(b"x" * 32), "forbidden"),
            (recovery_key[:-9] + ("a" if recovery_key[-9] != "a" else "b") + recovery_key[-8:], "invalid"),
            ("", "invalid"),
            ("swordfish", "invalid"),
        ]:
            for call in (
                alice.operator.call(RECOVER_REMOVE, RecoverRemove(text, "bob")),
                alice.operator.call(RECOVER_PROMOTE, RecoverPromote(text, "bob", ("web",))),
            ):
                error = await refused(code, call)
                assert not text or text not in str(error)
        assert removed(alice) == set()
        await refused("conflict", alice.operator.call(RECOVER_REMOVE, RecoverRemove(recovery_key, "alice")))
        with pytest.raises(CallError):  # nor does anybody speak for the network from another node
            await alice.bus.stamped("auth").call(RECOVER_REMOVE, RecoverRemove(recovery_key, "bob"))
        assert recovery_key not in repr(RecoverRemove(recovery_key, "bob")) + repr(
            RecoverPromote(recovery_key, "bob", ("auth",))
        )
        everything = b"".join(name + value for name, value in alice.store.reader.scan(b""))
        assert recovery_key.encode() not in everything


def own_roles(node: MemoryNode) -> set[str]:
    own = node.cluster.own
    return set(own.roles) if own is not None else set()


def removed(node: MemoryNode) -> set[str]:
    return {row.name for row in View(node.store.reader).all(MemberRow) if row.removed}


def is_revoked(node: MemoryNode, key: NewKey) -> bool:
    row = View(node.store.reader).get(KeyRow, key.id)
    return row is not None and row.revoked


async def until(holds: Callable[[], bool], *, within_seconds: float = 60.0) -> None:
    with trio.fail_after(within_seconds):
        while not holds():  # noqa: ASYNC110 - on virtual time
            await trio.sleep(0.1)


async def refused(code: str, call: Awaitable[object]) -> CallError:
    with pytest.raises(CallError) as caught:
        await call
    assert caught.value.code == code, caught.value
    return caught.value


async def test_a_machine_whose_admission_had_to_wait_is_a_member_once_the_time_has_come(
    autojump_clock: MockClock, seed: int
) -> None:
    async with open_memory_cluster(seed=seed) as cluster:
        alice, bob = await auth_nodes(cluster, "alice", "bob")
        bob.clock = MemoryClock(alice.clock.now() + AHEAD_SECONDS_MAX + 60)
        await cluster.restart(bob)
        await cluster.linked()
        made = await bob.operator.call(INVITE_NODE, InviteNode(OPERATOR, ("inference",)))
        eve = cluster.add("eve")
        eve.clock = bob.clock
        await cluster.use_invite(eve, parse_invite(made.token))
        await until(lambda: alice.cluster.sync.heads() == bob.cluster.sync.heads())
        assert not alice.cluster.membership.is_member(eve.peer_id)
        await trio.sleep(60 + 2 * RELEASE_SECONDS)
        assert alice.cluster.membership.is_member(eve.peer_id)


# Limits and labels


async def checked(node: MemoryNode, key: NewKey) -> Identity:
    """What the node's own view says of a key."""
    parsed = parse(key.key)
    assert parsed is not None
    return await node.bus.stamped("gateway").call(VERIFY, VerifyKey(parsed.key_id, parsed.digest))


async def test_limits_of_two_administrators_who_cannot_see_each_other_come_together(
    autojump_clock: MockClock, seed: int
) -> None:
    """Each limit and each label by itself: whoever wrote one of them last has it, and all gateways hear so."""
    async with open_memory_cluster(seed=seed) as cluster:
        alice, bob = await auth_nodes(cluster, "alice", "bob")
        gateway = await cluster.join("gw1", roles=["gateway"])
        await cluster.linked()
        ann = await alice.operator.call(ADD_USER, AddUser(OPERATOR, "ann", "seven green bottles"))
        key = await alice.operator.call(CREATE_KEY, CreateKey(OPERATOR, user="ann", node_labels=("gpu",)))
        await agreed([alice, bob])

        cluster.network.cut(alice.machine, bob.machine)
        await trio.sleep(30)
        await alice.operator.call(LIMIT_USER, LimitUser(OPERATOR, "ann", {"concurrency": 4, "tokens_per_day": 100}))
        await alice.operator.call(LABEL_NODE, LabelNode(OPERATOR, "gw1", ("gpu", "attic")))
        await trio.sleep(1)
        await bob.operator.call(LIMIT_USER, LimitUser(OPERATOR, "ann", {"concurrency": 2}))
        await bob.operator.call(LABEL_NODE, LabelNode(OPERATOR, "gw1", ("trusted",)))
        cluster.network.heal(alice.machine, bob.machine)
        await cluster.linked()
        await agreed([alice, bob])
        await trio.sleep(1)

        expected = KeyLimits(concurrency=2, tokens_per_day=100)
        for node in (alice, bob, gateway):
            identity = await checked(node, key)
            assert (identity.owner, identity.owner_limits) == (ann.id, expected)
            assert identity.node_labels == ("gpu",)
            assert node.cluster.labels(gateway.peer_id) == {"gpu", "attic", "trusted"}
            assert node.cluster.labels(alice.peer_id) == frozenset()
