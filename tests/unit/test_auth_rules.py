"""The auth role's pure rules: names, scopes, the sessions of a person, the configuration."""

import re
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from covey.contracts.auth import KEY_MODELS_MAX, NAME_PATTERN, Actor, CreateKey, KeyLimits
from covey.contracts.feeds import KeyCreate, SessionEnd, SessionStart
from covey.errors import CallError
from covey.roles.auth.config import AuthConfig
from covey.roles.auth.credentials import session_id
from covey.roles.auth.key_rules import REQUESTS_PER_MINUTE_MAX, asked_scope, child_scope
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
limits = st.builds(KeyLimits, requests_per_minute=st.none() | st.integers(1, 100))


@given(
    models, seconds, limits, st.sampled_from(["Ualice", "key:x", "operator"]), models, seconds, limits, st.booleans()
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
) -> None:
    parent_expires = None if parent_seconds is None else NOW + parent_seconds
    parent = KeyCreate(
        id="p", owner="Ualice", digest=b"", prefix="", label="", models=parent_models, limits=parent_limits,
        created_at=NOW, expires_at=parent_expires, by=by,
    )  # fmt: skip
    request = CreateKey(Actor(), models=child_models, expires_seconds=child_seconds, limits=child_limits, admin=admin)
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
        ({"limits": KeyLimits(requests_per_minute=REQUESTS_PER_MINUTE_MAX + 1)}, "limits.requests_per_minute"),
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
