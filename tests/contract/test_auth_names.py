"""Log-in names that were given away twice, by auth nodes that did not see each other; and who gives names away at all.

One real auth role, and entries of a second auth node that come in late.
"""

from collections.abc import Sequence
from contextlib import suppress

import pytest
from test_auth_nodes import OPERATOR, PASSWORD, Network, network, new_peer, refused

from covey.contracts.auth import (
    ADD_USER,
    CREATE_KEY,
    INVITE_PERSON,
    LIST_USERS,
    LOG_IN,
    REGISTER,
    RENAME_USER,
    SET_STANDING,
    SET_UP,
    SET_UP_SECRET,
    WHO_AM_I,
    Account,
    Actor,
    AddUser,
    CreateKey,
    InvitePerson,
    ListUsers,
    LogIn,
    Register,
    RenameUser,
    SessionGrant,
    SetStanding,
    SetUp,
    WhoAmI,
)
from covey.contracts.feeds import Op
from covey.contracts.method import Nothing
from covey.errors import CallError
from covey.roles.auth import people
from covey.roles.auth.accounts import new_account
from covey.roles.auth.passwords import HashCost, Passwords
from covey.store.feed_log import GENESIS_KEY
from covey.store.feeds import Author
from covey.store.identity import Identity
from covey.store.ingest import ingest
from covey.store.rows import AccountRow
from covey.store.view import View

OTHERS_PASSWORD = "nine brass kettles"


class Other:
    """A second auth node, whose entries are made now and heard of later."""

    def __init__(self, net: Network, identity: Identity) -> None:
        self._net = net
        self._author = Author(identity, net.store.reader.get(GENESIS_KEY) or b"", "b" * 16)
        self._unheard: list[tuple[str, bytes]] = []

    def say(self, ops: Sequence[Op]) -> None:
        """In its own feeds, as it would have if it knew what the node knows now."""
        batch, _ = self._author.write(self._net.store.reader, ops, self._net.clock.now())
        self._unheard += [
            (key.decode().split("/")[1], value) for key, value in batch if key.startswith(b"e/") and value is not None
        ]

    async def heard(self) -> None:
        """The node gets to know all of it."""
        for kind in ("members", "keys", "secret"):
            entries = [entry for of_kind, entry in self._unheard if of_kind == kind]
            taken = await ingest(self._net.store, kind, entries, now=self._net.clock.now())
            assert taken.applied == len(entries)
        self._unheard = []


async def other_auth_node(net: Network) -> Other:
    identity = Identity.generate()
    await net.join(await net.invite("auth"), identity.peer_id, "bob")
    return Other(net, identity)


async def elsewhere(net: Network, other: Other, name: str, password: str = OTHERS_PASSWORD) -> str:
    """An account that the other node makes; returns its id."""
    passwords = Passwords(HashCost(memory_kibibytes=8, passes=1))
    hashed = await passwords.hash(password)
    account, ops = new_account(
        name, hashed, role="user", pending=False, created_at=int(net.clock.now()), by=people.OPERATOR
    )
    other.say(ops)
    return account


async def log_in(net: Network, name: str, password: str) -> SessionGrant:
    return await net.web.call(LOG_IN, LogIn(name, password))


async def twice(net: Network) -> tuple[Account, str]:
    """Two accounts called alice: that of the other node was first, and is heard of last."""
    other = await other_auth_node(net)
    net.clock.seconds += 1
    first = await elsewhere(net, other, "alice")
    net.clock.seconds += 1
    account = await net.operator.call(ADD_USER, AddUser(OPERATOR, "alice", PASSWORD))
    assert not account.name_lost
    await other.heard()
    return account, first


async def test_whoever_claimed_a_name_first_has_it_and_the_other_is_told() -> None:
    async with network() as net:
        account, first = await twice(net)
        listed = (await net.operator.call(LIST_USERS, ListUsers(OPERATOR))).accounts
        assert {one.id: one.name_lost for one in listed} == {account.id: True, first: False}
        mine = await log_in(net, "alice", PASSWORD)
        assert (mine.account.id, mine.account.name_lost) == (account.id, True)
        assert (await net.web.call(WHO_AM_I, WhoAmI(mine.token))).name_lost
        theirs = await log_in(net, "alice", OTHERS_PASSWORD)
        assert (theirs.account.id, theirs.account.name_lost) == (first, False)
        await refused("unauthenticated", log_in(net, "alice", "neither of the two"), reason="log_in")


async def test_the_loser_chooses_another_name_and_goes_on() -> None:
    async with network() as net:
        account, first = await twice(net)
        mine = await log_in(net, "alice", PASSWORD)
        actor = Actor(session=mine.token)
        await refused(
            "conflict", net.web.call(RENAME_USER, RenameUser(actor, "alice")), reason="name_taken", param="name"
        )
        renamed = await net.web.call(RENAME_USER, RenameUser(actor, "alicia"))
        assert (renamed.id, renamed.name, renamed.name_lost) == (account.id, "alicia", False)
        assert (await net.web.call(WHO_AM_I, WhoAmI(mine.token))).name == "alicia"
        assert (await log_in(net, "alicia", PASSWORD)).account.id == account.id
        await refused("unauthenticated", log_in(net, "alice", PASSWORD), reason="log_in")
        assert (await log_in(net, "alice", OTHERS_PASSWORD)).account.id == first


async def test_an_administrator_renames_the_loser_by_its_id() -> None:
    async with network() as net:
        account, first = await twice(net)
        renamed = await net.operator.call(RENAME_USER, RenameUser(OPERATOR, "alicia", account.id))
        assert (renamed.id, renamed.name) == (account.id, "alicia")
        by_name = await net.operator.call(RENAME_USER, RenameUser(OPERATOR, "ally", "alice"))
        assert by_name.id == first


async def test_a_disabled_holder_keeps_the_name_and_nobody_out() -> None:
    async with network() as net:
        account, first = await twice(net)
        await net.operator.call(SET_STANDING, SetStanding(OPERATOR, first, active=False))
        await refused("unauthenticated", log_in(net, "alice", OTHERS_PASSWORD), reason="log_in")
        assert (await log_in(net, "alice", PASSWORD)).account.id == account.id


async def test_a_log_in_makes_one_hash_unless_the_name_was_given_away_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    verify = Passwords.verify

    async def counted(self: Passwords, stored: str, password: str) -> bool:
        made.append(stored)
        return await verify(self, stored, password)

    monkeypatch.setattr(Passwords, "verify", counted)
    async with network() as net:
        await twice(net)
        await net.operator.call(ADD_USER, AddUser(OPERATOR, "carol", PASSWORD))
        for name, password, hashes in [
            ("carol", PASSWORD, 1),
            ("carol", "wrong", 1),
            ("nobody", "wrong", 1),
            ("alice", PASSWORD, 2),
            ("alice", OTHERS_PASSWORD, 2),
            ("alice", "wrong", 2),
        ]:
            made.clear()
            with suppress(CallError):
                await log_in(net, name, password)
            assert len(made) == hashes, (name, password)


# Renaming


async def test_people_rename_themselves_and_administrators_anybody() -> None:
    async with network() as net:
        secret = (await net.operator.call(SET_UP_SECRET, Nothing())).secret
        root = await net.web.call(SET_UP, SetUp(secret, "root", PASSWORD))
        for name in ("alice", "bob"):
            await net.operator.call(ADD_USER, AddUser(OPERATOR, name, PASSWORD))
        alice = await log_in(net, "alice", PASSWORD)
        actor = Actor(session=alice.token)
        assert (await net.web.call(RENAME_USER, RenameUser(actor, "ally"))).name == "ally"
        assert (await net.web.call(RENAME_USER, RenameUser(actor, "ally"))).name == "ally"  # nothing to do
        await refused("forbidden", net.web.call(RENAME_USER, RenameUser(actor, "x", "bob")), param="user")
        await refused(
            "conflict", net.web.call(RENAME_USER, RenameUser(actor, "bob")), reason="name_taken", param="name"
        )
        for bad in ("", "Alice", "a b", "operator", "x" * 33):
            await refused("invalid", net.web.call(RENAME_USER, RenameUser(actor, bad)), param="name")
        await refused("unauthenticated", net.web.call(RENAME_USER, RenameUser(OPERATOR, "y")), reason="session")
        await refused("not_found", net.operator.call(RENAME_USER, RenameUser(OPERATOR, "y")), param="user")
        renamed = await net.web.call(RENAME_USER, RenameUser(Actor(session=root.token), "robert", "bob"))
        assert renamed.name == "robert"
        assert (await log_in(net, "robert", PASSWORD)).account.id == renamed.id
        assert (await net.web.call(WHO_AM_I, WhoAmI(alice.token))).name == "ally"  # the session went on


async def test_a_key_that_is_no_administrators_renames_nobody() -> None:
    async with network() as net:
        await net.operator.call(ADD_USER, AddUser(OPERATOR, "alice", PASSWORD))
        alice = await log_in(net, "alice", PASSWORD)
        key = await net.web.call(CREATE_KEY, CreateKey(Actor(session=alice.token)))
        await refused("forbidden", net.web.call(RENAME_USER, RenameUser(Actor(key=key.key), "ally")), param="user")


async def test_a_name_is_given_on_so_often_and_no_more() -> None:
    """Or the accounts that had it once would hide the one that has it now."""
    async with network() as net:
        for number in range(people.CLAIMS_NEW_MAX):
            await net.operator.call(ADD_USER, AddUser(OPERATOR, "guest", PASSWORD))
            assert (await log_in(net, "guest", PASSWORD)).account.name == "guest"
            await net.operator.call(RENAME_USER, RenameUser(OPERATOR, f"guest{number}", "guest"))
        call = net.operator.call(ADD_USER, AddUser(OPERATOR, "guest", PASSWORD))
        await refused("conflict", call, reason="name_taken", param="name")
        assert people.named(View(net.store.reader), "guest") is None
        assert sum(1 for _ in View(net.store.reader).all(AccountRow)) == people.CLAIMS_NEW_MAX


# Who gives names away


async def test_without_a_majority_no_names_are_given_away() -> None:
    async with network() as net:
        secret = (await net.operator.call(SET_UP_SECRET, Nothing())).secret
        alice = await net.operator.call(ADD_USER, AddUser(OPERATOR, "alice", PASSWORD))
        for name in ("bob", "carol"):
            await net.join(await net.invite("auth"), new_peer(), name)
        mine = await log_in(net, "alice", PASSWORD)  # who has a name goes on
        for call in (
            net.operator.call(ADD_USER, AddUser(OPERATOR, "dave", PASSWORD)),
            net.operator.call(RENAME_USER, RenameUser(OPERATOR, "ally", alice.id)),
            net.web.call(RENAME_USER, RenameUser(Actor(session=mine.token), "ally")),
            net.web.call(SET_UP, SetUp(secret, "root", PASSWORD)),
        ):
            error = await refused("conflict", call, reason="no_majority")
            assert "sees 1 of the network's 3 auth nodes" in error.message
        await net.operator.call(SET_STANDING, SetStanding(OPERATOR, "alice", active=False))  # nor is a denial held up


async def test_nobody_registers_without_a_majority() -> None:
    async with network() as net:
        secret = (await net.operator.call(SET_UP_SECRET, Nothing())).secret
        root = await net.web.call(SET_UP, SetUp(secret, "root", PASSWORD))
        invitation = await net.web.call(INVITE_PERSON, InvitePerson(Actor(session=root.token)))
        for name in ("bob", "carol"):
            await net.join(await net.invite("auth"), new_peer(), name)
        wish = Register("dave", PASSWORD, invitation.secret)
        await refused("conflict", net.web.call(REGISTER, wish), reason="no_majority")
        await refused("forbidden", net.web.call(REGISTER, Register("dave", PASSWORD)), reason="invitation_needed",
                      param="invitation")  # fmt: skip
