"""What the dashboard talks to, in memory: honest fakes of the auth, gateway and cluster methods behind a real bus.

They keep the contracts' promises (who may, which error) and nothing else: no disk, no hashing, no models.
"""

import re
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import trio
from machines_world import FakeMachines
from msgspec.structs import replace

from covey.bus.bus import Bus
from covey.bus.caller import Caller
from covey.contracts import auth, cluster, gateway
from covey.contracts.audit import AUDIT, Audit, AuditPage, AuditRecord
from covey.contracts.inference import ChatDelta, Usage
from covey.contracts.limit_words import limits_of, named
from covey.contracts.method import Nothing
from covey.contracts.usage import USAGE, USAGE_RECORDS, AskUsage, UsageRecord, UsageRecords, UsageRow, UsageRows
from covey.contracts.usage_sums import day_of, sums_of
from covey.errors import CallError
from covey.http.router import Router
from covey.roles.base import NodeInfo
from covey.roles.web.config import WebConfig
from covey.roles.web.role import open_web
from covey.telemetry.metrics import Metrics
from covey.transport.base import PeerId

ROOT = Path(__file__).parents[2]
NOW = 1_760_000_000.0
ME = PeerId("12D3KooWtest")
PASSWORD = "correct horse battery"


class FixedClock:
    """A wall clock that moves only when told."""

    def __init__(self) -> None:
        self.seconds = NOW

    def now(self) -> float:
        return self.seconds


@dataclass
class FakeParts:
    """The parts that the dashboard uses."""

    bus: Any
    node: NodeInfo
    http: Router
    clock: FixedClock
    assets: Path


def refuse(code: Any, message: str, **more: Any) -> CallError:
    return CallError(code, message, **more)


@dataclass
class FakeAuth:
    """People, sessions and keys."""

    clock: FixedClock
    registration: auth.RegistrationMode = "invite"
    setup_secret: str = "setup-secret-0123456789"
    accounts: dict[str, auth.Account] = field(default_factory=dict)
    passwords: dict[str, str] = field(default_factory=dict)
    sessions: dict[str, str] = field(default_factory=dict)
    keys: list[auth.KeyInfo] = field(default_factory=list)
    invitations: dict[str, auth.AccountRole] = field(default_factory=dict)
    log_ins: list[auth.LogIn] = field(default_factory=list)
    locked_seconds: float = 0.0
    held_by: tuple[str, ...] = ()
    not_held_by: tuple[str, ...] = ()
    records: list[AuditRecord] = field(default_factory=list)
    audits: list[Audit] = field(default_factory=list)
    limited: list[dict[auth.LimitName, int | None]] = field(default_factory=list)

    def add(
        self, name: str, role: auth.AccountRole = "user", state: auth.AccountState = "active", password: str = PASSWORD
    ) -> auth.Account:
        if any(account.name == name for account in self.accounts.values()):
            raise refuse("conflict", f"The name {name} is taken. Choose another.", param="name")
        account = auth.Account(f"a{len(self.accounts) + 1}", name, role, state, int(self.clock.now()) - 86_400)
        self.accounts[account.id], self.passwords[account.id] = account, password
        return account

    def grant(self, account: auth.Account) -> auth.SessionGrant:
        token = secrets.token_urlsafe(32)
        self.sessions[token] = account.id
        return auth.SessionGrant(token, account, int(self.clock.now()) + 3600)

    def who(self, session: str, *, admin: bool = False) -> auth.Account:
        account = self.accounts.get(self.sessions.get(session, ""))
        if account is None or account.state != "active":
            raise refuse("unauthenticated", "This session is over. Log in again.")
        if admin and account.role != "admin":
            raise refuse("forbidden", "Only an administrator may do this.")
        return account

    def one(self, user: str) -> auth.Account:
        for account in self.accounts.values():
            if user in (account.id, account.name):
                return account
        raise refuse("not_found", "There is no such account.")

    async def state(self, _: Caller, __: Nothing) -> auth.AuthState:
        needs = not any(account.role == "admin" for account in self.accounts.values())
        return auth.AuthState(needs, self.registration, "net", len(self.accounts))

    async def set_up(self, _: Caller, wish: auth.SetUp) -> auth.SessionGrant:
        if not self.setup_secret or wish.secret != self.setup_secret:
            raise refuse("unauthenticated", "This set-up secret is not the one that was printed.", param="secret")
        account = self.add(wish.name, "admin", password=wish.password)
        self.setup_secret = ""
        return self.grant(account)

    async def log_in(self, _: Caller, wish: auth.LogIn) -> auth.SessionGrant:
        self.log_ins.append(wish)
        if self.locked_seconds:
            raise refuse(
                "rate_limited", "Too many attempts. Wait half a minute.", retry_after_seconds=self.locked_seconds
            )
        for account in self.accounts.values():
            if (account.name, account.state, self.passwords[account.id]) == (wish.name, "active", wish.password):
                return self.grant(account)
        raise refuse("unauthenticated", "The name or the password is wrong, or the account is not active.")

    async def log_out(self, _: Caller, wish: auth.LogOut) -> Nothing:
        self.sessions.pop(wish.session, None)
        return Nothing()

    async def who_am_i(self, _: Caller, wish: auth.WhoAmI) -> auth.Account:
        return self.who(wish.session)

    async def register(self, _: Caller, wish: auth.Register) -> auth.Registered:
        role: auth.AccountRole = "user"
        invited = wish.invitation in self.invitations
        if self.registration == "invite" and not invited:
            raise refuse("forbidden", "This invitation is used up or too old. Ask for a new one.", param="invitation")
        account = self.add(wish.name, password=wish.password)
        if invited:
            role = self.invitations.pop(wish.invitation)
        pending = self.registration == "approval" and not invited
        account = replace(account, role=role, state="pending" if pending else "active")
        self.accounts[account.id] = account
        return auth.Registered(account, None if pending else self.grant(account))

    async def change_password(self, _: Caller, wish: auth.ChangePassword) -> auth.SessionGrant:
        account = self.who(wish.session)
        if wish.old != self.passwords[account.id]:
            raise refuse("invalid", "This is not your password now.", param="old")
        self.passwords[account.id] = wish.new
        self.end_sessions(account.id)
        return self.grant(account)

    def end_sessions(self, account_id: str) -> None:
        self.sessions = {token: owner for token, owner in self.sessions.items() if owner != account_id}

    async def add_user(self, _: Caller, wish: auth.AddUser) -> auth.Account:
        self.who(wish.actor.session, admin=True)
        return self.add(wish.name, wish.role, password=wish.password)

    async def list_users(self, _: Caller, wish: auth.ListUsers) -> auth.Accounts:
        self.who(wish.actor.session, admin=True)
        return auth.Accounts(tuple(sorted(self.accounts.values(), key=lambda account: account.name)))

    async def set_standing(self, _: Caller, wish: auth.SetStanding) -> auth.Account:
        self.who(wish.actor.session, admin=True)
        account = replace(self.one(wish.user), state="active" if wish.active else "disabled")
        self.accounts[account.id] = account
        if not wish.active:
            self.end_sessions(account.id)
        return account

    async def rename_user(self, _: Caller, wish: auth.RenameUser) -> auth.Account:
        account = self.who(wish.actor.session) if not wish.user else self.one(wish.user)
        if any(other.name == wish.name for other in self.accounts.values()):
            raise refuse("conflict", f"The name {wish.name} is taken. Choose another.", param="name")
        self.accounts[account.id] = replace(account, name=wish.name, name_lost=False)
        return self.accounts[account.id]

    async def limit_user(self, _: Caller, wish: auth.LimitUser) -> auth.Account:
        self.who(wish.actor.session, admin=True)
        account = self.one(wish.user)
        self.limited.append(dict(wish.limits))
        account = replace(account, limits=limits_of({**named(account.limits), **wish.limits}))
        self.accounts[account.id] = account
        return account

    async def reset_password(self, _: Caller, wish: auth.ResetPassword) -> auth.Account:
        self.who(wish.actor.session, admin=True)
        account = self.one(wish.user)
        self.passwords[account.id] = wish.password
        self.end_sessions(account.id)
        return account

    async def invite_person(self, _: Caller, wish: auth.InvitePerson) -> auth.Invitation:
        self.who(wish.actor.session, admin=True)
        secret = secrets.token_urlsafe(24)
        self.invitations[secret] = wish.role
        return auth.Invitation(secret, wish.role, int(self.clock.now()) + wish.expires_seconds)

    async def create_key(self, _: Caller, wish: auth.CreateKey) -> auth.NewKey:
        owner = self.who(wish.actor.session)
        number, now = f"k{len(self.keys) + 1}", int(self.clock.now())
        expires_at = now + wish.expires_seconds if wish.expires_seconds else None
        self.keys.insert(0, auth.KeyInfo(number, f"cvy_{number}_ab", owner.id, owner.name, wish.label, wish.models,
                                         wish.limits, "active", now, expires_at, None,
                                         node_labels=wish.node_labels, routes=wish.routes))  # fmt: skip
        return auth.NewKey(number, f"cvy_{number}_{secrets.token_hex(16)}_abcdef")

    async def list_keys(self, _: Caller, wish: auth.ListKeys) -> auth.Keys:
        account = self.who(wish.actor.session, admin=wish.everyone)
        return auth.Keys(tuple(key for key in self.keys if wish.everyone or key.owner == account.id))

    async def revoke_key(self, _: Caller, wish: auth.RevokeKey) -> auth.KeyInfo:
        account = self.who(wish.actor.session)
        for position, key in enumerate(self.keys):
            if key.id == wish.id and (key.owner == account.id or account.role == "admin"):
                self.keys[position] = replace(key, state="revoked")
                return replace(self.keys[position], held_by=self.held_by, not_held_by=self.not_held_by)
        raise refuse("not_found", "There is no such key.")

    async def audit(self, _: Caller, wish: Audit) -> AuditPage:
        self.who(wish.actor.session, admin=True)
        self.audits.append(wish)
        if wish.cursor and not wish.cursor.isdigit():
            raise refuse("invalid", "There is no such place in the audit: begin anew.", param="cursor")
        begin = int(wish.cursor or 0)
        end = begin + wish.limit
        return AuditPage(tuple(self.records[begin:end]), str(end) if end < len(self.records) else "")

    def serve(self, bus: Bus) -> None:
        for method, handler in (
            (AUDIT, self.audit),
            (auth.AUTH_STATE, self.state), (auth.SET_UP, self.set_up), (auth.LOG_IN, self.log_in),
            (auth.LOG_OUT, self.log_out), (auth.WHO_AM_I, self.who_am_i), (auth.REGISTER, self.register),
            (auth.CHANGE_PASSWORD, self.change_password), (auth.ADD_USER, self.add_user),
            (auth.LIST_USERS, self.list_users), (auth.SET_STANDING, self.set_standing),
            (auth.RESET_PASSWORD, self.reset_password), (auth.LIMIT_USER, self.limit_user),
            (auth.RENAME_USER, self.rename_user), (auth.INVITE_PERSON, self.invite_person),
            (auth.CREATE_KEY, self.create_key), (auth.LIST_KEYS, self.list_keys), (auth.REVOKE_KEY, self.revoke_key),
        ):  # fmt: skip
            bus.serve(method, handler)


QUIET = gateway.GatewayStats(0, 0, 0, 0, 0, 0.0, 0.0, None, None, None, None, ())
Speak = Callable[[gateway.Completion, Callable[[ChatDelta], Awaitable[None]]], Awaitable[None]]


async def say_hello(_: gateway.Completion, emit: Callable[[ChatDelta], Awaitable[None]]) -> None:
    for word in ("Hello", " from", " the", " covey."):
        await emit(ChatDelta(text=word, tokens=1))
    await emit(ChatDelta(finish="stop", usage=Usage(5, 4)))


@dataclass
class FakeGateway:
    """Models, figures, and a model whose words the test writes."""

    auth: FakeAuth
    models: list[gateway.ModelSummary] = field(
        default_factory=lambda: [gateway.ModelSummary("tiny", "loaded", ("chat",), ("alpha",), 4096)]
    )
    stats: gateway.GatewayStats = field(default_factory=lambda: QUIET)
    thinking_seconds: float = 0.0
    speak: Speak = say_hello
    heard: list[gateway.Completion] = field(default_factory=list)
    left: trio.Event = field(default_factory=trio.Event)
    """Set when a chat was left before its end."""
    used: list[UsageRecord] = field(default_factory=list)
    silent: tuple[str, ...] = ()
    asked_usage: list[AskUsage] = field(default_factory=list)

    async def complete(self, _: Caller, wish: gateway.Completion, emit: Callable[[ChatDelta], Awaitable[None]]) -> None:
        self.auth.who(wish.actor.session)
        self.heard.append(wish)
        try:
            await self.speak(wish, emit)
        except trio.Cancelled:
            self.left.set()
            raise

    async def list_models(self, _: Caller, wish: gateway.ListModels) -> gateway.ModelSummaries:
        self.auth.who(wish.actor.session)
        return gateway.ModelSummaries(tuple(self.models))

    async def figures(self, _: Caller, __: Nothing) -> gateway.GatewayStats:
        await trio.sleep(self.thinking_seconds)
        return self.stats

    def _seen(self, wish: AskUsage) -> list[UsageRecord]:
        account = self.auth.who(wish.actor.session)
        self.asked_usage.append(wish)
        user = wish.user if account.role == "admin" else account.id
        return [one for one in self.used if wish.since <= one.ended_at < wish.until and user in ("", one.owner)]

    async def usage(self, _: Caller, wish: AskUsage, emit: Callable[[UsageRows], Awaitable[None]]) -> None:
        place = {"day": lambda one: day_of(one.ended_at), "key": lambda one: one.key_id, "user": lambda one: one.owner}
        for one in self._seen(wish):
            group = tuple(place[by](one) if by in place else getattr(one, by) for by in wish.group_by)
            await emit(UsageRows((UsageRow(group, sums_of(one)),)))
        await emit(UsageRows((), self.silent))

    async def records(self, _: Caller, wish: AskUsage, emit: Callable[[UsageRecords], Awaitable[None]]) -> None:
        for one in self._seen(wish):
            await emit(UsageRecords((one,)))

    def serve(self, bus: Bus) -> None:
        bus.serve(USAGE, self.usage)
        bus.serve(USAGE_RECORDS, self.records)
        bus.serve(gateway.COMPLETE, self.complete)
        bus.serve(gateway.LIST_MODELS, self.list_models)
        bus.serve(gateway.STATS, self.figures)


def node(name: str = "alpha", **more: Any) -> cluster.NodeStatus:
    fields: dict[str, Any] = {
        "name": name, "peer_id": f"12D3KooW{name}", "version": "0.1.0",
        "roles": ("auth", "gateway", "inference", "web"), "urls": ("http://localhost",),
        "started_at": int(NOW) - 4000, "uptime_seconds": 4000.0, "memory_bytes": 180_000_000,
    }  # fmt: skip
    return cluster.NodeStatus(**(fields | more))


@dataclass
class World:
    """Everything around one dashboard."""

    clock: FixedClock
    auth: FakeAuth
    gateway: FakeGateway
    router: Router
    machines: FakeMachines

    @property
    def nodes(self) -> list[cluster.NodeStatus]:
        """Those that answer, the one that serves the dashboard first."""
        return self.machines.nodes


@asynccontextmanager
async def open_world(
    *, absent: frozenset[str] = frozenset(), clock: FixedClock | None = None, config: WebConfig | None = None
) -> AsyncGenerator[World, None]:
    """A dashboard behind a router, and what it talks to; the roles in `absent` serve nothing."""
    clock = clock or FixedClock()
    bus = Bus(ME, Metrics())
    people = FakeAuth(clock)
    world = World(clock, people, FakeGateway(people), Router(), FakeMachines(people.who, clock.now, [node()]))
    if "auth" not in absent:
        world.auth.serve(bus)
        world.machines.serve_auth(bus)
    if "gateway" not in absent:
        world.gateway.serve(bus)
    world.machines.serve_cluster(bus)
    parts = FakeParts(bus.stamped("web"), NodeInfo("alpha", "0.1.0", int(NOW) - 4000), world.router, clock, ROOT)
    async with bus.open(), open_web(config or WebConfig(), parts):  # type: ignore[arg-type]
        yield world


@dataclass
class Page:
    """What came back."""

    status: int
    text: str
    headers: Any
    cookies: list[str]

    @property
    def csrf(self) -> str:
        found = re.search(r'(?:name="csrf" value|data-csrf)="([0-9a-f]+)"', self.text)
        assert found, f"no form on this page: {self.text[:200]}"
        return found[1]


class Browser:
    """One person's browser: keeps cookies, and sends the token of the page it saw last."""

    def __init__(self, world: World, *, scheme: str = "http") -> None:
        app: Any = world.router._find("/")
        self.client = app.test_client()
        self.scheme = scheme
        self.csrf = ""

    async def open(self, path: str, method: str = "GET", **more: Any) -> Page:
        scope = {"client": ("192.0.2.7", 4711)}
        response = await self.client.open(path, method=method, scheme=self.scheme, scope_base=scope, **more)
        text = await response.get_data(as_text=True)
        page = Page(response.status_code, text, response.headers, response.headers.getlist("Set-Cookie"))
        if 'name="csrf"' in text or "data-csrf=" in text:
            self.csrf = page.csrf
        return page

    async def get(self, path: str, **headers: str) -> Page:
        return await self.open(path, headers={name.replace("_", "-"): value for name, value in headers.items()})

    async def post(self, path: str, form: dict[str, Any] | None = None, **headers: str) -> Page:
        fields = {"csrf": self.csrf} | (form or {})
        sent = {"Content-Type": "application/x-www-form-urlencoded"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.open(path, "POST", data=urlencode(fields, doseq=True), headers=sent)

    async def log_in(self, name: str, password: str = PASSWORD) -> Page:
        await self.get("/login")
        page = await self.post("/login", {"name": name, "password": password, "next": "/"})
        await self.get("/account")
        return page
