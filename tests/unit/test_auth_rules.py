"""The auth role's pure rules: names, scopes, the sessions of a person, the configuration."""

import re
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from covey.contracts.auth import (
    KEY_MODELS_MAX,
    KEY_NODE_LABELS_MAX,
    KEY_ROUTES_MAX,
    NAME_PATTERN,
    Actor,
    CreateKey,
    KeyLimits,
)
from covey.contracts.feeds import KeyCreate, ScopedKeyCreate, SessionEnd, SessionStart
from covey.contracts.gateway import API_ROUTES, covers, may_use_route
from covey.contracts.limit_words import LIMITS_MAX, named, told
from covey.errors import CallError
from covey.roles.auth.config import AuthConfig
from covey.roles.auth.credentials import session_id
from covey.roles.auth.key_rules import Scope, asked_scope, child_scope, creation
from covey.roles.auth.key_usage import KeyUsage
from covey.roles.auth.passwords import HashCost, Passwords
from covey.roles.auth.people import RESERVED_NAMES, check_label, check_name
from covey.roles.auth.session_index import SessionIndex
from covey.store.kv import Batch, StoreError
from covey.store.memory import MemoryStore
from covey.store.rows import KeyRow, SessionRow
from covey.store.view import View, encode_row, row_key
from covey.store.writer import open_store
from covey.telemetry.metrics import Metrics

NOW = 1_800_000_000


def refusal(call: Callable[[], object]) -> CallError | None:
    """How a rule refused; `None` where it did not."""
    try:
        call()
    except CallError as error:
        return error
    return None


def accepted(name: str) -> bool:
    error = refusal(lambda: check_name(name))
    assert error is None or (error.code, error.param) == ("invalid", "name")
    return error is None


@given(st.from_regex(NAME_PATTERN, fullmatch=True))
def test_a_name_of_the_pattern_is_accepted_unless_reserved(name: str) -> None:
    assert accepted(name) == (name not in RESERVED_NAMES)


@given(st.text(max_size=40))
@example("alice\n")
@example("ａlice")
@example("alice\u0000")
@example("U000000000000000")
def test_whatever_is_accepted_is_plain(name: str) -> None:
    if accepted(name):
        assert name.isascii()
        assert name == name.lower().strip()
        assert 1 <= len(name) <= 32
        assert not set(name) & set("/\\\n\r\0 :")
        assert re.match("[a-z0-9]", name)


@given(st.text(max_size=80))
def test_a_label_that_is_accepted_is_one_line(label: str) -> None:
    error = refusal(lambda: check_label(label))
    if error is not None:
        assert error.param == "label"
    else:
        assert len(label.splitlines()) <= 1
        assert "\x1b" not in label


@given(st.text(max_size=60))
@example("A" * 43 + "\n")
def test_only_43_base64url_characters_can_be_a_token(text: str) -> None:
    assert (session_id(text) is not None) == bool(re.fullmatch(r"[A-Za-z0-9_-]{43}", text, re.ASCII))


# Scopes

models = st.lists(st.sampled_from("abcd"), max_size=4, unique=True).map(tuple)
seconds = st.none() | st.integers(1, 1000)
_some = st.none() | st.integers(1, 100)
limits = st.just(KeyLimits()) | st.builds(KeyLimits, **dict.fromkeys(LIMITS_MAX, _some))
labels = st.lists(st.sampled_from(["gpu", "attic", "trusted"]), max_size=3, unique=True).map(tuple)
routes = st.lists(
    st.sampled_from([*API_ROUTES, "/v1/*", "/api/*", "*", "/v1/models*", "/v1/m*"]), max_size=4, unique=True
).map(tuple)


@given(
    models,
    seconds,
    limits,
    st.sampled_from(["Ualice", "key:x", "operator"]),
    models,
    seconds,
    limits,
    st.booleans(),
    labels,
    labels,
    routes,
    routes,
)
def test_a_child_never_exceeds_its_parent(
    parent_models: tuple[str, ...],
    parent_seconds: int | None,
    parent_limits: KeyLimits,
    by: str,
    child_models: tuple[str, ...],
    child_seconds: int | None,
    child_limits: KeyLimits,
    admin: bool,
    parent_labels: tuple[str, ...],
    child_labels: tuple[str, ...],
    parent_routes: tuple[str, ...],
    child_routes: tuple[str, ...],
) -> None:
    parent_expires = None if parent_seconds is None else NOW + parent_seconds
    parent = ScopedKeyCreate(
        id="p", owner="Ualice", digest=b"", prefix="", label="", models=parent_models, limits=parent_limits,
        created_at=NOW, expires_at=parent_expires, by=by, node_labels=parent_labels, routes=parent_routes,
    )  # fmt: skip
    request = CreateKey(
        Actor(), models=child_models, expires_seconds=child_seconds, limits=child_limits, admin=admin,
        node_labels=child_labels, routes=child_routes,
    )  # fmt: skip
    if (error := refusal(lambda: child_scope(parent, asked_scope(request, NOW, 10_000)))) is not None:
        assert error.code in ("forbidden", "invalid")
        return
    scope = child_scope(parent, asked_scope(request, NOW, 10_000))
    assert not scope.admin
    assert not parent.by.startswith("key:")
    assert parent.limits == KeyLimits()
    if parent.models:
        assert scope.models
        assert set(scope.models) <= set(parent.models)
    if parent.expires_at is not None:
        assert scope.expires_at is not None
        assert scope.expires_at <= parent.expires_at
    if parent_labels:
        assert scope.node_labels
        assert set(scope.node_labels) <= set(parent_labels)
    for route in API_ROUTES:
        assert not may_use_route(scope.routes, route) or may_use_route(parent_routes, route), route


def asked(**fields: object) -> CallError | None:
    return refusal(lambda: asked_scope(CreateKey(Actor(), **fields), NOW, 10_000))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"models": tuple(f"m{number}" for number in range(KEY_MODELS_MAX + 1))}, "models"),
        ({"models": ("a model",)}, "models"),
        ({"models": ("m",), "admin": True}, "models"),
        ({"expires_seconds": 0}, "expires_seconds"),
        ({"expires_seconds": 10_001}, "expires_seconds"),
        ({"limits": KeyLimits(requests_per_minute=0)}, "limits.requests_per_minute"),
        *(({"limits": KeyLimits(**{name: 0})}, f"limits.{name}") for name in LIMITS_MAX),
        *(({"limits": KeyLimits(**{name: -1})}, f"limits.{name}") for name in LIMITS_MAX),
        *(({"limits": KeyLimits(**{name: most + 1})}, f"limits.{name}") for name, most in LIMITS_MAX.items()),
        ({"node_labels": ("GPU",)}, "node_labels"),
        ({"node_labels": ("",)}, "node_labels"),
        ({"node_labels": ("a" * 33,)}, "node_labels"),
        ({"node_labels": ("a\n",)}, "node_labels"),
        ({"node_labels": tuple(f"l{number}" for number in range(KEY_NODE_LABELS_MAX + 1))}, "node_labels"),
        ({"node_labels": ("gpu",), "admin": True}, "node_labels"),
        ({"routes": ("/v1/chat",)}, "routes"),
        ({"routes": ("/v2/*",)}, "routes"),
        ({"routes": ("*/v1",)}, "routes"),
        ({"routes": ("",)}, "routes"),
        ({"routes": tuple(f"/v1/{'chat'[:number]}*" for number in range(5)) * 7 + ("/admin",)}, "routes"),
        ({"routes": tuple("/v1/chat/completions"[:end] + "*" for end in range(21)) + API_ROUTES}, "routes"),
        ({"routes": ("/v1/*",), "admin": True}, "routes"),
    ],
)
def test_a_key_that_makes_no_sense_is_refused_by_field(fields: dict[str, object], param: str) -> None:
    error = asked(**fields)
    assert error is not None
    assert (error.code, error.param) == ("invalid", param)


def test_a_key_that_makes_sense() -> None:
    request = CreateKey(
        Actor(), models=("a", "b", "a"), expires_seconds=10_000, limits=KeyLimits(requests_per_minute=1)
    )
    scope = asked_scope(request, NOW, 10_000)
    assert (scope.models, scope.expires_at, scope.admin) == (("a", "b"), NOW + 10_000, False)
    assert asked_scope(CreateKey(Actor(), admin=True), NOW, 10_000).expires_at is None


def test_every_limit_may_be_as_high_as_it_may_be() -> None:
    request = CreateKey(Actor(), limits=KeyLimits(**LIMITS_MAX), node_labels=("gpu", "gpu"), routes=("/v1/*", "/v1/*"))
    scope = asked_scope(request, NOW, 10_000)
    assert named(scope.limits) == LIMITS_MAX
    assert (scope.node_labels, scope.routes) == (("gpu",), ("/v1/*",))
    assert len(tuple(dict.fromkeys(API_ROUTES))) == len(API_ROUTES) <= KEY_ROUTES_MAX
    asked_scope(CreateKey(Actor(), routes=API_ROUTES), NOW, 10_000)


def test_limits_as_people_read_them() -> None:
    assert told(KeyLimits()) == []
    assert told(KeyLimits(requests_per_minute=60, concurrency=2, tokens_per_month=1_000_000)) == [
        "60 requests a minute", "2 requests at once", "1,000,000 tokens a month",
    ]  # fmt: skip


def test_a_pattern_takes_in_what_begins_like_it() -> None:
    assert covers("/v1/models", "/v1/models")
    assert not covers("/v1/models", "/v1/models/{id}")
    assert covers("/v1/models*", "/v1/models/{id}")
    assert covers("/v1/*", "/v1/m*")
    assert not covers("/v1/m*", "/v1/*")
    assert not covers("/v1/models", "/v1/models*")
    assert may_use_route((), "/v1/models")
    assert may_use_route(("/api/*", "/v1/models"), "/v1/models")
    assert not may_use_route(("/api/*",), "/v1/models")


PLAIN = KeyCreate(
    id="p", owner="Ualice", digest=b"d", prefix="", label="", models=("a",), limits=KeyLimits(), created_at=NOW,
    expires_at=NOW + 100, by="Ualice",
)  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "is_old"),
    [
        ({}, True),
        ({"limits": KeyLimits(requests_per_minute=1)}, True),
        ({"limits": KeyLimits(requests_per_minute=1, concurrency=1)}, False),
        ({"node_labels": ("gpu",)}, False),
        ({"routes": ("/v1/*",)}, False),
    ],
)
def test_nodes_of_the_version_before_understand_every_key_that_they_can_hold_to(
    fields: dict[str, object], is_old: bool
) -> None:
    """While a network is upgraded machine by machine, nothing stops unless somebody asks for what only the new know."""
    plain = msgspec.structs.replace(PLAIN, limits=fields.get("limits", KeyLimits()))
    made = creation(asked_scope(CreateKey(Actor(), **fields), NOW, 10_000), plain)
    assert (type(made) is KeyCreate) == is_old
    assert {name: getattr(made, name) for name in KeyCreate.__struct_fields__} == msgspec.structs.asdict(plain)
    if not is_old:
        assert (made.node_labels, made.routes) == (fields.get("node_labels", ()), fields.get("routes", ()))


def test_a_child_takes_over_labels_and_routes_that_are_left_open() -> None:
    parent = creation(Scope(("a",), None, KeyLimits(), False, ("gpu",), ("/v1/*",)), PLAIN)
    scope = child_scope(parent, asked_scope(CreateKey(Actor()), NOW, 10_000))
    assert (scope.node_labels, scope.routes) == (("gpu",), ("/v1/*",))
    narrower = CreateKey(Actor(), node_labels=("gpu",), routes=("/v1/models",))
    assert child_scope(parent, asked_scope(narrower, NOW, 10_000)).routes == ("/v1/models",)
    for fields, param in (({"node_labels": ("attic",)}, "node_labels"), ({"routes": ("/api/tags",)}, "routes")):
        asking = asked_scope(CreateKey(Actor(), **fields), NOW, 10_000)
        error = refusal(lambda asking=asking: child_scope(parent, asking))
        assert error is not None
        assert (error.code, error.reason, error.param) == ("forbidden", "scope", param)


def test_a_key_outlives_no_parent_and_takes_over_what_is_left_open() -> None:
    parent = KeyCreate(
        id="p", owner="Ualice", digest=b"", prefix="", label="", models=("a",), limits=KeyLimits(), created_at=NOW,
        expires_at=NOW + 100, by="Ualice",
    )  # fmt: skip
    for fields in ({"expires_seconds": 101}, {"models": ("b",)}, {"admin": True}):
        request = CreateKey(Actor(), **fields)
        error = refusal(lambda request=request: child_scope(parent, asked_scope(request, NOW, 10_000)))
        assert error is not None
        assert (error.code, error.reason) == ("forbidden", "scope")
    scope = child_scope(parent, asked_scope(CreateKey(Actor()), NOW, 10_000))
    assert (scope.models, scope.expires_at) == (("a",), NOW + 100)


# Sessions


def started(number: int, account: str = "Ualice", expires_at: int = NOW + 100) -> SessionStart:
    return SessionStart(bytes([number]) * 32, account, 1, NOW + number, expires_at)


def test_the_oldest_sessions_end_first() -> None:
    index = SessionIndex([], NOW)
    for number in (3, 1, 2):
        index.learn(started(number))
    assert index.ends("Ualice", NOW, keep=2) == [SessionEnd(bytes([1]) * 32)]
    assert len(index.ends("Ualice", NOW)) == 3
    assert index.ends("Ualice", NOW, keep=5) == []
    assert index.ends("Ubob", NOW) == []


def test_ended_and_expired_sessions_are_forgotten() -> None:
    index = SessionIndex([], NOW)
    index.learn(started(1))
    index.learn(started(2, expires_at=NOW + 1))
    index.forget("Ualice", [SessionEnd(bytes([1]) * 32)])
    index.forget("Unobody", [SessionEnd(bytes(32))])
    assert index.ends("Ualice", NOW + 1) == []


def test_the_index_is_made_from_what_may_be_live() -> None:
    rows = [
        SessionRow(id="1", started=started(1)),
        SessionRow(id="2", started=started(2), ended=True),
        SessionRow(id="3", started=started(3, expires_at=NOW)),
        SessionRow(id="4", ended=True),  # ended by another node before we heard that it began
    ]
    assert SessionIndex(rows, NOW).ends("Ualice", NOW) == [SessionEnd(bytes([1]) * 32)]


# Passwords


async def test_passwords_are_the_same_however_a_keyboard_composes_them() -> None:
    passwords = Passwords(HashCost(memory_kibibytes=8, passes=1))
    await passwords.open()
    stored = await passwords.hash("cafe\u0301 noir chaud")
    assert stored.startswith("$argon2id$")
    assert await passwords.verify(stored, "caf\u00e9 noir chaud")
    assert not await passwords.verify(stored, "cafe noir chaud")


async def test_the_hash_that_stands_in_for_none_opens_nothing() -> None:
    passwords = Passwords(HashCost(memory_kibibytes=8, passes=1))
    await passwords.open()
    for guess in ("", "x", "\ud800"):
        assert not await passwords.verify("", guess)


def test_the_default_cost_is_owasps_minimum() -> None:
    cost = AuthConfig().hash_cost
    assert (cost.memory_kibibytes, cost.passes, cost.lanes) == (19 * 1024, 2, 1)


# The keys' last use


class RefusingStore(MemoryStore):
    """A disk that can be full."""

    full = False

    def write(self, batch: Batch) -> None:
        if self.full:
            raise StoreError("The disk is full.", reason="full")
        super().write(batch)


async def test_what_the_disk_refuses_is_kept_for_the_next_time(caplog: pytest.LogCaptureFixture) -> None:
    kv = RefusingStore()
    row = KeyRow(id="k" * 12)
    kv.write([(row_key(row), encode_row(row))])
    async with open_store(kv, Metrics()) as store:
        usage = KeyUsage(store.local("auth"))
        usage.record(View(store.reader), {row.id: 5}, NOW)
        kv.full = True
        await usage.flush()
        assert "could not be written" in caplog.text
        assert usage.last_used_at(row.id) == 5
        kv.full = False
        await usage.flush()
        assert usage.last_used_at(row.id) == 5
        assert KeyUsage(store.local("auth")).last_used_at(row.id) == 5


# Configuration


@pytest.mark.parametrize(
    "table",
    [
        {"registration": "anyone"},
        {"sesion_seconds": 60},
        {"session_seconds": 0},
        {"argon2_passes": 0},
        {"accounts_max": 10_001},
        {"log_in_wait_seconds_max": 1e9},
        {"password_threads": 0},
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(table: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(table, AuthConfig)


def test_every_key_has_a_default() -> None:
    assert msgspec.convert({}, AuthConfig) == AuthConfig()
