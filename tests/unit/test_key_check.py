"""A key's worth by the rows alone, and what a node that is no auth node keeps denied."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.contracts.auth import KeyLimits, VerifyKey
from covey.contracts.feeds import KeyCreate, KeyRevoke, Op, OwnerLimits, OwnerStanding, ScopedKeyCreate, SessionEnd
from covey.roles.auth.role import say_kept
from covey.store.denied import KEY_PREFIX, OWNER_PREFIX, HeededRows, keep_denied, restated
from covey.store.feeds import SystemClock, open_feeds
from covey.store.identity import Identity
from covey.store.key_check import asked_id, identity_of_key, judge_key
from covey.store.memory import MemoryStore
from covey.store.merge import EntryMeta, apply
from covey.store.rows import KeyRow, MemberRow, StandingRow
from covey.store.view import View, encode_row, row_key
from covey.store.writer import Overlay, open_store
from covey.telemetry.metrics import Metrics

DIGEST, NOW = b"\1" * 32, 1_000.0


def created(key: str = "k", **fields: object) -> KeyCreate:
    plain: dict[str, object] = {
        "id": key, "owner": "ann", "digest": DIGEST, "prefix": "cvy_k", "label": "", "models": (),
        "limits": KeyLimits(), "created_at": 1, "expires_at": None, "by": "ann",
    }  # fmt: skip
    return KeyCreate(**{**plain, **fields})  # type: ignore[arg-type]


STANDS = OwnerStanding(owner="ann", epoch=1, active=True, by="x")


def stored(*ops: Op) -> Overlay:
    overlay = Overlay(MemoryStore())
    for seq, op in enumerate(ops, start=1):
        meta = EntryMeta(seq, "keys/p/1", seq, bytes(32))
        overlay.put([(row_key(row), encode_row(row)) for row in apply(View(overlay), meta, op)])
    return overlay


def outcome(overlay: Overlay, key: str = "k", digest: bytes = DIGEST) -> str:
    return judge_key(HeededRows(overlay), key, digest, NOW)[1]


@pytest.mark.parametrize(
    ("ops", "expected"),
    [
        ([STANDS, created()], "ok"),
        ([STANDS], "unknown"),
        ([STANDS, KeyRevoke(id="k", by="x")], "unknown"),  # its creation is still to come
        ([created()], "owner_disabled"),
        ([STANDS, created(), KeyRevoke(id="k", by="x")], "revoked"),
        ([STANDS, created(expires_at=1_000)], "expired"),
        ([STANDS, created(expires_at=1_001)], "ok"),
        ([STANDS, created(), OwnerStanding(owner="ann", epoch=1, active=False, by="x")], "owner_disabled"),
        ([STANDS, created(by="key:parent")], "revoked"),
        ([STANDS, created("parent"), created(by="key:parent")], "ok"),
        ([STANDS, created("parent"), created(by="key:parent"), KeyRevoke(id="parent", by="x")], "revoked"),
    ],
)
def test_what_has_become_of_a_key(ops: Sequence[Op], expected: str) -> None:
    assert outcome(stored(*ops)) == expected


def test_a_wrong_secret_opens_nothing() -> None:
    overlay = stored(STANDS, created())
    assert [outcome(overlay, digest=digest) for digest in (bytes(32), b"", b"\1" * 31)] == ["unknown"] * 3


@pytest.mark.parametrize("key_id", ["", "x" * 11, "x" * 13, "\ud800" * 12, "ключключключ"])
def test_what_cannot_be_an_id_is_nobodys(key_id: str) -> None:
    assert asked_id(VerifyKey(key_id, DIGEST)) == ""
    assert asked_id(VerifyKey("Zyud3fRGePnb", DIGEST)) == "Zyud3fRGePnb"


@pytest.mark.parametrize("admin", [True, False])
def test_only_a_key_made_to_administer_is_an_administrators(*, admin: bool) -> None:
    key = created(admin=admin, models=("m",), expires_at=9)
    identity = identity_of_key(KeyRow(id="k", created=key), key, StandingRow(owner="ann"))
    assert (identity.role, identity.owner, identity.models) == ("admin" if admin else "user", "ann", ("m",))
    assert identity.expires_at == 9
    assert (identity.owner_limits, identity.node_labels, identity.routes) == (KeyLimits(), (), ())


def test_a_gateway_hears_of_every_limit_and_restriction() -> None:
    plain = created(limits=KeyLimits(tokens_per_day=5))
    fields = {name: getattr(plain, name) for name in KeyCreate.__struct_fields__}
    key = ScopedKeyCreate(**fields, node_labels=("gpu",), routes=("/v1/*",))
    overlay = stored(STANDS, key, OwnerLimits("ann", {"concurrency": 2}, "x"))
    row, outcome, stands = judge_key(HeededRows(overlay), "k", DIGEST, NOW)
    assert (row, outcome) == (KeyRow(id="k", created=key), "ok")
    assert row is not None
    assert stands is not None
    identity = identity_of_key(row, key, stands)
    assert (identity.limits, identity.owner_limits) == (KeyLimits(tokens_per_day=5), KeyLimits(concurrency=2))
    assert (identity.node_labels, identity.routes) == (("gpu",), ("/v1/*",))


# What comes undone


def test_a_revocation_that_came_undone_stays_here() -> None:
    """Mutation: leave out `keep_denied` in `Author.say_again`, or `HeededRows` in the replica."""
    overlay = stored(STANDS, created())
    keep_denied(overlay, [KeyRevoke(id="k", by="x"), SessionEnd(digest=DIGEST)])
    assert outcome(overlay) == "revoked"
    assert judge_key(View(overlay), "k", DIGEST, NOW)[1] == "ok"
    assert HeededRows(overlay).get(MemberRow, "k") is None


def test_what_others_have_said_again_is_not_kept() -> None:
    overlay = stored(STANDS, created(), KeyRevoke(id="k", by="x"))
    keep_denied(overlay, [KeyRevoke(id="k", by="x")])
    assert overlay.get(KEY_PREFIX + b"k") is None
    assert outcome(overlay) == "revoked"


def test_an_owner_stays_disabled_until_enabled_anew() -> None:
    overlay = stored(STANDS, created())
    for epoch in (3, 2):
        keep_denied(overlay, [OwnerStanding(owner="ann", epoch=epoch, active=False, by="x")])
    assert overlay.get(OWNER_PREFIX + b"ann") == b"3 x"
    assert outcome(overlay) == "owner_disabled"
    for epoch, expected in ((3, "owner_disabled"), (4, "ok")):
        again = OwnerStanding(owner="ann", epoch=epoch, active=True, by="x")
        meta = EntryMeta(epoch, "keys/p/1", epoch, bytes(32))
        overlay.put([(row_key(row), encode_row(row)) for row in apply(View(overlay), meta, again)])
        assert outcome(overlay) == expected


def test_an_auth_node_says_what_it_kept_when_it_was_none() -> None:
    overlay = stored(STANDS, created(), created("gone"), KeyRevoke(id="gone", by="x"))
    assert restated(overlay) == ([], [])
    revoke, disable = KeyRevoke(id="k", by="eve"), OwnerStanding(owner="ann", epoch=2, active=False, by="eve dan")
    keep_denied(overlay, [revoke, disable])
    said, cleared = restated(overlay)
    assert said == [revoke, disable]
    overlay.put(cleared)
    assert restated(overlay) == ([], [])
    overlay.put([(KEY_PREFIX + b"gone", b"x")])  # others have said it meanwhile
    assert restated(overlay) == ([], [(KEY_PREFIX + b"gone", None)])


async def test_it_says_so_in_its_own_feed_once() -> None:
    """Mutation: `say_kept` without clearing the corner, or without saying."""
    async with (
        open_store(MemoryStore(), Metrics(), in_thread=False) as store,
        open_feeds(store, Identity.generate(), SystemClock(), node_name="gina", found=True) as feeds,
    ):
        await feeds.append(lambda _: [STANDS, created()])
        await store.commit(lambda _: ([(KEY_PREFIX + b"k", b"eve")], None))
        await say_kept(feeds)
        assert feeds.view.get(KeyRow, "k") == KeyRow(id="k", created=created(), revoked=True)
        heads = feeds.heads()
        await say_kept(feeds)
        assert feeds.heads() == heads
        assert store.reader.get(KEY_PREFIX + b"k") is None


@given(st.integers(0, 4), st.integers(0, 4), st.booleans())
def test_what_is_kept_only_ever_denies(stands: int, denied: int, active: bool) -> None:
    overlay = stored(OwnerStanding(owner="ann", epoch=stands, active=active, by="x"), created())
    before = outcome(overlay)
    keep_denied(overlay, [OwnerStanding(owner="ann", epoch=denied, active=False, by="x")])
    expected = "owner_disabled" if before == "owner_disabled" or denied >= stands else "ok"
    assert outcome(overlay) == expected
