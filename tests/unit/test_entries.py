"""The format of entries, held fast by golden bytes, and each way that an entry can be wrong."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey.contracts.feeds import KeyRevoke, SessionEnd
from covey.errors import CallError
from covey.store.entries import (
    ENTRY_BYTES_MAX,
    ENTRY_DOMAIN,
    NO_HASH,
    NO_HEAD,
    OPS_MAX,
    Entry,
    EntryError,
    FeedId,
    Sealed,
    UnknownOpError,
    check_place,
    check_signature,
    new_deps,
    seal,
    unseal,
)
from covey.store.genesis import format_recovery_key, found, network_hash, parse_recovery_key, read_genesis
from covey.store.hybrid_clock import tick, wall_seconds
from covey.store.identity import Identity
from covey.store.kv import StoreError

ALICE = Identity(b"\1" * 32)
MALLORY = Identity(b"\2" * 32)
NET = b"\3" * 32
FEED = f"keys/{ALICE.peer_id}/00000000000000aa"


def entry(**changes: object) -> Entry:
    fields: dict[str, object] = {
        "net": NET,
        "feed": FEED,
        "seq": 1,
        "prev_hash": NO_HASH,
        "clock": 7 << 16,
        "deps": {},
        "ops": (KeyRevoke("k1", "operator"),),
    }
    return Entry(**(fields | changes))  # type: ignore[arg-type]


def signed(body: object, identity: Identity = ALICE) -> bytes:
    content = msgspec.msgpack.encode(body)
    return identity.sign(ENTRY_DOMAIN, content) + content


def loose(**changes: object) -> bytes:
    """A well-signed entry with any fields."""
    return signed(msgspec.to_builtins(entry(), builtin_types=(bytes,)) | changes)


def flaw(stored: bytes) -> str:
    with pytest.raises(EntryError) as refusal:
        check_signature(unseal(stored))
    return refusal.value.reason


def test_golden_bytes() -> None:
    """A change here is a change of the format: every network out there would refuse it."""
    sealed = seal(ALICE, entry(deps={FEED.replace("keys", "members"): 3}))
    assert ALICE.peer_id == "12D3KooWK99VoVxNE7XzyBwXEzW7xhK7Gpv85r9F3V3fyKSUKPH5"
    assert sealed.stored[64:].hex() == (
        "87a36e6574c4200303030303030303030303030303030303030303030303030303030303030303a466656564d94a6b657973"
        "2f313244334b6f6f574b3939566f56784e4537587a79427758457a573778684b37477076383572394633563366794b53554b"
        "5048352f30303030303030303030303030306161a373657101a9707265765f68617368c42000000000000000000000000000"
        "00000000000000000000000000000000000000a5636c6f636bce00070000a46465707381d94d6d656d626572732f31324433"
        "4b6f6f574b3939566f56784e4537587a79427758457a573778684b37477076383572394633563366794b53554b5048352f30"
        "30303030303030303030303030616103a36f70739183a474797065ac6b65792e7265766f6b652f31a26964a26b31a26279a8"
        "6f70657261746f72"
    )
    assert sealed.stored[:64].hex() == (
        "7788de78d8b6997ff7a8a89f3121c11c068c38e9a65502418d62756bf54058059846c7f44103cfe2"
        "4980a4e864febba116d461d99767699b52021724431bfe09"
    )
    assert sealed.hash.hex() == "bdceacaa8d5906f99c3d28293b3196c8cbaeb694362d6de61b802c0596f80d6d"


def test_an_entry_survives_the_way_through_bytes() -> None:
    sealed = seal(ALICE, entry())
    again = unseal(sealed.stored)
    assert again == sealed
    check_signature(again)
    check_place(again, NET, NO_HEAD)
    after = seal(ALICE, entry(seq=2, prev_hash=sealed.hash, clock=8 << 16))
    check_place(after, NET, sealed.head(NO_HEAD))


@pytest.mark.parametrize(
    "changes",
    [{"seq": 2}, {"prev_hash": b"\1" * 32}, {"seq": 2, "prev_hash": b"\1" * 32}],
)
def test_an_entry_out_of_its_chain_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(EntryError, match="does not follow") as refusal:
        check_place(seal(ALICE, entry(**changes)), NET, NO_HEAD)
    assert refusal.value.reason == "broken_chain"


def test_a_clock_that_does_not_move_is_refused() -> None:
    first = seal(ALICE, entry())
    with pytest.raises(EntryError, match="does not follow"):
        check_place(seal(ALICE, entry(seq=2, prev_hash=first.hash)), NET, first.head(NO_HEAD))


def test_an_entry_of_another_network_is_refused() -> None:
    with pytest.raises(EntryError) as refusal:
        check_place(seal(ALICE, entry(net=b"\4" * 32)), NET, NO_HEAD)
    assert refusal.value.reason == "wrong_network"


def test_an_entry_that_another_signed_is_refused() -> None:
    assert flaw(seal(MALLORY, entry()).stored) == "bad_signature"
    stored = bytearray(seal(ALICE, entry()).stored)
    stored[3] ^= 1
    assert flaw(bytes(stored)) == "bad_signature"


def test_a_signature_made_for_another_purpose_is_refused() -> None:
    body = seal(ALICE, entry()).stored[64:]
    assert flaw(ALICE.sign("invite/1", body) + body) == "bad_signature"


def test_an_unknown_operation_says_upgrade() -> None:
    with pytest.raises(UnknownOpError, match=r"'key.create/3'.*upgrade Covey") as refusal:
        unseal(loose(ops=[{"type": "key.create/3", "id": "k"}]))
    assert refusal.value.reason == "unknown_op"


def test_an_operation_of_another_kind_is_refused() -> None:
    assert flaw(loose(ops=[msgspec.to_builtins(SessionEnd(b"d"), builtin_types=(bytes,))])) == "wrong_kind"


@pytest.mark.parametrize(
    "changes",
    [
        {"ops": [{"type": "key.revoke/1"}]},
        {"ops": [{}]},
        {"ops": [7]},
        {"ops": 7},
        {"seq": 0},
        {"seq": "1"},
        {"clock": -1},
        {"prev_hash": b""},
        {"feed": "keys/me/1"},
        {"feed": f"chat/{ALICE.peer_id}/00000000000000aa"},
        {"feed": FEED + "\n"},
        {"deps": {"x": "y"}},
    ],
)
def test_a_malformed_entry_is_refused(changes: dict[str, object]) -> None:
    assert flaw(loose(**changes)) == "malformed"


def test_an_oversize_entry_is_refused_by_author_and_reader() -> None:
    with pytest.raises(CallError) as refusal:
        seal(ALICE, entry(ops=(KeyRevoke("k" * ENTRY_BYTES_MAX, "x"),)))
    assert refusal.value.code == "too_large"
    many = tuple(KeyRevoke("k", "x") for _ in range(OPS_MAX + 1))
    with pytest.raises(CallError):
        seal(ALICE, entry(ops=many))
    assert flaw(loose(ops=msgspec.to_builtins(many))) == "too_large"
    assert flaw(bytes(ENTRY_BYTES_MAX + 65)) == "too_large"


@settings(max_examples=500, deadline=None)
@given(data=st.data())
def test_damaged_bytes_are_refused_and_never_crash(data: st.DataObject) -> None:
    stored = bytearray(seal(ALICE, entry(deps={FEED: 1})).stored)
    where = data.draw(st.integers(0, len(stored) - 1))
    damaged = data.draw(
        st.one_of(
            st.just(bytes(stored[:where])),
            st.binary(max_size=300),
            st.integers(1, 255).map(lambda flip: bytes([*stored[:where], stored[where] ^ flip, *stored[where + 1 :]])),
        )
    )
    assert flaw(damaged) in {"malformed", "unknown_op", "wrong_kind", "bad_signature", "too_large"}


def test_feed_names() -> None:
    feed = FeedId.parse(FEED)
    assert str(feed) == FEED
    assert (feed.kind, feed.author, feed.incarnation) == ("keys", ALICE.peer_id, "00000000000000aa")


def test_deps_name_only_what_is_new() -> None:
    assert new_deps({"a": 3, "b": 2, "c": 0}, {"a": 3, "b": 1}) == {"b": 2}


def test_a_head_gathers_the_deps() -> None:
    sealed: Sealed = seal(ALICE, entry(deps={"b": 2}))
    assert sealed.head(NO_HEAD).deps == {"b": 2}


def test_the_clock_is_later_than_all_that_was_seen() -> None:
    assert tick(0, 1.5) == 1500 << 16
    assert tick(1500 << 16, 1.5) == (1500 << 16) + 1
    assert tick(9000 << 16, 1.5) == (9000 << 16) + 1
    assert tick(0, 1.5, seen=[9000 << 16]) == (9000 << 16) + 1
    assert tick(0, 1.5, seen=[2**64 - 1]) == 1500 << 16  # a liar is not followed
    assert tick(0, 1.5, seen=[2**64 - 1, 9000 << 16, 8000 << 16]) == (9000 << 16) + 1  # others are all the same
    assert wall_seconds((1500 << 16) + 3) == 1.5
    assert tick(2**63, 1.5) < 2**64


def test_a_network_begins() -> None:
    content, text = found(ALICE.peer_id, 5.9)
    genesis = read_genesis(content)
    assert (genesis.founder, genesis.created_at) == (ALICE.peer_id, 5)
    assert len(network_hash(content)) == 32
    assert found(ALICE.peer_id, 5.9)[0] != content
    recovery = parse_recovery_key(f"  {text[:30].upper()} \n{text[30:]} ")
    assert bytes(recovery.verify_key) == genesis.recovery_public_key
    assert text not in content.hex()


def test_golden_genesis() -> None:
    assert format_recovery_key(b"\5" * 32) == "covey1recoveryaucqkbifaucqkbifaucqkbifaucqkbifaucqkbifaucqkbifauc22k2cmu"
    assert network_hash(b"genesis").hex() == "f106cfd22c055838fb3ae91ae8359835167262403561935a8d66eaf0178f2642"


@pytest.mark.parametrize("text", ["", "covey1recovery", "covey1recoveryaaaa", "covey1recovery0!", "hello"])
def test_a_mistyped_recovery_key_is_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(ValueError, match="recovery key"):
        parse_recovery_key(text)


def test_one_wrong_letter_in_a_recovery_key_is_noticed() -> None:
    text = format_recovery_key(b"\5" * 32)
    with pytest.raises(ValueError, match="mistyped"):
        parse_recovery_key(text[:-1] + ("a" if text[-1] != "a" else "b"))


def test_an_unreadable_genesis_says_what_to_do() -> None:
    with pytest.raises(StoreError, match="upgrade Covey"):
        read_genesis(b"\x81\xa7version\x02")
