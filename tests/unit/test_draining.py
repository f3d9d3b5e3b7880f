"""`covey nodes drain`: who may, who passes it on, and what it does to a node."""

from typing import cast

import pytest

from covey.bus.bus import Bus
from covey.bus.caller import Caller
from covey.cluster.membership import Membership
from covey.contracts.auth import AUTHORIZE, Actor, AuthorizeActor, Identity
from covey.contracts.cluster import DRAIN, NODE_STATUS, Drain, Drained
from covey.contracts.inference import MODELS
from covey.contracts.method import Party
from covey.draining import Draining
from covey.errors import CallError
from covey.roles.base import Lifecycle
from covey.store.rows import MemberRow
from covey.telemetry.metrics import Metrics
from covey.testing import ALICE, BOB
from covey.transport.base import PeerId

ADMIN, SOMEBODY = Actor(key="admin's"), Actor(key="somebody's")


class Members:
    """Alice and Bob, and Mallory who was removed."""

    def rows(self) -> dict[PeerId, MemberRow]:
        return {
            ALICE: MemberRow(peer=ALICE, name="alice", roles=("inference",)),
            BOB: MemberRow(peer=BOB, name="Bob", roles=("auth",)),
            PeerId("mallory"): MemberRow(peer="mallory", name="mallory", roles=("auth",), removed=True),
        }


class World:
    """Alice's node, which hears from others as `call` says."""

    def __init__(self, *, has_auth: bool = False) -> None:
        self.bus = Bus(ALICE, Metrics(), name="alice")
        self.lifecycle = Lifecycle()
        self.draining = Draining(self.bus, self.lifecycle, cast("Membership", Members()), has_auth=has_auth)
        self.bus.serve(AUTHORIZE, self.authorize)
        self.bus.serve(MODELS, self.authorize)
        self.bus.serve(NODE_STATUS, self.authorize)

    async def authorize(self, caller: Caller, request: AuthorizeActor) -> Identity:
        if not request.actor.key:
            raise CallError("unauthenticated", "Not logged in.")
        return Identity("k", "ann", role="admin" if request.actor == ADMIN else "user")

    async def call(self, stamp: Party, request: Drain, *, peer: PeerId = BOB) -> Drained:
        return await self.draining.drain(Caller(peer, stamp), request)


async def test_the_nodes_own_operator_drains_it_and_undoes_it() -> None:
    world = World()
    operator = world.bus.stamped("operator")
    assert await operator.call(DRAIN, Drain(Actor())) == Drained("alice", ALICE, draining=True)
    assert world.lifecycle.draining
    assert MODELS.name not in world.bus.methods
    assert {DRAIN.name, NODE_STATUS.name} <= set(world.bus.methods)  # it can still be watched, and told to go on
    assert await operator.call(DRAIN, Drain(Actor(), "ALICE")) == Drained("alice", ALICE, draining=True)
    assert await operator.call(DRAIN, Drain(Actor(), str(ALICE), undo=True)) == Drained("alice", ALICE, draining=False)
    assert not world.lifecycle.draining
    assert MODELS.name in world.bus.methods


async def test_others_need_an_administrator_or_be_an_auth_node() -> None:
    world = World()
    for stamp, actor, code in [
        ("member", Actor(), "unauthenticated"),
        ("member", SOMEBODY, "forbidden"),
        ("web", SOMEBODY, "forbidden"),
        ("operator", Actor(), "unauthenticated"),  # another node's operator is nobody here
    ]:
        with pytest.raises(CallError) as caught:
            await world.call(cast("Party", stamp), Drain(actor))
        assert caught.value.code == code
    assert not world.lifecycle.draining
    assert (await world.call("member", Drain(ADMIN))).draining
    assert not (await world.call("auth", Drain(Actor(), undo=True))).draining


async def test_it_is_passed_on_once_and_only_to_members() -> None:
    world = World()
    for node in ("carol", "mallory"):
        with pytest.raises(CallError, match="no node") as caught:
            await world.call("operator", Drain(ADMIN, node), peer=ALICE)
        assert caught.value.code == "not_found"
    with pytest.raises(CallError, match="not the node"):
        await world.call("member", Drain(ADMIN, "bob"))  # not for us, and from another node
    with pytest.raises(CallError, match="COVEY_ADMIN_KEY"):
        await world.call("operator", Drain(Actor(), "bob"), peer=ALICE)
    for has_auth, actor in ((False, ADMIN), (True, Actor())):
        with pytest.raises(CallError, match="no link") as caught:
            await World(has_auth=has_auth).call("operator", Drain(actor, "bob"), peer=ALICE)
        assert caught.value.code == "unreachable"
    with pytest.raises(CallError) as caught:
        await World(has_auth=True).call("web", Drain(SOMEBODY, "bob"), peer=ALICE)
    assert caught.value.code == "forbidden"


async def test_a_node_that_stops_cannot_be_told_to_go_on() -> None:
    world = World()
    world.lifecycle.draining = True
    world.lifecycle.stop.set()
    world.bus.drain()
    answer = await world.bus.stamped("operator").call(DRAIN, Drain(Actor(), undo=True))
    assert answer.draining
    assert MODELS.name not in world.bus.methods


async def test_while_a_node_drains_it_serves_itself_only_where_nobody_else_does() -> None:
    world = World()
    handle = world.bus.stamped("gateway")
    assert handle.serving(MODELS) == (ALICE,)
    world.bus.drain()
    assert handle.serving(MODELS) == (ALICE,)
    world.bus.directory.record(BOB, (MODELS.name, NODE_STATUS.name))
    assert handle.serving(MODELS) == (BOB,)
    assert handle.serving(NODE_STATUS) == (ALICE, BOB)
    world.bus.resume()
    assert handle.serving(MODELS) == (ALICE, BOB)
