"""The auth role, real, on a store in memory or on disk, called over the bus as the web role, a gateway or the operator.

Every contract, and every refusal that it documents.
"""

import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import argon2
import msgspec
import pytest
import trio
import trio.testing

from covey.bus.bus import Bus, BusHandle
from covey.contracts import auth
from covey.contracts.auth import (
    ADD_USER,
    AUTH_STATE,
    AUTHORIZE,
    CHANGE_PASSWORD,
    CREATE_KEY,
    INVITE_PERSON,
    KEY_USED,
    LIMIT_USER,
    LIST_KEYS,
    LIST_USERS,
    LOG_IN,
    LOG_OUT,
    REGISTER,
    RESET_PASSWORD,
    REVOKE_KEY,
    SET_STANDING,
    SET_UP,
    SET_UP_SECRET,
    TAKE_RECOVERY_KEY,
    VERIFY,
    WHO_AM_I,
    Actor,
    AddUser,
    AuthorizeActor,
    ChangePassword,
    CreateKey,
    Identity,
    InvitePerson,
    KeyLimits,
    KeyUsed,
    LimitUser,
    ListKeys,
    ListUsers,
    LogIn,
    LogOut,
    NewKey,
    Register,
    ResetPassword,
    RevokeKey,
    SessionGrant,
    SetStanding,
    SetUp,
    VerifyKey,
    WhoAmI,
)
from covey.contracts.keys import MINT_BYTES, mint, parse
from covey.contracts.method import Nothing, Unary
from covey.errors import CallError
from covey.http.router import Router
from covey.roles.auth.config import AuthConfig
from covey.roles.auth.role import ROLE
from covey.roles.base import Lifecycle, NodeInfo, Parts
from covey.store.identity import Identity as NodeIdentity
from covey.store.kv import KeyValues
from covey.store.leveldb import open_leveldb
from covey.store.memory import MemoryStore
from covey.store.writer import open_store
from covey.telemetry.metrics import Metrics

CHEAP = AuthConfig(argon2_memory_kibibytes=8, argon2_passes=1)
PASSWORD = "seven green bottles"
OTHER_PASSWORD = "six yellow umbrellas"
OPERATOR = Actor()
DAY = 24 * 3600


class WallClock:
    """Wall time that a test sets."""

    def __init__(self) -> None:
        self.seconds = 1_800_000_000.0

    def now(self) -> float:
        return self.seconds


@dataclass
class Network:
    """One node with the auth role, and the hands that may reach it."""

    web: BusHandle
    gateway: BusHandle
    operator: BusHandle
    inference: BusHandle
    clock: WallClock
    metrics: Metrics

    async def set_up(self, name: str = "root", password: str = PASSWORD) -> SessionGrant:
        secret = (await self.operator.call(SET_UP_SECRET, Nothing())).secret
        return await self.web.call(SET_UP, SetUp(secret, name, password))

    async def user(self, name: str = "alice", role: auth.AccountRole = "user") -> SessionGrant:
        """An account and a session of it."""
        await self.operator.call(ADD_USER, AddUser(OPERATOR, name, PASSWORD, role))
        return await self.log_in(name)

    async def log_in(self, name: str, password: str = PASSWORD, address: str = "") -> SessionGrant:
        return await self.web.call(LOG_IN, LogIn(name, password, address))

    async def key(self, grant: SessionGrant, **scope: Any) -> NewKey:
        return await self.web.call(CREATE_KEY, CreateKey(session(grant), **scope))

    async def verify(self, text: str) -> Identity:
        parsed = parse(text)
        assert parsed is not None
        return await self.gateway.call(VERIFY, VerifyKey(parsed.key_id, parsed.digest))

    def counted(self, family: str, outcome: str) -> float:
        return self.metrics.registry.get_sample_value(f"covey_{family}_total", {"outcome": outcome}) or 0


@asynccontextmanager
async def network(
    config: AuthConfig = CHEAP,
    *,
    kv: KeyValues | None = None,
    identity: NodeIdentity | None = None,
    clock: WallClock | None = None,
) -> AsyncGenerator[Network, None]:
    identity, clock, metrics = identity or NodeIdentity.generate(), clock or WallClock(), Metrics()
    bus = Bus(identity.peer_id, metrics)
    async with open_store(kv or MemoryStore(), metrics) as store, bus.open():
        parts = Parts(
            node=NodeInfo("alice's", "0", 0),
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
        )
        async with ROLE.open(config, parts):
            yield Network(
                bus.stamped("web"),
                bus.stamped("gateway"),
                bus.stamped("operator"),
                bus.stamped("inference"),
                clock,
                metrics,
            )


@pytest.fixture
async def net() -> AsyncGenerator[Network, None]:
    """Not set up."""
    async with network() as made:
        yield made


@pytest.fixture
async def ready(net: Network) -> Network:
    """Set up, with the administrator `root`."""
    await net.set_up()
    return net


def session(grant: SessionGrant) -> Actor:
    return Actor(session=grant.token)


async def refused(code: str, call: Awaitable[Any], *, reason: str = "", param: str = "") -> CallError:
    with pytest.raises(CallError) as caught:
        await call
    error = caught.value
    assert error.code == code, error
    if reason:
        assert error.reason == reason
    if param:
        assert error.param == param
    assert error.message
    assert "\n" not in error.message
    assert PASSWORD not in error.message
    return error


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


# Set-up


async def test_a_new_network_needs_its_set_up_and_then_no_more(net: Network) -> None:
    state = await net.web.call(AUTH_STATE, Nothing())
    assert (state.needs_setup, state.registration, state.accounts) == (True, "invite", 0)
    assert len(state.network_id) == 64
    grant = await net.set_up()
    assert (grant.account.name, grant.account.role, grant.account.state) == ("root", "admin", "active")
    assert await net.web.call(WHO_AM_I, WhoAmI(grant.token)) == grant.account
    state = await net.inference.call(AUTH_STATE, Nothing())
    assert (state.needs_setup, state.accounts) == (False, 1)
    assert (await net.operator.call(SET_UP_SECRET, Nothing())).secret == ""


async def test_the_set_up_secret_is_long_stays_the_same_and_works_once(net: Network) -> None:
    secret = (await net.operator.call(SET_UP_SECRET, Nothing())).secret
    assert secret == (await net.operator.call(SET_UP_SECRET, Nothing())).secret
    assert len(secret) == 32  # 192 bits
    await net.web.call(SET_UP, SetUp(secret, "root", PASSWORD))
    await refused("conflict", net.web.call(SET_UP, SetUp(secret, "eve", PASSWORD)), reason="set_up_done")


@pytest.mark.parametrize("secret", ["", "x", "\ud800", "A" * 32])
async def test_a_wrong_set_up_secret_is_refused(net: Network, secret: str) -> None:
    await refused("unauthenticated", net.web.call(SET_UP, SetUp(secret, "eve", PASSWORD)), reason="set_up_secret")
    assert (await net.web.call(AUTH_STATE, Nothing())).needs_setup


async def test_a_set_up_that_is_refused_does_not_spend_the_secret(net: Network) -> None:
    secret = (await net.operator.call(SET_UP_SECRET, Nothing())).secret
    await refused("invalid", net.web.call(SET_UP, SetUp(secret, "Root!", PASSWORD)), param="name")
    await refused("invalid", net.web.call(SET_UP, SetUp(secret, "root", "short")), param="password")
    await net.web.call(SET_UP, SetUp(secret, "root", PASSWORD))


async def test_the_set_up_raced_has_one_winner(net: Network) -> None:
    secret = (await net.operator.call(SET_UP_SECRET, Nothing())).secret
    won, lost = await outcomes(20, lambda number: net.web.call(SET_UP, SetUp(secret, f"root-{number}", PASSWORD)))
    assert won == 1
    assert {error.code for error in lost} == {"conflict"}
    users = (await net.operator.call(LIST_USERS, ListUsers(OPERATOR))).accounts
    assert [user.role for user in users] == ["admin"]


async def test_nobody_registers_before_the_set_up() -> None:
    async with network(msgspec.structs.replace(CHEAP, registration="open")) as net:
        await refused("conflict", net.web.call(REGISTER, Register("eve", PASSWORD)), reason="needs_setup")
        await net.set_up()
        registered = await net.web.call(REGISTER, Register("eve", PASSWORD))
        assert registered.account.role == "user"


async def test_an_administrator_added_by_the_operator_ends_the_set_up(net: Network) -> None:
    secret = (await net.operator.call(SET_UP_SECRET, Nothing())).secret
    await net.user("bob")
    assert (await net.web.call(AUTH_STATE, Nothing())).needs_setup
    await net.user("root", "admin")
    assert not (await net.web.call(AUTH_STATE, Nothing())).needs_setup
    await refused("conflict", net.web.call(SET_UP, SetUp(secret, "eve", PASSWORD)))


async def test_the_recovery_key_is_handed_over_once(net: Network) -> None:
    assert (await net.operator.call(TAKE_RECOVERY_KEY, Nothing())).recovery_key
    assert (await net.operator.call(TAKE_RECOVERY_KEY, Nothing())).recovery_key == ""


# Logging in


async def test_a_person_logs_in_and_out(ready: Network) -> None:
    grant = await ready.user("alice")
    assert grant.account.name == "alice"
    assert grant.expires_at == int(ready.clock.now()) + CHEAP.session_seconds
    assert await ready.web.call(WHO_AM_I, WhoAmI(grant.token)) == grant.account
    await ready.web.call(LOG_OUT, LogOut(grant.token))
    await refused("unauthenticated", ready.web.call(WHO_AM_I, WhoAmI(grant.token)), reason="session")
    await ready.web.call(LOG_OUT, LogOut(grant.token))  # twice is no error
    await ready.web.call(LOG_OUT, LogOut("nonsense"))
    assert ready.counted("log_ins", "ok") == 1


async def test_every_log_in_gets_a_session_of_its_own(ready: Network) -> None:
    first, second = await ready.log_in("root"), await ready.log_in("ROOT")
    assert first.token != second.token
    await ready.web.call(LOG_OUT, LogOut(first.token))
    await ready.web.call(WHO_AM_I, WhoAmI(second.token))


@pytest.mark.parametrize("token", ["", "x" * 43, "\ud800" * 43, "é" * 43, "A" * 10_000, "x" * 42 + "\n"])
async def test_a_token_that_is_none_is_nobodys(ready: Network, token: str) -> None:
    await refused("unauthenticated", ready.web.call(WHO_AM_I, WhoAmI(token)), reason="session")


async def test_a_session_expires(ready: Network) -> None:
    grant = await ready.log_in("root")
    ready.clock.seconds = grant.expires_at - 1
    await ready.web.call(WHO_AM_I, WhoAmI(grant.token))
    ready.clock.seconds = grant.expires_at
    await refused("unauthenticated", ready.web.call(WHO_AM_I, WhoAmI(grant.token)))


async def test_the_oldest_session_ends_when_there_are_too_many() -> None:
    async with network(msgspec.structs.replace(CHEAP, sessions_per_account_max=3)) as net:
        grants = [await net.set_up()]
        for _ in range(3):
            net.clock.seconds += 1
            grants.append(await net.log_in("root"))
        await refused("unauthenticated", net.web.call(WHO_AM_I, WhoAmI(grants[0].token)))
        for grant in grants[1:]:
            await net.web.call(WHO_AM_I, WhoAmI(grant.token))


@pytest.fixture
def verifications(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every argon2 verification: the hash that was verified."""
    seen, real = list[str](), argon2.PasswordHasher.verify

    def verify(self: argon2.PasswordHasher, stored: Any, password: Any) -> Any:
        seen.append(stored)
        return real(self, stored, password)

    monkeypatch.setattr(argon2.PasswordHasher, "verify", verify)
    return seen


async def test_failures_to_log_in_cannot_be_told_apart(verifications: list[str]) -> None:
    """An unknown name, a wrong password, a pending and a disabled account: the same words and one verification each."""
    async with network(msgspec.structs.replace(CHEAP, registration="approval")) as net:
        await net.set_up()
        await net.web.call(REGISTER, Register("pending", PASSWORD))
        await net.user("disabled")
        await net.operator.call(SET_STANDING, SetStanding(OPERATOR, "disabled", active=False))
        await net.user("alice")
        errors = list[CallError]()
        for name, password in [
            ("nobody", PASSWORD),
            ("alice", OTHER_PASSWORD),
            ("pending", PASSWORD),
            ("disabled", PASSWORD),
            ("disabled", OTHER_PASSWORD),
            ("alice", ""),
            ("", PASSWORD),
            ("../../etc/passwd", PASSWORD),
            ("\ud800", PASSWORD),
            ("a" * 200, PASSWORD),
        ]:
            verifications.clear()
            errors.append(await refused("unauthenticated", net.log_in(name, password)))
            assert len(verifications) == 1, name
        assert len({(error.code, error.message, error.reason, error.param) for error in errors}) == 1
        assert net.counted("log_ins", "wrong") == len(errors)


async def test_a_password_too_long_to_be_one_is_not_hashed(ready: Network, verifications: list[str]) -> None:
    for name in ("root", "nobody"):
        await refused("invalid", ready.log_in(name, "x" * 10_000), param="password")
    assert verifications == []


async def test_guessing_is_held_back_by_account_whether_it_exists_or_not(
    ready: Network, mock_clock: trio.testing.MockClock
) -> None:
    for name in ("root", "nobody"):
        for number in range(CHEAP.log_in_free_failures + 1):
            await refused("unauthenticated", ready.log_in(name, "wrong", f"10.0.0.{number}"))
        error = await refused("rate_limited", ready.log_in(name, PASSWORD, "10.0.0.99"), reason="log_ins")
        assert error.retry_after_seconds == CHEAP.log_in_wait_first_seconds
        mock_clock.jump(error.retry_after_seconds)
    await ready.log_in("root", PASSWORD, "10.0.0.99")
    assert ready.counted("log_ins", "rate_limited") == 2


async def test_guessing_is_held_back_by_address(ready: Network, mock_clock: trio.testing.MockClock) -> None:
    for number in range(CHEAP.log_in_free_failures + 1):
        await refused("unauthenticated", ready.log_in(f"name-{number}", "wrong", "10.0.0.1"))
    await refused("rate_limited", ready.log_in("root", PASSWORD, "10.0.0.1"))
    await ready.log_in("root", PASSWORD, "10.0.0.2")
    mock_clock.jump(CHEAP.log_in_wait_seconds_max)  # never for good
    await ready.log_in("root", PASSWORD, "10.0.0.1")


async def test_log_ins_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    let_go, real = threading.Event(), argon2.PasswordHasher.verify

    def slow(self: argon2.PasswordHasher, stored: Any, password: Any) -> Any:
        let_go.wait(30)
        return real(self, stored, password)

    monkeypatch.setattr(argon2.PasswordHasher, "verify", slow)
    async with network(msgspec.structs.replace(CHEAP, password_queue_max=5, log_in_free_failures=1)) as net:
        root = await net.set_up()
        change = ChangePassword(root.token, OTHER_PASSWORD, PASSWORD)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outcomes, 20, lambda number: net.log_in(f"name-{number}"))
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(5):  # what was refused unheard is not held against anybody
                error = await refused("no_capacity", net.log_in("root", "wrong", "10.0.0.1"), reason="log_ins")
                assert error.retry_after_seconds
                await refused("no_capacity", net.web.call(CHANGE_PASSWORD, change))
            let_go.set()
        await net.log_in("root", PASSWORD, "10.0.0.1")
        assert net.counted("log_ins", "no_capacity") >= 5


async def test_a_hash_with_old_parameters_is_renewed_at_log_in_and_sessions_go_on() -> None:
    kv, identity = Undying(), NodeIdentity.generate()
    async with network(kv=kv, identity=identity) as net:
        grant = await net.set_up()
        before = kv.hashes()
    async with network(msgspec.structs.replace(CHEAP, argon2_passes=2), kv=kv, identity=identity) as net:
        await net.log_in("root")
        assert kv.hashes() != before
        assert all(",t=2," in one for one in kv.hashes())
        await net.web.call(WHO_AM_I, WhoAmI(grant.token))
        renewed = kv.hashes()
        await net.log_in("root")
        assert kv.hashes() == renewed


class Undying(MemoryStore):
    """A store in memory that outlives its node."""

    def close(self) -> None:
        pass

    def hashes(self) -> list[str]:
        return [msgspec.msgpack.decode(value)["password_hash"] for _, value in self.scan(b"v/secret/account/")]


# Passwords


async def test_changing_ones_password_ends_every_session_and_begins_one(ready: Network) -> None:
    first, second = await ready.user("alice"), await ready.log_in("alice")
    fresh = await ready.web.call(CHANGE_PASSWORD, ChangePassword(first.token, PASSWORD, OTHER_PASSWORD))
    for old in (first, second):
        await refused("unauthenticated", ready.web.call(WHO_AM_I, WhoAmI(old.token)))
    await ready.web.call(WHO_AM_I, WhoAmI(fresh.token))
    await refused("unauthenticated", ready.log_in("alice", PASSWORD))
    await ready.log_in("alice", OTHER_PASSWORD)


async def test_changing_a_password_takes_the_old_one(ready: Network) -> None:
    token = (await ready.user("alice")).token
    change = partial(ready.web.call, CHANGE_PASSWORD)
    await refused("forbidden", change(ChangePassword(token, "wrong", OTHER_PASSWORD)), param="old")
    await refused("invalid", change(ChangePassword(token, PASSWORD, PASSWORD)), param="new")
    await refused("invalid", change(ChangePassword(token, PASSWORD, "alice12345")), param="new")
    await refused("unauthenticated", change(ChangePassword("x" * 43, PASSWORD, OTHER_PASSWORD)))
    for _ in range(CHEAP.log_in_free_failures):
        await refused("forbidden", change(ChangePassword(token, "wrong", OTHER_PASSWORD)))
    await refused("rate_limited", change(ChangePassword(token, PASSWORD, OTHER_PASSWORD)))


async def test_two_changes_at_once_have_one_winner(ready: Network) -> None:
    token = (await ready.user("alice")).token
    won, lost = await outcomes(
        5, lambda number: ready.web.call(CHANGE_PASSWORD, ChangePassword(token, PASSWORD, f"{OTHER_PASSWORD} {number}"))
    )
    assert won == 1
    assert {error.code for error in lost} == {"unauthenticated"}


async def test_a_reset_password_ends_sessions(ready: Network) -> None:
    root, alice = await ready.log_in("root"), await ready.user("alice")
    reset = ResetPassword(session(root), "alice", OTHER_PASSWORD)
    assert (await ready.web.call(RESET_PASSWORD, reset)).name == "alice"
    await refused("unauthenticated", ready.web.call(WHO_AM_I, WhoAmI(alice.token)))
    alice = await ready.log_in("alice", OTHER_PASSWORD)
    await refused("forbidden", ready.web.call(RESET_PASSWORD, ResetPassword(session(alice), "root", OTHER_PASSWORD)))
    await refused("not_found", ready.web.call(RESET_PASSWORD, ResetPassword(session(root), "bob", OTHER_PASSWORD)))
    await refused(
        "invalid", ready.web.call(RESET_PASSWORD, ResetPassword(session(root), "alice", "x")), param="password"
    )


async def test_a_log_in_that_raced_a_reset_gets_no_session(ready: Network) -> None:
    """The password is checked in a thread; what was true then may not be when the session begins."""
    await ready.user("alice")

    async def log_in(number: int) -> None:
        grant = await ready.log_in("alice", PASSWORD, f"10.0.0.{number}")
        await ready.web.call(WHO_AM_I, WhoAmI(grant.token))

    async def reset() -> None:
        await ready.operator.call(RESET_PASSWORD, ResetPassword(OPERATOR, "alice", OTHER_PASSWORD))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reset)
        _, lost = await outcomes(5, log_in)
    assert {error.code for error in lost} <= {"unauthenticated", "rate_limited"}
    await refused("unauthenticated", ready.log_in("alice", PASSWORD, "10.0.1.1"))


# Registration


async def test_an_invitation_lets_one_person_in(ready: Network) -> None:
    root = await ready.log_in("root")
    invitation = await ready.web.call(INVITE_PERSON, InvitePerson(session(root), label="for Alice"))
    assert invitation.expires_at == int(ready.clock.now()) + 7 * DAY
    registered = await ready.web.call(REGISTER, Register("alice", PASSWORD, invitation.secret))
    assert registered.account.role == "user"
    assert registered.grant is not None
    assert await ready.web.call(WHO_AM_I, WhoAmI(registered.grant.token)) == registered.account
    await ready.log_in("alice")
    again = Register("bob", PASSWORD, invitation.secret)
    await refused("forbidden", ready.web.call(REGISTER, again), reason="invitation_invalid", param="invitation")


async def test_an_invitation_carries_its_role(ready: Network) -> None:
    invitation = await ready.operator.call(INVITE_PERSON, InvitePerson(OPERATOR, role="admin"))
    assert invitation.role == "admin"
    registered = await ready.web.call(REGISTER, Register("alice", PASSWORD, invitation.secret))
    assert registered.account.role == "admin"


async def test_bad_invitations_cannot_be_told_apart(ready: Network) -> None:
    used = await ready.operator.call(INVITE_PERSON, InvitePerson(OPERATOR))
    await ready.web.call(REGISTER, Register("alice", PASSWORD, used.secret))
    stale = await ready.operator.call(INVITE_PERSON, InvitePerson(OPERATOR, expires_seconds=60))
    ready.clock.seconds += 60
    good = await ready.operator.call(INVITE_PERSON, InvitePerson(OPERATOR))
    errors = list[CallError]()
    for secret in (used.secret, stale.secret, good.secret[:-1] + "!", "x", "\ud800", good.secret[:13] + "x" * 43):
        # `root` is taken: whoever has no right to register does not learn that.
        errors.append(await refused("forbidden", ready.web.call(REGISTER, Register("root", PASSWORD, secret))))
    assert len({(error.message, error.reason, error.param) for error in errors}) == 1


async def test_without_an_invitation_nobody_learns_which_names_are_taken(ready: Network) -> None:
    one = await refused("forbidden", ready.web.call(REGISTER, Register("root", PASSWORD)), reason="invitation_needed")
    two = await refused("forbidden", ready.web.call(REGISTER, Register("eve", PASSWORD)))
    assert one.message == two.message


async def test_one_invitation_used_fifty_times_at_once_lets_one_in(ready: Network) -> None:
    secret = (await ready.operator.call(INVITE_PERSON, InvitePerson(OPERATOR))).secret
    won, lost = await outcomes(50, lambda number: ready.web.call(REGISTER, Register(f"u{number}", PASSWORD, secret)))
    assert won == 1
    assert {error.code for error in lost} <= {"forbidden"}
    assert len((await ready.operator.call(LIST_USERS, ListUsers(OPERATOR))).accounts) == 2


async def test_fifty_registrations_of_one_name_at_once_have_one_winner() -> None:
    async with network(msgspec.structs.replace(CHEAP, registration="open")) as net:
        await net.set_up()
        won, lost = await outcomes(50, lambda _: net.web.call(REGISTER, Register("alice", PASSWORD)))
        assert won == 1
        assert {(error.code, error.param) for error in lost} == {("conflict", "name")}
        assert len((await net.operator.call(LIST_USERS, ListUsers(OPERATOR))).accounts) == 2


async def test_a_refused_registration_spends_nothing(ready: Network) -> None:
    secret = (await ready.operator.call(INVITE_PERSON, InvitePerson(OPERATOR))).secret
    register = partial(ready.web.call, REGISTER)
    await refused("conflict", register(Register("root", PASSWORD, secret)), reason="name_taken", param="name")
    await refused("invalid", register(Register("Alice", PASSWORD, secret)), param="name")
    await refused("invalid", register(Register("operator", PASSWORD, secret)), param="name")
    await refused("invalid", register(Register("alice", "password1234", secret)), param="password")
    await register(Register("alice", PASSWORD, secret))


async def test_with_approval_an_account_waits_for_an_administrator() -> None:
    async with network(msgspec.structs.replace(CHEAP, registration="approval")) as net:
        root = await net.set_up()
        registered = await net.web.call(REGISTER, Register("alice", PASSWORD))
        assert (registered.account.state, registered.grant) == ("pending", None)
        await refused("unauthenticated", net.log_in("alice"))
        make = CreateKey(session(root), user="alice")
        await refused("conflict", net.web.call(CREATE_KEY, make), param="user")
        approved = await net.web.call(SET_STANDING, SetStanding(session(root), "alice", active=True))
        assert approved.state == "active"
        await net.log_in("alice")
        # An invitation is an administrator's word already.
        invitation = await net.web.call(INVITE_PERSON, InvitePerson(session(root)))
        registered = await net.web.call(REGISTER, Register("bob", PASSWORD, invitation.secret))
        assert registered.grant is not None


async def test_an_administrator_may_turn_somebody_away() -> None:
    async with network(msgspec.structs.replace(CHEAP, registration="approval")) as net:
        await net.set_up()
        await net.web.call(REGISTER, Register("alice", PASSWORD))
        turned_away = await net.operator.call(SET_STANDING, SetStanding(OPERATOR, "alice", active=False))
        assert turned_away.state == "disabled"
        enabled = await net.operator.call(SET_STANDING, SetStanding(OPERATOR, "alice", active=True))
        assert enabled.state == "active"


async def test_registrations_are_held_back_by_address(mock_clock: trio.testing.MockClock) -> None:
    config = msgspec.structs.replace(CHEAP, registration="open", registrations_per_address_max=3)
    async with network(config) as net:
        await net.set_up()
        for number in range(4):
            await net.web.call(REGISTER, Register(f"u{number}", PASSWORD, address="10.0.0.1"))
        late = Register("late", PASSWORD, address="10.0.0.1")
        error = await refused("rate_limited", net.web.call(REGISTER, late), reason="registrations")
        await net.web.call(REGISTER, Register("other", PASSWORD, address="10.0.0.2"))
        assert error.retry_after_seconds is not None
        mock_clock.jump(error.retry_after_seconds)
        await net.web.call(REGISTER, late)


async def test_the_number_of_accounts_is_bounded() -> None:
    async with network(msgspec.structs.replace(CHEAP, registration="open", accounts_max=2)) as net:
        await net.set_up()
        await net.web.call(REGISTER, Register("alice", PASSWORD))
        await refused("conflict", net.web.call(REGISTER, Register("bob", PASSWORD)), reason="accounts_max")
        add = AddUser(OPERATOR, "bob", PASSWORD)
        await refused("conflict", net.operator.call(ADD_USER, add), reason="accounts_max")


async def test_invitations_are_checked(ready: Network) -> None:
    invite = partial(ready.operator.call, INVITE_PERSON)
    for seconds in (-1, 0, 59, CHEAP.invitation_seconds_max + 1):
        await refused("invalid", invite(InvitePerson(OPERATOR, expires_seconds=seconds)), param="expires_seconds")
    for label in ("x" * 65, "a\nb", "\x1b[31m"):
        await refused("invalid", invite(InvitePerson(OPERATOR, label=label)), param="label")
    alice = await ready.user("alice")
    await refused("forbidden", ready.web.call(INVITE_PERSON, InvitePerson(session(alice), role="admin")))
    await refused("unauthenticated", ready.web.call(INVITE_PERSON, InvitePerson(Actor())))


async def test_open_invitations_are_bounded() -> None:
    async with network(msgspec.structs.replace(CHEAP, invitations_open_max=1)) as net:
        await net.set_up()
        await net.operator.call(INVITE_PERSON, InvitePerson(OPERATOR))
        await refused(
            "conflict", net.operator.call(INVITE_PERSON, InvitePerson(OPERATOR)), reason="invitations_open_max"
        )
        net.clock.seconds += 7 * DAY
        await net.operator.call(INVITE_PERSON, InvitePerson(OPERATOR))


# Accounts


async def test_administrators_add_and_list_people(ready: Network) -> None:
    root = await ready.log_in("root")
    bob = await ready.web.call(ADD_USER, AddUser(session(root), "bob", PASSWORD))
    alice = await ready.web.call(ADD_USER, AddUser(session(root), "alice", PASSWORD, "admin"))
    assert (bob.role, bob.state, bob.created_at) == ("user", "active", int(ready.clock.now()))
    listed = (await ready.web.call(LIST_USERS, ListUsers(session(root)))).accounts
    assert listed == (alice, bob, root.account)
    await ready.log_in("bob")


async def test_adding_people_is_checked(ready: Network) -> None:
    add = partial(ready.operator.call, ADD_USER)
    await refused("conflict", add(AddUser(OPERATOR, "root", PASSWORD)), param="name")
    for name in ("", "A", "-a", "a b", "a\n", "a" * 33, "é", "a/b", "operator", "setup", "\ud800"):
        await refused("invalid", add(AddUser(OPERATOR, name, PASSWORD)), param="name")
    await refused("invalid", add(AddUser(OPERATOR, "bob", "bob-bob-bob")), param="password")


@pytest.mark.parametrize(
    ("method", "request_of"),
    [
        (ADD_USER, lambda actor: AddUser(actor, "eve", PASSWORD, "admin")),
        (LIST_USERS, ListUsers),
        (SET_STANDING, lambda actor: SetStanding(actor, "root", active=False)),
        (RESET_PASSWORD, lambda actor: ResetPassword(actor, "root", OTHER_PASSWORD)),
        (LIMIT_USER, lambda actor: LimitUser(actor, "alice", {"concurrency": None})),
        (INVITE_PERSON, InvitePerson),
        (LIST_KEYS, lambda actor: ListKeys(actor, everyone=True)),
        (CREATE_KEY, lambda actor: CreateKey(actor, user="carol")),
        (CREATE_KEY, lambda actor: CreateKey(actor, admin=True)),
    ],
)
async def test_only_administrators_may(
    ready: Network, method: Unary[Any, Any], request_of: Callable[[Actor], Any]
) -> None:
    alice = await ready.user("alice")
    root = await ready.log_in("root")
    plain = await ready.key(root)  # an administrator's key, but not made to administer
    mine = await ready.key(alice)
    for actor in (session(alice), Actor(key=mine.key), Actor(key=plain.key)):
        await refused("forbidden", ready.web.call(method, request_of(actor)))
    # A credential that does not count is not better with the operator's stamp.
    for actor in (Actor(session="x" * 43), Actor(key="cvy_nonsense"), Actor(key=mint(bytes(MINT_BYTES)).text)):
        await refused("unauthenticated", ready.web.call(method, request_of(actor)))
        await refused("unauthenticated", ready.operator.call(method, request_of(actor)))
    await refused("unauthenticated", ready.web.call(method, request_of(Actor())))
    two = Actor(session=alice.token, key=mine.key)
    await refused("invalid", ready.web.call(method, request_of(two)), param="actor")


async def test_disabling_ends_sessions_and_silences_keys_and_enabling_revives_only_the_keys(ready: Network) -> None:
    root, alice = await ready.log_in("root"), await ready.user("alice")
    key = await ready.key(alice)
    await ready.verify(key.key)
    disabled = await ready.web.call(SET_STANDING, SetStanding(session(root), "alice", active=False))
    assert disabled.state == "disabled"
    await refused("unauthenticated", ready.verify(key.key))
    await refused("unauthenticated", ready.web.call(WHO_AM_I, WhoAmI(alice.token)))
    await refused("unauthenticated", ready.log_in("alice"))
    [info] = (await ready.operator.call(LIST_KEYS, ListKeys(OPERATOR))).keys
    assert info.state == "owner_disabled"
    again = await ready.web.call(SET_STANDING, SetStanding(session(root), disabled.id, active=False))
    assert again == disabled
    enabled = await ready.web.call(SET_STANDING, SetStanding(session(root), "alice", active=True))
    assert enabled.state == "active"
    assert await ready.web.call(SET_STANDING, SetStanding(session(root), "alice", active=True)) == enabled
    await ready.verify(key.key)
    await refused("unauthenticated", ready.web.call(WHO_AM_I, WhoAmI(alice.token)))
    await ready.log_in("alice")


async def test_the_last_active_administrator_stays(ready: Network) -> None:
    disable = partial(ready.operator.call, SET_STANDING)
    error = await refused("conflict", disable(SetStanding(OPERATOR, "root", active=False)), reason="last_admin")
    assert "root" in error.message
    await ready.user("second", "admin")
    await disable(SetStanding(OPERATOR, "root", active=False))
    await refused("conflict", disable(SetStanding(OPERATOR, "second", active=False)), reason="last_admin")
    await disable(SetStanding(OPERATOR, "root", active=True))
    await disable(SetStanding(OPERATOR, "second", active=False))


async def test_two_administrators_who_disable_each_other_leave_one(ready: Network) -> None:
    tokens = {"root": (await ready.log_in("root")).token, "second": (await ready.user("second", "admin")).token}
    pairs = [("root", "second"), ("second", "root")]

    async def disable(number: int) -> None:
        actor, target = pairs[number]
        await ready.web.call(SET_STANDING, SetStanding(Actor(session=tokens[actor]), target, active=False))

    won, _ = await outcomes(2, disable)
    assert won == 1
    assert not (await ready.web.call(AUTH_STATE, Nothing())).needs_setup


@pytest.mark.parametrize("user", ["", "nobody", "U" + "0" * 15, "root\n", "../root", "\ud800", "x" * 10_000])
async def test_there_is_no_such_user(ready: Network, user: str) -> None:
    await refused(
        "not_found", ready.operator.call(SET_STANDING, SetStanding(OPERATOR, user, active=True)), param="user"
    )


# Keys


async def test_a_key_speaks_for_its_owner(ready: Network) -> None:
    alice = await ready.user("alice")
    limits = KeyLimits(requests_per_minute=60)
    made = await ready.key(
        alice, label="laptop", models=("llama3:8b", "qwen/2.5", "llama3:8b"), expires_seconds=DAY, limits=limits
    )
    expires_at = int(ready.clock.now()) + DAY
    expected = Identity(made.id, alice.account.id, "user", ("llama3:8b", "qwen/2.5"), limits, expires_at)
    assert await ready.verify(made.key) == expected
    assert await ready.gateway.call(AUTHORIZE, AuthorizeActor(Actor(key=made.key))) == expected
    [info] = (await ready.web.call(LIST_KEYS, ListKeys(session(alice)))).keys
    assert (info.id, info.prefix, info.owner_name, info.label) == (made.id, f"cvy_{made.id}", "alice", "laptop")
    assert (info.models, info.limits, info.state) == (("llama3:8b", "qwen/2.5"), limits, "active")
    assert (info.created_at, info.expires_at, info.last_used_at) == (expires_at - DAY, expires_at, None)
    assert made.key not in str(info)
    assert ready.counted("key_checks", "ok") == 1


async def test_keys_that_do_not_count_cannot_be_told_apart(ready: Network) -> None:
    alice, bob = await ready.user("alice"), await ready.user("bob")
    good, revoked = await ready.key(alice), await ready.key(alice)
    expired, owners = await ready.key(alice, expires_seconds=5), await ready.key(bob)
    await ready.web.call(REVOKE_KEY, RevokeKey(session(alice), revoked.id))
    await ready.operator.call(SET_STANDING, SetStanding(OPERATOR, "bob", active=False))
    ready.clock.seconds += 5
    unknown = mint(bytes(MINT_BYTES))
    asked = [VerifyKey(unknown.key_id, unknown.digest), VerifyKey(good.id, unknown.digest)]
    for text in (revoked.key, expired.key, owners.key):
        parsed = parse(text)
        assert parsed is not None
        asked.append(VerifyKey(parsed.key_id, parsed.digest))
    asked += [VerifyKey(good.id, b""), VerifyKey("", b""), VerifyKey("\ud800", b""), VerifyKey("../" * 4, bytes(32))]
    asked.append(VerifyKey(good.id, bytes(32)))
    asked.append(VerifyKey(unknown.key_id, bytes(32)))  # what an unknown key is compared with opens nothing
    errors = [await refused("unauthenticated", ready.gateway.call(VERIFY, one)) for one in asked]
    for text in (revoked.key, expired.key, owners.key, unknown.text, "", "cvy_x", good.key[:-1] + "!"):
        actor = Actor(key=text) if text else Actor(key="x")
        errors.append(await refused("unauthenticated", ready.gateway.call(AUTHORIZE, AuthorizeActor(actor))))
    assert len({(error.code, error.message, error.reason, error.param) for error in errors}) == 1
    for outcome in ("unknown", "revoked", "expired", "owner_disabled"):
        assert ready.counted("key_checks", outcome) >= 1
    await ready.verify(good.key)


async def test_a_session_is_authorised_too(ready: Network) -> None:
    root, alice = await ready.log_in("root"), await ready.user("alice")
    for grant in (root, alice):
        identity = await ready.inference.call(AUTHORIZE, AuthorizeActor(session(grant)))
        account = grant.account
        assert identity == Identity(f"session:{account.id}", account.id, account.role, expires_at=grant.expires_at)
    await ready.web.call(LOG_OUT, LogOut(alice.token))
    await refused("unauthenticated", ready.gateway.call(AUTHORIZE, AuthorizeActor(session(alice))))
    await refused("unauthenticated", ready.gateway.call(AUTHORIZE, AuthorizeActor(Actor())))
    two = Actor(session=root.token, key="cvy")
    await refused("invalid", ready.gateway.call(AUTHORIZE, AuthorizeActor(two)), param="actor")


async def test_only_an_administrators_admin_key_administers(ready: Network) -> None:
    root = await ready.log_in("root")
    plain, admin = await ready.key(root), await ready.key(root, admin=True)
    assert (await ready.verify(plain.key)).role == "user"
    assert (await ready.verify(admin.key)).role == "admin"
    await ready.web.call(ADD_USER, AddUser(Actor(key=admin.key), "bob", PASSWORD))
    bobs = await ready.web.call(CREATE_KEY, CreateKey(Actor(key=admin.key), user="bob"))
    # What an administrator's key makes is an administrator's deed, and does not end with the key.
    await ready.web.call(REVOKE_KEY, RevokeKey(session(root), admin.id))
    await ready.verify(bobs.key)
    await refused("unauthenticated", ready.web.call(LIST_USERS, ListUsers(Actor(key=admin.key))))


async def test_an_admin_key_needs_an_administrator_behind_it(ready: Network) -> None:
    root = await ready.log_in("root")
    await ready.user("bob")
    create = partial(ready.web.call, CREATE_KEY)
    await refused("invalid", create(CreateKey(session(root), user="bob", admin=True)), param="admin")
    await refused("invalid", create(CreateKey(session(root), models=("a",), admin=True)), param="models")


async def test_making_keys_is_checked(ready: Network) -> None:
    alice = await ready.user("alice")
    create = partial(ready.key, alice)
    for label in ("x" * 65, "a\tb"):
        await refused("invalid", create(label=label), param="label")
    for models in (("",), ("a b",), ("a\n",), ("../x",), ("x" * 201,), ("é",), tuple(f"m{n}" for n in range(65))):
        await refused("invalid", create(models=models), param="models")
    for seconds in (-1, 0, CHEAP.key_seconds_max + 1):
        await refused("invalid", create(expires_seconds=seconds), param="expires_seconds")
    for per_minute in (-1, 0, 1_000_001):
        limits = KeyLimits(requests_per_minute=per_minute)
        await refused("invalid", create(limits=limits), param="limits.requests_per_minute")
    await refused("forbidden", create(user="root"), param="user")
    await refused("forbidden", create(user="nobody"), param="user")
    await create(user="alice")
    await create(user=alice.account.id)
    nobody = CreateKey(OPERATOR, user="nobody")
    await refused("not_found", ready.operator.call(CREATE_KEY, nobody), param="user")


async def test_the_number_of_active_keys_is_bounded() -> None:
    async with network(msgspec.structs.replace(CHEAP, keys_per_account_max=2)) as net:
        root = await net.set_up()
        first = await net.key(root)
        await net.key(root, expires_seconds=10)
        await refused("conflict", net.key(root), reason="keys_max")
        await net.web.call(REVOKE_KEY, RevokeKey(session(root), first.id))
        await net.key(root)
        net.clock.seconds += 10
        await net.key(root)
        await refused("conflict", net.key(root), reason="keys_max")


async def test_people_see_and_revoke_their_own_keys_only(ready: Network) -> None:
    root, alice, bob = await ready.log_in("root"), await ready.user("alice"), await ready.user("bob")
    alices, bobs = await ready.key(alice), await ready.key(bob)
    listed = (await ready.web.call(LIST_KEYS, ListKeys(session(alice)))).keys
    assert [key.id for key in listed] == [alices.id]
    error = await refused("not_found", ready.web.call(REVOKE_KEY, RevokeKey(session(alice), bobs.id)), param="id")
    absent = await refused("not_found", ready.web.call(REVOKE_KEY, RevokeKey(session(alice), "0" * 12)))
    assert error.message.replace(bobs.id, "") == absent.message.replace("0" * 12, "")
    await refused("not_found", ready.operator.call(REVOKE_KEY, RevokeKey(OPERATOR, "\ud800")))
    await ready.verify(bobs.key)
    assert (await ready.web.call(REVOKE_KEY, RevokeKey(session(alice), alices.id))).state == "revoked"
    assert (await ready.web.call(REVOKE_KEY, RevokeKey(session(alice), alices.id))).state == "revoked"
    everyone = ListKeys(session(root), everyone=True)
    assert {key.id for key in (await ready.web.call(LIST_KEYS, everyone)).keys} == {alices.id, bobs.id}
    assert (await ready.web.call(LIST_KEYS, ListKeys(session(root)))).keys == ()
    assert (await ready.web.call(REVOKE_KEY, RevokeKey(session(root), bobs.id))).state == "revoked"
    await refused("unauthenticated", ready.verify(bobs.key))


async def test_keys_are_listed_newest_first(ready: Network) -> None:
    made = list[str]()
    for _ in range(3):
        ready.clock.seconds += 1
        made.append((await ready.operator.call(CREATE_KEY, CreateKey(OPERATOR))).id)
    assert [key.id for key in (await ready.operator.call(LIST_KEYS, ListKeys(OPERATOR))).keys] == made[::-1]


async def test_a_long_listing_lets_others_have_their_turn() -> None:
    async with network(msgspec.structs.replace(CHEAP, keys_per_account_max=1000)) as net:
        won, _ = await outcomes(600, lambda _: net.operator.call(CREATE_KEY, CreateKey(OPERATOR)))
        assert won == 600
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(others)
            assert len((await net.operator.call(LIST_KEYS, ListKeys(OPERATOR))).keys) == 600
            nursery.cancel_scope.cancel()
        assert turns >= 2  # twice while reading, twice while looking up; starting takes one or two


async def test_the_operator_needs_no_account_for_a_key(net: Network) -> None:
    plain = await net.operator.call(CREATE_KEY, CreateKey(OPERATOR, label="server"))
    assert await net.verify(plain.key) == Identity(plain.id, "operator")
    admin = await net.operator.call(CREATE_KEY, CreateKey(OPERATOR, admin=True))
    assert (await net.verify(admin.key)).role == "admin"
    await net.web.call(ADD_USER, AddUser(Actor(key=admin.key), "alice", PASSWORD))
    [one, _] = (await net.web.call(LIST_KEYS, ListKeys(Actor(key=admin.key)))).keys
    assert one.owner_name == "operator"
    assert [key.id for key in (await net.web.call(LIST_KEYS, ListKeys(Actor(key=plain.key)))).keys] == [plain.id]


async def test_a_key_made_with_a_key_may_no_more_and_lives_no_longer(ready: Network) -> None:
    alice = await ready.user("alice")
    parent = await ready.key(alice, models=("a", "b"), expires_seconds=DAY)
    create = partial(ready.web.call, CREATE_KEY)
    by_key = Actor(key=parent.key)
    await refused("forbidden", create(CreateKey(by_key, models=("a", "c"))), reason="scope", param="models")
    late = CreateKey(by_key, models=("a",), expires_seconds=DAY + 1)
    await refused("forbidden", create(late), reason="scope", param="expires_seconds")
    await refused("forbidden", create(CreateKey(by_key, admin=True)), param="admin")
    everything = await create(CreateKey(by_key))
    narrow = await create(CreateKey(by_key, models=("a",), limits=KeyLimits(requests_per_minute=1)))
    expires_at = int(ready.clock.now()) + DAY
    assert await ready.verify(everything.key) == Identity(
        everything.id, alice.account.id, models=("a", "b"), expires_at=expires_at
    )
    assert (await ready.verify(narrow.key)).models == ("a",)
    await refused("forbidden", create(CreateKey(Actor(key=everything.key))), reason="scope")  # nor any further
    # It sees itself and what was made with it, not its owner's other keys.
    other = await ready.key(alice)
    seen = {key.id for key in (await ready.web.call(LIST_KEYS, ListKeys(by_key))).keys}
    assert seen == {parent.id, everything.id, narrow.id}
    await refused("not_found", ready.web.call(REVOKE_KEY, RevokeKey(by_key, other.id)))
    await ready.web.call(REVOKE_KEY, RevokeKey(session(alice), parent.id))
    for child in (everything, narrow):
        await refused("unauthenticated", ready.verify(child.key))
    states = {key.id: key.state for key in (await ready.web.call(LIST_KEYS, ListKeys(session(alice)))).keys}
    assert states == {parent.id: "revoked", everything.id: "revoked", narrow.id: "revoked", other.id: "active"}


async def test_a_key_with_a_rate_limit_does_not_multiply_it(ready: Network) -> None:
    parent = await ready.key(await ready.user("alice"), limits=KeyLimits(requests_per_minute=5))
    child = CreateKey(Actor(key=parent.key), limits=KeyLimits(requests_per_minute=5))
    await refused("forbidden", ready.web.call(CREATE_KEY, child), reason="scope")


async def test_gateways_report_what_was_used(ready: Network) -> None:
    key = await ready.key(await ready.user("alice"))
    now = int(ready.clock.now())
    used = partial(ready.gateway.call, KEY_USED)

    async def last_used_at() -> int | None:
        [info] = (await ready.operator.call(LIST_KEYS, ListKeys(OPERATOR))).keys
        return info.last_used_at

    await used(KeyUsed({key.id: now - 10, "0" * 12: now, "../x": now, "\ud800": now, "": now}))
    assert await last_used_at() == now - 10
    await used(KeyUsed({key.id: now - 20}))  # two gateways, told in any order
    assert await last_used_at() == now - 10
    await used(KeyUsed({key.id: now + 10**9}))  # a gateway whose clock is wrong
    assert await last_used_at() == now
    many = KeyUsed({f"{number:012}": now for number in range(10_001)})
    await refused("too_large", used(many), param="used_at")


# Who may call at all


async def test_each_method_is_for_the_roles_that_it_names(net: Network) -> None:
    """Without a look at the request: the access on the contract."""
    contracts = [value for value in vars(auth).values() if isinstance(value, Unary)]
    assert len(contracts) == 22
    hands = {"web": net.web, "gateway": net.gateway, "operator": net.operator, "inference": net.inference}
    denied = 0
    for contract in contracts:
        for stamp, hand in hands.items():
            if stamp in contract.access or ("member" in contract.access and stamp != "operator"):
                continue
            await refused("denied", hand.call(contract, Nothing()))
            denied += 1
    assert denied > 30


async def test_from_other_nodes_administration_takes_a_credential(ready: Network) -> None:
    """The operator of a node without the auth role is nobody here without an administrator's key."""
    root = await ready.log_in("root")
    calls: list[tuple[Any, Callable[[Actor], Any]]] = [
        (LIST_USERS, ListUsers),
        (ADD_USER, lambda actor: AddUser(actor, "bob", PASSWORD)),
        (SET_STANDING, lambda actor: SetStanding(actor, "bob", active=True)),
        (RESET_PASSWORD, lambda actor: ResetPassword(actor, "bob", OTHER_PASSWORD)),
        (LIMIT_USER, lambda actor: LimitUser(actor, "bob", {"concurrency": 1})),
        (INVITE_PERSON, InvitePerson),
        (CREATE_KEY, CreateKey),
        (LIST_KEYS, ListKeys),
        (REVOKE_KEY, lambda actor: RevokeKey(actor, "0" * 12)),
    ]
    admin, plain = await ready.key(root, admin=True), await ready.key(root)
    person_only = {contract.name for contract, _ in calls[:6]}
    for contract, wish in calls:
        await refused("unauthenticated", ready.inference.call(contract, wish(OPERATOR)))
        await refused("unauthenticated", ready.inference.call(contract, wish(Actor(key=admin.key[:-1] + "!"))))
        if contract.name in person_only:
            await refused("forbidden", ready.inference.call(contract, wish(Actor(key=plain.key))))
        if contract is not REVOKE_KEY:
            await ready.inference.call(contract, wish(Actor(key=admin.key)))


# Restarts


async def test_everything_survives_a_restart(tmp_path: Path) -> None:
    identity, clock = NodeIdentity.generate(), WallClock()

    def reopened() -> Any:
        return network(kv=open_leveldb(tmp_path), identity=identity, clock=clock)

    async with reopened() as net:
        network_id = (await net.web.call(AUTH_STATE, Nothing())).network_id
        root, alice = await net.set_up(), await net.user("alice")
        out, gone = await net.log_in("alice"), await net.user("gone")
        await net.web.call(LOG_OUT, LogOut(out.token))
        kept, revoked = await net.key(alice, models=("m",)), await net.key(alice)
        await net.web.call(REVOKE_KEY, RevokeKey(session(alice), revoked.id))
        await net.operator.call(SET_STANDING, SetStanding(OPERATOR, "gone", active=False))
        open_one = await net.operator.call(INVITE_PERSON, InvitePerson(OPERATOR))
        spent = await net.operator.call(INVITE_PERSON, InvitePerson(OPERATOR))
        await net.web.call(REGISTER, Register("bob", PASSWORD, spent.secret))
        await net.gateway.call(KEY_USED, KeyUsed({kept.id: int(clock.now())}))
        keys, identity_before = await net.operator.call(LIST_KEYS, ListKeys(OPERATOR)), await net.verify(kept.key)
        users = await net.operator.call(LIST_USERS, ListUsers(OPERATOR))
    async with reopened() as net:
        state = await net.web.call(AUTH_STATE, Nothing())
        assert (state.network_id, state.needs_setup, state.accounts) == (network_id, False, 4)
        assert (await net.operator.call(SET_UP_SECRET, Nothing())).secret == ""
        assert (await net.operator.call(TAKE_RECOVERY_KEY, Nothing())).recovery_key == ""
        assert await net.operator.call(LIST_USERS, ListUsers(OPERATOR)) == users
        assert await net.operator.call(LIST_KEYS, ListKeys(OPERATOR)) == keys
        assert keys.keys[0].last_used_at or keys.keys[1].last_used_at
        assert await net.verify(kept.key) == identity_before
        await refused("unauthenticated", net.verify(revoked.key))
        assert await net.web.call(WHO_AM_I, WhoAmI(root.token)) == root.account
        for ended in (out, gone):
            await refused("unauthenticated", net.web.call(WHO_AM_I, WhoAmI(ended.token)))
        await refused("unauthenticated", net.log_in("gone"))
        await net.log_in("bob")
        await refused("forbidden", net.web.call(REGISTER, Register("carol", PASSWORD, spent.secret)))
        await net.web.call(REGISTER, Register("carol", PASSWORD, open_one.secret))
        # The sessions of the last run are still found when they are to end.
        await net.operator.call(SET_STANDING, SetStanding(OPERATOR, "alice", active=False))
        await net.operator.call(SET_STANDING, SetStanding(OPERATOR, "alice", active=True))
        await refused("unauthenticated", net.web.call(WHO_AM_I, WhoAmI(alice.token)))


async def test_the_set_up_secret_of_the_last_run_is_worth_nothing() -> None:
    kv, identity = Undying(), NodeIdentity.generate()
    async with network(kv=kv, identity=identity) as net:
        secret = (await net.operator.call(SET_UP_SECRET, Nothing())).secret
    async with network(kv=kv, identity=identity) as net:
        assert (await net.operator.call(SET_UP_SECRET, Nothing())).secret not in ("", secret)
        await refused("unauthenticated", net.web.call(SET_UP, SetUp(secret, "root", PASSWORD)))


async def test_no_secret_is_ever_on_the_disk() -> None:
    kv, secrets = Undying(), list[str]()
    async with network(kv=kv) as net:
        secrets.append((await net.operator.call(SET_UP_SECRET, Nothing())).secret)
        grant = await net.set_up()
        key = await net.key(grant)
        invitation = await net.operator.call(INVITE_PERSON, InvitePerson(OPERATOR))
        secrets += [grant.token, key.key, key.key.split("_")[2], invitation.secret, PASSWORD]
        secrets.append((await net.operator.call(TAKE_RECOVERY_KEY, Nothing())).recovery_key)
    disk = b"\n".join(key + b"=" + value for key, value in kv.scan(b""))
    for secret in secrets:
        assert secret.encode() not in disk


async def test_the_keys_last_use_is_written_now_and_then(mock_clock: trio.testing.MockClock) -> None:
    kv = Undying()
    async with network(kv=kv) as net:
        key = await net.key(await net.set_up())
        await net.gateway.call(KEY_USED, KeyUsed({key.id: 1_700_000_000}))
        assert not list(kv.scan(b"l/auth/"))
        mock_clock.jump(CHEAP.key_use_flush_seconds)
        while not list(kv.scan(b"l/auth/")):
            await trio.testing.wait_all_tasks_blocked()
        [(_, value)] = kv.scan(b"l/auth/")
        assert value == b"1700000000"
