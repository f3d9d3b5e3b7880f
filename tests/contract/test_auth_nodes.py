"""The auth role's part in admitting machines: invites, joining, naming, removing, and the members feed, as a reader
in the process and a fake of the node's links see it. Every contract, and every refusal that it documents.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from covey import config as configuration
from covey.bus.bus import Bus, BusHandle
from covey.bus.caller import Caller
from covey.cluster.invites import CHARS_MAX, SECRET_BYTES, Invite, parse_invite
from covey.contracts import membership
from covey.contracts.audit import AUDIT, Audit
from covey.contracts.auth import (
    ADD_USER,
    AUTH_STATE,
    CREATE_KEY,
    LOG_IN,
    SET_STANDING,
    Actor,
    AddUser,
    CreateKey,
    LogIn,
    SetStanding,
)
from covey.contracts.feeds import Admit, Label, Remove, Rename
from covey.contracts.joining import JoinAnswer, JoinRequest, Welcome
from covey.contracts.membership import (
    INVITE_NODE,
    INVITE_SECONDS_MAX,
    INVITE_USES_MAX,
    INVITE_USES_SHOWN,
    LABEL_NODE,
    LIST_INVITES,
    LIST_MINTED,
    NODE_LABELS_MAX,
    NODE_NAME_PATTERN,
    PROMOTE_NODE,
    REMOVE_NODE,
    RENAME_NODE,
    REVOKE_INVITE,
    InviteInfo,
    InviteNode,
    LabelNode,
    ListInvites,
    ListMinted,
    Member,
    NodeInvite,
    PromoteNode,
    RemoveNode,
    RenameNode,
    RevokeInvite,
)
from covey.contracts.method import Nothing, Streaming, Unary
from covey.contracts.replication import TAIL_MEMBERS, FeedEntries, Tail
from covey.errors import CallError, Problem
from covey.http.router import Router
from covey.roles.auth import admission, node_invites
from covey.roles.auth.config import AuthConfig
from covey.roles.auth.role import ROLE
from covey.roles.base import Alone, Lifecycle, NodeInfo, Parts, Welcomer
from covey.store import ingest as ingest_module
from covey.store import tails
from covey.store.entries import FeedId, unseal
from covey.store.feed_log import GENESIS_KEY
from covey.store.feeds import open_feeds
from covey.store.identity import Identity
from covey.store.ingest import batches_after, ingest, install, vector
from covey.store.kv import Batch, KeyValues, StoreError
from covey.store.leveldb import open_leveldb
from covey.store.memory import MemoryStore
from covey.store.rows import MemberRow
from covey.store.tails import HEARTBEAT_SECONDS, FeedTails, position
from covey.store.view import View
from covey.store.writer import Store, open_store
from covey.telemetry.metrics import Metrics
from covey.transport.base import PeerId

CHEAP = AuthConfig(argon2_memory_kibibytes=8, argon2_passes=1)
PASSWORD = "seven green bottles"
OPERATOR = Actor()
ADDRESSES = ("/ip4/192.0.2.1/tcp/26840", "/ip6/2001:db8::1/tcp/26840")


class WallClock:
    def __init__(self) -> None:
        self.seconds = 1_800_000_000.0

    def now(self) -> float:
        return self.seconds


@dataclass
class Door(Alone):
    """The node's links, as the auth role sees them."""

    opened: int = 0
    announced: tuple[str, ...] = ADDRESSES
    welcome: Welcomer | None = None
    refusal: CallError | None = None

    async def open(self) -> tuple[str, ...]:
        await trio.lowlevel.checkpoint()
        if self.refusal is not None:
            raise self.refusal
        self.opened += 1
        return self.announced

    def serve_joins(self, welcome: Welcomer) -> None:
        self.welcome = welcome

    def addresses(self) -> dict[str, tuple[str, ...]]:
        return {"12D3KooWsomebody": ("/ip4/192.0.2.9/tcp/1",)}


@dataclass
class Network:
    """One node with the auth role, and the hands that may reach it."""

    operator: BusHandle
    web: BusHandle
    inference: BusHandle
    store: Store
    door: Door
    clock: WallClock
    me: PeerId
    network_id: str
    sent: list[Identity] = field(default_factory=list)

    async def invite(self, *roles: str, **wish: Any) -> NodeInvite:
        return await self.operator.call(INVITE_NODE, InviteNode(OPERATOR, roles or ("inference",), **wish))

    async def ask(self, peer: PeerId, secret: bytes = b"", name: str = "bob", network_id: str = "") -> JoinAnswer:
        assert self.door.welcome is not None
        return await self.door.welcome(peer, JoinRequest(network_id or self.network_id, secret, name, "0"))

    async def join(self, invite: NodeInvite, peer: PeerId | None = None, name: str = "bob") -> Welcome:
        answer = await self.ask(peer or new_peer(), secret_of(invite), name)
        assert answer.refusal is None, answer.refusal
        assert answer.welcome is not None
        return answer.welcome

    async def turned_away(self, reason: str, peer: PeerId, invite: NodeInvite | bytes = b"", **more: str) -> Problem:
        secret = invite if isinstance(invite, bytes) else secret_of(invite)
        answer = await self.ask(peer, secret, **more)
        assert answer.welcome is None
        assert answer.refusal is not None
        assert answer.refusal.reason == reason, answer.refusal
        assert answer.refusal.message.endswith((".", "INVITE", "covey invite"))
        assert "\n" not in answer.refusal.message
        return answer.refusal

    async def member(self, *roles: str, name: str = "bob") -> PeerId:
        """A machine that has come in."""
        peer = new_peer()
        await self.join(await self.invite(*roles), peer, name)
        return peer

    async def listed(self) -> tuple[InviteInfo, ...]:
        return (await self.operator.call(LIST_INVITES, ListInvites(OPERATOR))).invites

    def row(self, peer: PeerId) -> MemberRow | None:
        return View(self.store.reader).get(MemberRow, peer)

    def names(self) -> list[str]:
        return sorted(row.name for row in View(self.store.reader).all(MemberRow))

    def last_op(self) -> Any:
        *_, last = self.entries()
        return unseal(last).entry.ops[-1]

    def entries(self) -> list[bytes]:
        return [entry for batch in batches_after(self.store.reader, "members", {}) for entry in batch]


@asynccontextmanager
async def network(
    *, kv: KeyValues | None = None, identity: Identity | None = None, clock: WallClock | None = None
) -> AsyncGenerator[Network, None]:
    identity, clock, metrics, door = identity or Identity.generate(), clock or WallClock(), Metrics(), Door()
    bus = Bus(identity.peer_id, metrics)
    async with open_store(kv or MemoryStore(), metrics) as store, bus.open():
        parts = Parts(
            node=NodeInfo("alice", "0", 0, ("auth", "web")),
            identity=identity,
            bus=bus.stamped("auth"),
            store=store,
            http=Router(),
            metrics=metrics,
            clock=clock,
            lifecycle=Lifecycle(),
            folder=Path(),
            assets=Path(),
            backends=(),
            cluster=door,
        )
        async with ROLE.open(CHEAP, parts):
            operator = bus.stamped("operator")
            network_id = (await operator.call(AUTH_STATE, Nothing())).network_id
            hands = (operator, bus.stamped("web"), bus.stamped("inference"))
            yield Network(*hands, store, door, clock, identity.peer_id, network_id)


@pytest.fixture
async def net() -> AsyncGenerator[Network, None]:
    async with network() as made:
        yield made


def beat(net: Network) -> FeedEntries:
    """A heartbeat of its members feeds."""
    here = position(net.store.reader, "members")
    return FeedEntries((), here.vector, here.hashes)


def new_peer() -> PeerId:
    return Identity.generate().peer_id


def secret_of(invite: NodeInvite) -> bytes:
    return parse_invite(invite.token).secret


async def refused(code: str, call: Awaitable[Any], *, reason: str = "", param: str = "") -> CallError:
    with pytest.raises(CallError) as caught:
        await call
    error = caught.value
    assert (error.code, error.reason, error.param) == (code, reason, param), error
    assert "\n" not in error.message
    return error


# Inviting


async def test_an_invite_says_all_that_a_machine_needs(net: Network) -> None:
    made = await net.invite("web", "gateway", "web", expires_seconds=60, uses=3)
    invite = parse_invite(made.token)
    assert made.expires_at == invite.expires_at == net.clock.seconds + 60
    assert invite == Invite(
        network_id=bytes.fromhex(net.network_id),
        issuer=net.me,
        addresses=ADDRESSES,
        roles=("gateway", "web"),
        expires_at=made.expires_at,
        secret=invite.secret,
    )
    assert len(invite.secret) == SECRET_BYTES
    assert net.door.opened == 1


async def test_an_invite_is_listed_without_its_secret(net: Network) -> None:
    first, second = await net.invite(), await net.invite("acme-plugin", uses=2)
    assert [info.id for info in await net.listed()] == [second.id, first.id]
    assert (await net.listed())[0] == InviteInfo(
        id=second.id,
        issuer=net.me,
        roles=("acme-plugin",),
        uses_left=2,
        used=(),
        expires_at=second.expires_at,
        revoked=False,
        made_at=int(net.clock.seconds),
    )


async def test_no_secret_is_ever_stored(net: Network) -> None:
    made = await net.invite()
    await net.join(made)
    stored = b"".join(key + value for key, value in net.store.reader.scan(b""))
    assert secret_of(made) not in stored
    assert made.token.encode() not in stored


@pytest.mark.parametrize(
    ("wish", "param"),
    [
        ({"roles": ()}, "roles"),
        ({"roles": ("operator",)}, "roles"),  # or it could stamp its calls so
        ({"roles": ("inference", "member")}, "roles"),
        ({"roles": ("Inference",)}, "roles"),
        ({"roles": ("",)}, "roles"),
        ({"roles": ("a/b",)}, "roles"),
        ({"roles": ("\ud800",)}, "roles"),
        ({"roles": ("x" * 33,)}, "roles"),
        ({"roles": tuple(f"r{number}" for number in range(17))}, "roles"),
        ({"uses": 0}, "uses"),
        ({"uses": -1}, "uses"),
        ({"uses": INVITE_USES_MAX + 1}, "uses"),
        ({"expires_seconds": 0}, "expires_seconds"),
        ({"expires_seconds": INVITE_SECONDS_MAX + 1}, "expires_seconds"),
    ],
)
async def test_a_wish_that_makes_no_sense_is_refused_before_anything_listens(
    net: Network, wish: dict[str, Any], param: str
) -> None:
    await refused("invalid", net.operator.call(INVITE_NODE, InviteNode(OPERATOR, **wish)), param=param)
    assert net.door.opened == 0
    assert await net.listed() == ()


async def test_a_node_that_cannot_listen_says_so(net: Network) -> None:
    net.door.refusal = CallError("unsupported", "This node cannot be linked to others.")
    await refused("unsupported", net.invite())
    net.door.refusal, net.door.announced = None, ()
    await refused("conflict", net.invite(), reason="no_address")
    assert await net.listed() == ()


async def test_an_invite_has_as_many_addresses_as_it_has_room_for(net: Network) -> None:
    net.door.announced = tuple(f"/dns4/{'long' * 15}-{number}.example/tcp/26840" for number in range(100))
    made = await net.invite(*(f"role-{number}" for number in range(16)))
    assert len(made.token) <= CHARS_MAX
    addresses = parse_invite(made.token).addresses
    assert len(addresses) > 10
    assert addresses == net.door.announced[: len(addresses)]


async def test_open_invites_are_bounded_and_those_that_are_over_are_forgotten_in_the_end(
    net: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_invites, "INVITES_OPEN_MAX", 5)
    monkeypatch.setattr(node_invites, "INVITES_OVER_MAX", 3)
    made = [await net.invite(expires_seconds=60) for _ in range(5)]
    await refused("conflict", net.invite(), reason="invites_open_max")
    await net.operator.call(REVOKE_INVITE, RevokeInvite(OPERATOR, made[0].id))
    made.append(await net.invite(expires_seconds=60))
    net.clock.seconds += 61
    made.append(await net.invite())
    assert [info.id for info in await net.listed()] == [invite.id for invite in reversed(made[-4:])]
    won, lost = await outcomes(20, lambda _: net.invite())
    assert (won, {error.reason for error in lost}) == (4, {"invites_open_max"})


async def test_revoking_an_invite(net: Network) -> None:
    made = await net.invite()
    for _ in range(2):
        assert await net.operator.call(REVOKE_INVITE, RevokeInvite(OPERATOR, made.id)) == Nothing()
    assert [info.revoked for info in await net.listed()] == [True]
    for unknown in ("0" * 12, "", "x" * 100_000, "\ud800", made.id + "/"):
        await refused("not_found", net.operator.call(REVOKE_INVITE, RevokeInvite(OPERATOR, unknown)), param="id")
    await net.turned_away("invite_revoked", new_peer(), made)


# Who may


async def people(net: Network) -> dict[str, Actor]:
    """An administrator and somebody else, with a session and a key each."""
    actors = dict[str, Actor]()
    for name, role in (("root", "admin"), ("alice", "user")):
        await net.operator.call(ADD_USER, AddUser(OPERATOR, name, PASSWORD, role))  # type: ignore[arg-type]
        actors[name] = Actor(session=(await net.web.call(LOG_IN, LogIn(name, PASSWORD))).token)
        key = await net.web.call(CREATE_KEY, CreateKey(actors[name], admin=role == "admin"))
        actors[f"{name}'s key"] = Actor(key=key.key)
    actors["root's plain key"] = Actor(key=(await net.web.call(CREATE_KEY, CreateKey(actors["root"]))).key)
    return actors


async def test_only_administrators_may_from_wherever_they_ask(net: Network) -> None:
    actors, peer = await people(net), await net.member()
    made = await net.invite()
    calls: list[tuple[Unary[Any, Any], Callable[[Actor], Any]]] = [
        (INVITE_NODE, InviteNode),
        (LIST_INVITES, ListInvites),
        (REVOKE_INVITE, lambda actor: RevokeInvite(actor, made.id)),
        (RENAME_NODE, lambda actor: RenameNode(actor, peer, "robert")),
        (LABEL_NODE, lambda actor: LabelNode(actor, peer, ("gpu",))),
        (PROMOTE_NODE, lambda actor: PromoteNode(actor, peer, ("gateway",))),
        (LIST_MINTED, lambda actor: ListMinted(actor, peer)),
        (REMOVE_NODE, lambda actor: RemoveNode(actor, peer)),
    ]
    for contract, wish in calls:
        for hand in (net.web, net.inference):
            await refused("unauthenticated", hand.call(contract, wish(OPERATOR)), reason="session")
            await refused("unauthenticated", hand.call(contract, wish(Actor(key="cvy_no"))), reason="invalid_api_key")
            for nobody in ("alice", "alice's key", "root's plain key"):
                await refused("forbidden", hand.call(contract, wish(actors[nobody])))
        for hand, actor in ((net.web, actors["root"]), (net.inference, actors["root's key"]), (net.operator, OPERATOR)):
            await hand.call(contract, wish(actor))
    row = net.row(peer)
    assert row is not None
    assert (row.name, row.removed) == ("robert", True)


async def test_what_an_invite_is_worth_ends_with_its_maker_s_say(net: Network) -> None:
    actors = await people(net)
    await net.operator.call(ADD_USER, AddUser(OPERATOR, "other", PASSWORD, "admin"))
    by_root = await net.web.call(INVITE_NODE, InviteNode(actors["root"], uses=2))
    await net.join(by_root)
    admit = net.last_op()
    assert isinstance(admit, Admit)
    assert admit.by not in ("", "operator")
    await net.operator.call(SET_STANDING, SetStanding(OPERATOR, "root", active=False))
    await net.turned_away("invite_revoked", new_peer(), by_root)
    await net.operator.call(SET_STANDING, SetStanding(OPERATOR, "root", active=True))
    await net.join(by_root)


async def test_the_feeds_say_who_did_it(net: Network) -> None:
    actors = await people(net)
    peer = await net.member()
    assert net.last_op() == Admit(peer, ("inference",), "bob", "operator")
    await net.web.call(RENAME_NODE, RenameNode(actors["root"], "bob", "robert"))
    rename = net.last_op()
    assert isinstance(rename, Rename)
    assert rename.by.startswith("U")
    await net.inference.call(REMOVE_NODE, RemoveNode(actors["root's key"], "robert"))
    assert net.last_op() == Remove(peer, {}, rename.by)


async def test_each_method_is_for_the_parties_that_it_names(net: Network) -> None:
    contracts = [value for value in vars(membership).values() if isinstance(value, Unary | Streaming)]
    assert {contract.name.partition(".")[0] for contract in contracts} == {"auth"}
    assert len(contracts) == 10
    with pytest.raises(CallError) as denied:
        async with net.operator.stream(TAIL_MEMBERS, Tail({})) as batches:
            await anext(batches)
    assert denied.value.code == "denied"


# Joining


async def test_a_machine_comes_in(net: Network) -> None:
    invite, peer = await net.invite("inference", "web"), new_peer()
    welcome = await net.join(invite, peer, "bob")
    assert (welcome.name, welcome.roles) == ("bob", ("inference", "web"))
    assert welcome.addresses == net.door.addresses()
    assert welcome.genesis == net.store.reader.get(GENESIS_KEY)
    assert list(welcome.members) == net.entries()
    row = net.row(peer)
    assert row is not None
    assert (row.name, row.roles, row.removed) == ("bob", ("inference", "web"), False)
    async with open_store(MemoryStore(), Metrics()) as theirs:
        await install(theirs, welcome.genesis, net.network_id, welcome.members, now=net.clock.seconds)
        assert View(theirs.reader).hash("members") == View(net.store.reader).hash("members")
    (listed,) = await net.listed()
    assert (listed.uses_left, [use.peer for use in listed.used]) == (0, [peer])


async def test_a_used_invite_says_who_used_it_and_when(net: Network) -> None:
    invite = await net.invite()
    await net.join(invite, name="bob")
    problem = await net.turned_away("invite_used", new_peer(), invite)
    assert problem.code == "forbidden"
    assert "used by bob on 2027-01-15 at 08:00:00 UTC" in problem.message
    twice = await net.invite(uses=2)
    for name in ("carol", "dave"):
        net.clock.seconds += 60
        await net.join(twice, name=name)
    assert "2 times, the last time by dave" in (await net.turned_away("invite_used", new_peer(), twice)).message


async def test_an_expired_invite(net: Network) -> None:
    invite = await net.invite(expires_seconds=60)
    net.clock.seconds += 60
    assert "expired" in (await net.turned_away("invite_expired", new_peer(), invite)).message


async def test_what_is_no_invite_of_this_node_learns_nothing(net: Network) -> None:
    good = secret_of(await net.invite())
    problems = set[Problem]()
    for secret in (bytes(SECRET_BYTES), good[:-1], good + b"x", bytes([good[0] ^ 1]) + good[1:], b"x" * 4000):
        problems.add(await net.turned_away("invite_unknown", new_peer(), secret))
    assert len(problems) == 1
    assert [info.uses_left for info in await net.listed()] == [1]


async def test_an_invite_of_another_network(net: Network) -> None:
    invite = await net.invite()
    for network_id in ("0" * 64, "x", "\ud800"):
        problem = await net.turned_away("wrong_network", new_peer(), invite, network_id=network_id)
        assert problem.code == "forbidden"
    await net.turned_away("wrong_network", new_peer(), network_id="0" * 64)
    await net.join(invite)


async def test_a_machine_may_ask_what_it_is(net: Network) -> None:
    peer = new_peer()
    assert (await net.turned_away("not_member", peer)).code == "forbidden"
    await net.join(await net.invite(), peer)
    assert (await net.turned_away("member", peer)).code == "conflict"
    await net.operator.call(REMOVE_NODE, RemoveNode(OPERATOR, peer))
    problem = await net.turned_away("removed", peer)
    assert problem.code == "forbidden"
    assert "covey join --replace" in problem.message
    for _ in range(50):  # asking is no attempt
        await net.turned_away("not_member", new_peer())
        await net.turned_away("removed", peer)


async def test_a_removed_machine_never_comes_back(net: Network) -> None:
    peer = await net.member()
    await net.operator.call(REMOVE_NODE, RemoveNode(OPERATOR, "bob"))
    fresh = await net.invite("inference", "gateway")
    assert "new identity" in (await net.turned_away("removed", peer, fresh)).message
    assert (await net.listed())[0].uses_left == 1
    row = net.row(peer)
    assert row is not None
    assert row.removed
    welcome = await net.join(fresh, name="bob")  # the same machine, with a new identity and its old name
    assert welcome.name == "bob"


async def test_a_member_that_missed_the_answer_asks_again(net: Network) -> None:
    invite, peer = await net.invite(), new_peer()
    first = await net.join(invite, peer, "bob")
    entries = net.entries()
    again = await net.join(invite, peer, "robert")
    assert again == first
    assert net.entries() == entries
    net.clock.seconds += 7200
    assert await net.join(invite, peer) == first
    other = await net.invite(uses=5)
    await net.join(other, peer)
    assert (await net.listed())[0].uses_left == 5


async def test_a_member_gains_roles_by_an_invite_that_is_burnt_for_it(net: Network) -> None:
    peer = await net.member("inference")
    more = await net.invite("gateway", "inference")
    welcome = await net.join(more, peer, "robert")
    assert (welcome.name, welcome.roles) == ("bob", ("gateway", "inference"))
    assert net.last_op() == Admit(peer, ("gateway", "inference"), "bob", "operator")
    assert (await net.listed())[0].uses_left == 0
    assert (await net.join(more, peer)).roles == ("gateway", "inference")
    other = await net.member("inference", name="other")
    await net.turned_away("invite_used", other, more)
    await net.turned_away("invite_unknown", other, bytes(20))


async def test_fifty_machines_with_one_invite_at_once(net: Network) -> None:
    invite = await net.invite()
    answers = list[JoinAnswer]()

    async def one() -> None:
        answers.append(await net.ask(new_peer(), secret_of(invite)))

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(one)
    assert len([answer for answer in answers if answer.welcome]) == 1
    assert {answer.refusal.reason for answer in answers if answer.refusal} == {"invite_used"}
    assert net.names() == ["alice", "bob"]


async def test_fifty_machines_that_all_want_one_name(net: Network) -> None:
    invite = await net.invite(uses=50)
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(net.join, invite)
    assert net.names() == sorted(["alice", "bob", *(f"bob-{number}" for number in range(2, 51))])
    (listed,) = await net.listed()
    assert (listed.uses_left, len(listed.used)) == (0, INVITE_USES_SHOWN)


@pytest.mark.parametrize(
    ("wanted", "name"),
    [
        ("ALICE", "ALICE-2"),
        ("bob's laptop", "bob-s-laptop"),
        ("", "node"),
        ("___", "node"),
        ("../../etc", "etc"),
        ("\x1b[31m\n", "31m"),
        ("\ud800", "node"),
        ("日本", "node"),
        ("n" * 4000, "n" * 63),
        ("12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X", "node"),  # or it could pass for that one
    ],
)
async def test_a_machine_gets_a_name_that_is_one(net: Network, wanted: str, name: str) -> None:
    invite = await net.invite(uses=2)
    assert (await net.join(invite, name=wanted)).name == name
    second = (await net.join(invite, name=wanted)).name
    assert second not in (name, "alice")
    assert len(second) <= 63


def test_names_are_those_of_the_configuration() -> None:
    assert NODE_NAME_PATTERN == configuration.NAME_PATTERN


async def test_guessing_is_held_back_peer_by_peer(net: Network, mock_clock: trio.testing.MockClock) -> None:
    peer, invite = new_peer(), await net.invite()
    for _ in range(6):
        await net.turned_away("invite_unknown", peer, bytes(SECRET_BYTES))
    problem = await net.turned_away("joins", peer, invite)
    assert problem.code == "rate_limited"
    assert problem.retry_after_seconds == pytest.approx(1.0)
    await net.turned_away("invite_unknown", new_peer(), bytes(SECRET_BYTES))
    mock_clock.jump(1.1)
    await net.join(invite, peer)


class Disk(MemoryStore):
    """Refuses to write when told, and survives its closing."""

    def __init__(self) -> None:
        self.full = False
        self.batches: list[set[bytes]] = []
        super().__init__()

    def write(self, batch: Batch) -> None:
        if self.full:
            raise StoreError("The disk is full: make room.", reason="full")
        self.batches.append({key for key, _ in batch})
        super().write(batch)

    def close(self) -> None:
        pass


async def test_what_the_disk_refuses_burns_nothing_and_admits_nobody() -> None:
    disk = Disk()
    async with network(kv=disk) as net:
        invite, peer = await net.invite(), new_peer()
        disk.full = True
        assert (await net.turned_away("full", peer, invite)).code == "storage"
        await refused("storage", net.invite(), reason="full")
        disk.full = False
        assert net.row(peer) is None
        await net.join(invite, peer)
        # One batch holds both: no crash can part them.
        assert f"l/invites/{invite.id}".encode() in disk.batches[-1]
        assert f"v/members/member/{peer}".encode() in disk.batches[-1]


async def test_a_machine_that_hangs_up_is_let_in_whole_or_not_at_all(net: Network) -> None:
    for patience in range(12):
        invite, peer = await net.invite(), new_peer()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def hang_up(steps: int = patience, scope: trio.CancelScope = scope) -> None:
                    for _ in range(steps):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()

                nursery.start_soon(hang_up)
                await net.ask(peer, secret_of(invite))
        await net.invite()  # the writer takes one after the other: whatever it had is done now
        listed = next(info for info in await net.listed() if info.id == invite.id)
        assert (net.row(peer) is not None) == (listed.uses_left == 0)
        await net.join(invite, peer)


async def test_an_answer_too_long_to_be_sent_burns_nothing(net: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    invite, peer = await net.invite(), new_peer()
    monkeypatch.setattr(admission, "MEMBERS_BYTES_MAX", 100)
    assert (await net.turned_away("", peer, invite)).code == "too_large"
    monkeypatch.undo()
    assert (await net.listed())[0].uses_left == 1


@pytest.mark.parametrize("on_disk", [False, True])
async def test_invites_and_members_survive_a_restart(on_disk: bool, tmp_path: Path) -> None:
    identity, clock, memory = Identity.generate(), WallClock(), Disk()

    async def store() -> KeyValues:
        return await trio.to_thread.run_sync(open_leveldb, tmp_path) if on_disk else memory

    async with network(kv=await store(), identity=identity, clock=clock) as net:
        invite = await net.invite(uses=3)
        revoked = await net.invite()
        await net.operator.call(REVOKE_INVITE, RevokeInvite(OPERATOR, revoked.id))
        peer = await net.member()
        await net.join(invite, peer)
        await net.join(invite, name="carol")
        listed, members = await net.listed(), View(net.store.reader).hash("members")
    async with network(kv=await store(), identity=identity, clock=clock) as net:
        assert await net.listed() == listed
        assert View(net.store.reader).hash("members") == members
        await net.turned_away("invite_revoked", new_peer(), revoked)
        await net.join(invite, name="dave")
        assert net.names() == ["alice", "bob", "carol", "dave"]
        await net.invite()
        assert len(await net.listed()) == 4


# Removing and renaming


@pytest.mark.parametrize("by", ["name", "NAME", "peer"])
async def test_a_node_is_removed_once_and_for_all(net: Network, by: str) -> None:
    peer = await net.member(name="bob")
    node = {"name": "bob", "NAME": "BOB", "peer": str(peer)}[by]
    gone = await net.operator.call(REMOVE_NODE, RemoveNode(OPERATOR, node))
    assert gone == Member(peer=peer, name="bob", roles=("inference",), removed=True)
    entries = net.entries()
    assert await net.operator.call(REMOVE_NODE, RemoveNode(OPERATOR, node)) == gone
    assert net.entries() == entries


async def test_the_last_auth_node_and_the_one_that_answers_stay(net: Network) -> None:
    await refused(
        "conflict", net.operator.call(REMOVE_NODE, RemoveNode(OPERATOR, "alice")), reason="last_auth", param="node"
    )
    await net.member("auth", name="second")
    error = await refused(
        "conflict", net.operator.call(REMOVE_NODE, RemoveNode(OPERATOR, net.me)), reason="self", param="node"
    )
    assert "another auth node" in error.message
    await net.operator.call(REMOVE_NODE, RemoveNode(OPERATOR, "second"))
    await refused(
        "conflict", net.operator.call(REMOVE_NODE, RemoveNode(OPERATOR, "alice")), reason="last_auth", param="node"
    )


async def test_a_removed_author_is_cut_off_where_its_feeds_are_known_to_end(net: Network) -> None:
    bob = Identity.generate()
    welcome = await net.join(await net.invite("auth"), bob.peer_id)
    async with open_store(MemoryStore(), Metrics()) as theirs:
        await install(theirs, welcome.genesis, net.network_id, welcome.members, now=net.clock.seconds)
        async with open_feeds(theirs, bob, net.clock, node_name="") as feeds:
            own = feeds.own("members")
            for name in ("one", "two"):
                await feeds.append(lambda _, name=name: [Rename(bob.peer_id, name, "operator")])
            for batch in batches_after(theirs.reader, "members", vector(net.store.reader, "members")):
                await ingest(net.store, "members", batch, now=net.clock.seconds)
            await net.operator.call(REMOVE_NODE, RemoveNode(OPERATOR, "two"))
            assert net.last_op() == Remove(bob.peer_id, {own: 2}, "operator")
            await feeds.append(lambda _: [Rename(bob.peer_id, "three", "operator")])
            for batch in batches_after(theirs.reader, "members", vector(net.store.reader, "members")):
                before = View(net.store.reader).hash("members")
                assert (await ingest(net.store, "members", batch, now=net.clock.seconds)).applied == 1  # and counts not
                assert View(net.store.reader).hash("members") == before
    async with follower(net) as late:  # one that hears all of it afterwards comes to the same view
        assert View(late.reader).hash("members") == View(net.store.reader).hash("members")


@pytest.mark.parametrize("node", ["", "nobody", "\ud800", "x" * 100_000, Identity(bytes(32)).peer_id])
async def test_there_is_no_such_node(net: Network, node: str) -> None:
    await refused("not_found", net.operator.call(REMOVE_NODE, RemoveNode(OPERATOR, node)), param="node")
    await refused("not_found", net.operator.call(RENAME_NODE, RenameNode(OPERATOR, node, "bob")), param="node")


async def test_a_node_gets_another_name(net: Network) -> None:
    peer = await net.member(name="bob")
    renamed = await net.operator.call(RENAME_NODE, RenameNode(OPERATOR, "Bob", "bench"))
    assert renamed == Member(peer=peer, name="bench", roles=("inference",))
    entries = net.entries()
    assert await net.operator.call(RENAME_NODE, RenameNode(OPERATOR, peer, "bench")) == renamed
    assert net.entries() == entries
    assert (await net.operator.call(RENAME_NODE, RenameNode(OPERATOR, peer, "BENCH"))).name == "BENCH"
    await refused("not_found", net.operator.call(RENAME_NODE, RenameNode(OPERATOR, "bob", "x")), param="node")


async def test_a_node_gets_labels_and_loses_them(net: Network) -> None:
    peer = await net.member(name="bob")
    label = partial(net.operator.call, LABEL_NODE)
    assert (await label(LabelNode(OPERATOR, "Bob", ("trusted", "gpu", "gpu")))).labels == ("gpu", "trusted")
    entries = net.entries()
    assert (await label(LabelNode(OPERATOR, peer, ("gpu",), ("attic",)))).labels == ("gpu", "trusted")
    assert net.entries() == entries  # nothing to do
    assert (await label(LabelNode(OPERATOR, peer, ("attic",), ("gpu",)))).labels == ("attic", "trusted")
    assert net.last_op() == Label(peer, {"attic": True, "gpu": False}, "operator")
    row = net.row(peer)
    assert row is not None
    assert (row.labels, row.roles, row.name) == (("attic", "trusted"), ("inference",), "bob")
    records = (await net.operator.call(AUDIT, Audit(OPERATOR))).records
    assert [one.what for one in records[:2]] == [
        "The machine bob was labelled attic and is labelled gpu no more.",
        "The machine bob was labelled gpu, trusted.",
    ]
    await label(LabelNode(OPERATOR, peer, (), ("attic", "trusted")))
    assert (await net.operator.call(AUDIT, Audit(OPERATOR))).records[0].what == (
        "The machine bob is labelled attic, trusted no more."
    )


async def test_labels_that_make_no_sense_are_refused(net: Network) -> None:
    peer = await net.member(name="bob")
    label = partial(net.operator.call, LABEL_NODE)
    for one in ("", "GPU", "a b", "a_b", "x" * 33, "a\n", "é", "\ud800"):
        await refused("invalid", label(LabelNode(OPERATOR, "bob", (one,))), param="add")
        await refused("invalid", label(LabelNode(OPERATOR, "bob", (), (one,))), param="remove")
    await refused("invalid", label(LabelNode(OPERATOR, "bob", ("gpu",), ("gpu",))), param="add")
    await refused("not_found", label(LabelNode(OPERATOR, "nobody", ("gpu",))), param="node")
    many = tuple(f"l{number}" for number in range(NODE_LABELS_MAX))
    await label(LabelNode(OPERATOR, "bob", many))
    await refused("conflict", label(LabelNode(OPERATOR, "bob", ("more",))), reason="labels_max", param="add")
    assert len((await label(LabelNode(OPERATOR, "bob", ("more",), ("l0",)))).labels) == NODE_LABELS_MAX
    await net.operator.call(REMOVE_NODE, RemoveNode(OPERATOR, "bob"))
    await refused("conflict", label(LabelNode(OPERATOR, peer, ("gpu",))), reason="removed", param="node")


async def test_a_name_is_one_and_one_node_s(net: Network) -> None:
    peer = await net.member(name="bob")
    for name in ("", "-x", "a b", "x" * 64, "\ud800", "a/b", str(net.me)):
        await refused("invalid", net.operator.call(RENAME_NODE, RenameNode(OPERATOR, "bob", name)), param="name")
    for name in ("alice", "Alice"):
        wish = RenameNode(OPERATOR, "bob", name)
        await refused("conflict", net.operator.call(RENAME_NODE, wish), reason="name_taken", param="name")
    await net.operator.call(REMOVE_NODE, RemoveNode(OPERATOR, "bob"))
    await refused(
        "conflict", net.operator.call(RENAME_NODE, RenameNode(OPERATOR, peer, "x")), reason="removed", param="node"
    )
    await net.member(name="carol")
    assert (await net.operator.call(RENAME_NODE, RenameNode(OPERATOR, "carol", "bob"))).name == "bob"


async def test_a_name_raced_has_one_winner(net: Network) -> None:
    peers = [await net.member(name=f"n{number}") for number in range(10)]
    won, lost = await outcomes(
        10, lambda number: net.operator.call(RENAME_NODE, RenameNode(OPERATOR, peers[number], "best"))
    )
    assert (won, {error.reason for error in lost}) == (1, {"name_taken"})


async def test_of_two_machines_with_one_name_the_member_is_meant(net: Network) -> None:
    first = await net.member(name="bob")
    await net.operator.call(REMOVE_NODE, RemoveNode(OPERATOR, "bob"))
    second = await net.member(name="bob")
    assert (await net.operator.call(REMOVE_NODE, RemoveNode(OPERATOR, "bob"))).peer == second
    await refused(
        "conflict", net.operator.call(REMOVE_NODE, RemoveNode(OPERATOR, "bob")), reason="ambiguous", param="node"
    )
    assert (await net.operator.call(REMOVE_NODE, RemoveNode(OPERATOR, first))).peer == first


# The members feed


@asynccontextmanager
async def follower(net: Network) -> AsyncGenerator[Store, None]:
    """A store that has the genesis, and follows until it has all that there is now."""
    async with open_store(MemoryStore(), Metrics()) as store:
        await install(store, net.store.reader.get(GENESIS_KEY) or b"", net.network_id, (), now=net.clock.seconds)
        async with net.inference.stream(TAIL_MEMBERS, Tail({})) as batches:
            async for batch in batches:
                if not batch.entries:
                    break
                await ingest(store, "members", batch.entries, now=net.clock.seconds)
        yield store


async def test_a_reader_catches_up_lives_on_and_hears_a_heart_beat(
    net: Network, monkeypatch: pytest.MonkeyPatch, mock_clock: trio.testing.MockClock
) -> None:
    mock_clock.rate = 1  # jumping while the store's thread writes would let calls run into their deadlines
    monkeypatch.setattr(ingest_module, "BATCH_ENTRIES_MAX", 4)
    for number in range(10):
        await net.member(name=f"n{number}")
    (feed,) = vector(net.store.reader, "members")
    async with net.inference.stream(TAIL_MEMBERS, Tail({feed: 2})) as batches:
        caught_up = [await anext(batches) for _ in range(3)]
        assert [len(batch.entries) for batch in caught_up] == [4, 4, 1]
        assert {batch.heads[feed] for batch in caught_up} == {11}
        assert [entry for batch in caught_up for entry in batch.entries] == net.entries()[2:]
        mock_clock.rate, mock_clock.autojump_threshold = 0, 0
        assert await anext(batches) == beat(net)
        for _ in range(3):
            started = trio.current_time()
            assert await anext(batches) == beat(net)
            assert trio.current_time() - started == pytest.approx(HEARTBEAT_SECONDS, abs=0.1)
        mock_clock.rate, mock_clock.autojump_threshold = 1, float("inf")
        await net.operator.call(RENAME_NODE, RenameNode(OPERATOR, "n3", "late"))
        while not (live := await anext(batches)).entries:
            pass
        assert unseal(live.entries[0]).entry.seq == live.heads[feed] == 12
        assert len(live.entries) == 1


async def test_writing_other_things_sends_nothing_but_heart_beats(
    net: Network, mock_clock: trio.testing.MockClock
) -> None:
    mock_clock.rate = 20
    written = 0
    async with net.inference.stream(TAIL_MEMBERS, Tail(vector(net.store.reader, "members"))) as batches:
        assert (await anext(batches)).entries == ()
        async with trio.open_nursery() as nursery:

            async def busy() -> None:
                corner = net.store.local("noise")
                nonlocal written
                while True:
                    await corner.put(b"x", b"y")
                    written += 1

            nursery.start_soon(busy)
            for _ in range(2):
                started = trio.current_time()
                assert (await anext(batches)).entries == ()
                assert HEARTBEAT_SECONDS * 0.9 <= trio.current_time() - started <= TAIL_MEMBERS.idle_seconds
            nursery.cancel_scope.cancel()
        assert written > 20


async def test_a_reader_that_is_ahead_or_has_odd_feeds_is_told_what_there_is(net: Network) -> None:
    (feed,) = vector(net.store.reader, "members")
    ahead = {feed: 99, str(FeedId("members", new_peer(), "0" * 16)): 7, "nonsense": -1}
    async with net.inference.stream(TAIL_MEMBERS, Tail(ahead)) as batches:
        assert await anext(batches) == beat(net)
    async with net.inference.stream(TAIL_MEMBERS, Tail({feed: -5})) as batches:
        assert list((await anext(batches)).entries) == net.entries()


async def test_many_readers_follow_a_network_that_grows(net: Network) -> None:
    """From the genesis, through the bus, each reaches the view of the author."""

    async def follow(done: trio.Event) -> None:
        async with open_store(MemoryStore(), Metrics()) as store:
            await install(store, net.store.reader.get(GENESIS_KEY) or b"", net.network_id, (), now=net.clock.seconds)
            async with net.inference.stream(TAIL_MEMBERS, Tail({})) as batches:
                async for batch in batches:
                    if batch.entries:
                        await ingest(store, "members", batch.entries, now=net.clock.seconds)
                    if any(row.name == "the-last" for row in View(store.reader).all(MemberRow)):
                        break
            assert View(store.reader).hash("members") == View(net.store.reader).hash("members")
        done.set()

    ends = [trio.Event() for _ in range(8)]
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for end in ends:
                nursery.start_soon(follow, end)
            for number in range(20):
                await net.member(name=f"n{number}")
                if number % 5 == 4:
                    await net.operator.call(REMOVE_NODE, RemoveNode(OPERATOR, f"n{number - 1}"))
            await net.member(name="the-last")
    assert all(end.is_set() for end in ends)


async def test_a_removed_reader_learns_it_and_no_more(net: Network) -> None:
    """Where its link is not cut first."""
    peer = await net.member()
    heard = list[FeedEntries]()
    told = trio.Event()

    async def emit(batch: FeedEntries) -> None:
        heard.append(batch)
        told.set()

    caller = Caller(peer, "inference")
    with trio.fail_after(5), pytest.RaisesGroup(CallError) as ended:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(FeedTails(net.store, trio.Event()).of("members"), caller, Tail({}), emit)
            await told.wait()
            await net.operator.call(REMOVE_NODE, RemoveNode(OPERATOR, peer))
            await trio.sleep_forever()
    (error,) = ended.value.exceptions
    assert isinstance(error, CallError)
    assert (error.code, error.reason) == ("forbidden", "removed")
    (last,) = heard[-1].entries
    assert unseal(last).entry.ops == (Remove(peer, {}, "operator"),)


async def test_a_cancelled_reader_leaves_nothing_behind(net: Network) -> None:
    for _ in range(20):
        async with AsyncExitStack() as stack:
            for _ in range(5):
                stream = await stack.enter_async_context(net.inference.stream(TAIL_MEMBERS, Tail({})))
                await anext(stream)
    with trio.fail_after(5):
        await net.member()


async def outcomes(count: int, attempt: Callable[[int], Awaitable[Any]]) -> tuple[int, list[CallError]]:
    """Run attempts at the same time: how many succeeded, and how the others were refused."""
    won, lost = 0, list[CallError]()

    async def one(number: int) -> None:
        nonlocal won
        try:
            await attempt(number)
            won += 1
        except CallError as error:
            lost.append(error)

    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(one, number)
    return won, lost


def test_a_busy_writer_is_looked_at_now_and_then_only() -> None:
    assert 0 < tails.LOOK_SECONDS_MIN < 0.5 < HEARTBEAT_SECONDS < TAIL_MEMBERS.idle_seconds / 2
