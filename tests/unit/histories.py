"""Random histories of several authors, for the tests of merging and of saving what a disk lost."""

from hypothesis import strategies as st

from covey.contracts.auth import KeyLimits
from covey.contracts.feeds import (
    AccountApprove,
    AccountCreate,
    AccountRename,
    Admit,
    BudgetSpent,
    InvitationCreate,
    InvitationUse,
    KeyCreate,
    KeyRevoke,
    Label,
    Op,
    OwnerLimits,
    OwnerStanding,
    PasswordSet,
    Remove,
    Rename,
    ScopedKeyCreate,
    SessionEnd,
    SessionStart,
)
from covey.store.memory import MemoryStore
from covey.store.merge import EntryMeta, apply
from covey.store.rows import InvitationRow, KeyRow, SessionRow
from covey.store.view import View, encode_row, row_key
from covey.store.writer import Overlay

Said = tuple[EntryMeta, tuple[Op, ...]]

_ids = st.sampled_from(["a", "b"])
_names = st.sampled_from(["ann", "bob"])
_numbers = st.integers(0, 3)
_digests = st.sampled_from([b"\1" * 32, b"\2" * 32])
_roles = st.sampled_from(["admin", "user"])
_limits = st.builds(KeyLimits, requests_per_minute=st.none() | _numbers)
_models = st.sampled_from([(), ("m",)])
_labels = st.sampled_from(["gpu", "trusted"])
_held: dict[str, st.SearchStrategy[object]] = {
    "node_labels": st.sampled_from([(), ("gpu",)]),
    "routes": st.sampled_from([(), ("/v1/*",)]),
}
_limit = st.none() | _numbers
_limited = st.dictionaries(st.sampled_from(["requests_per_minute", "tokens_per_day"]), _limit)
_key: dict[str, st.SearchStrategy[object]] = {
    "id": _ids, "owner": _ids, "digest": _digests, "prefix": _names, "label": _names, "models": _models,
    "limits": _limits, "created_at": _numbers, "expires_at": st.none() | _numbers, "by": _ids,
}  # fmt: skip
FIELDS: dict[type, dict[str, st.SearchStrategy[object]]] = {
    Admit: {"peer": _ids, "roles": st.sampled_from([("auth",), ("auth", "web")]), "name": _names, "by": _ids},
    Remove: {"peer": _ids, "cutoffs": st.dictionaries(st.sampled_from(["f", "g"]), _numbers), "by": _ids},
    Rename: {"peer": _ids, "name": _names, "by": _ids},
    Label: {"peer": _ids, "labels": st.dictionaries(_labels, st.booleans()), "by": _ids},
    KeyCreate: _key,
    ScopedKeyCreate: {**_key, **_held},
    KeyRevoke: {"id": _ids, "by": _ids},
    OwnerLimits: {"owner": _ids, "limits": _limited, "by": _ids},
    OwnerStanding: {"owner": _ids, "epoch": _numbers, "active": st.booleans(), "by": _ids},
    AccountCreate: {
        "id": _ids, "name": _names, "role": _roles, "pending": st.booleans(), "created_at": _numbers, "by": _ids,
    },
    AccountRename: {"id": _ids, "name": _names, "by": _ids},
    AccountApprove: {"id": _ids, "by": _ids},
    PasswordSet: {"id": _ids, "epoch": _numbers, "hash": _names, "by": _ids},
    SessionStart: {
        "digest": _digests, "account": _ids, "epoch": _numbers, "created_at": _numbers, "expires_at": _numbers,
    },
    SessionEnd: {"digest": _digests},
    InvitationCreate: {
        "id": _ids, "digest": _digests, "role": _roles, "label": _names, "created_at": _numbers,
        "expires_at": _numbers, "by": _ids,
    },
    InvitationUse: {"id": _ids, "account": st.sampled_from(["", "a", "b"])},
    BudgetSpent: {
        "id": _ids, "period": st.sampled_from(["2026-11", "2026-11-01", "2026-11-02"]),
        "used": st.dictionaries(_names, _numbers),
    },
}  # fmt: skip
OPS = st.one_of([st.builds(op, **fields) for op, fields in FIELDS.items()])


@st.composite
def histories(draw: st.DrawFn) -> list[Said]:
    """Entries of three authors with equal, skewed and repeated clocks; a place in a feed is used once."""
    said: list[Said] = []
    for author in ("p", "q", "r"):
        clock = 0
        for seq in range(1, draw(st.integers(1, 5))):
            clock += draw(st.integers(1, 3))
            ops = tuple(draw(st.lists(OPS, min_size=1, max_size=3)))
            said.append((EntryMeta(clock, f"keys/{author}/1", seq, f"{author}{seq}".encode().ljust(32)), ops))
    return said


def rows(said: list[Said]) -> dict[bytes, bytes | None]:
    """The rows that they make in that order, by key."""
    overlay = Overlay(MemoryStore())
    for meta, ops in said:
        for op in ops:
            overlay.put([(row_key(row), encode_row(row)) for row in apply(View(overlay), meta, op)])
    return overlay.changes


def denied(changes: dict[bytes, bytes | None]) -> set[tuple[str, str]]:
    """Everything that can never be taken back."""
    overlay = Overlay(MemoryStore())
    overlay.put(list(changes.items()))
    seen = View(overlay)
    return {
        *(("key", row.id) for row in seen.all(KeyRow) if row.revoked),
        *(("session", row.id) for row in seen.all(SessionRow) if row.ended),
        *(("invitation", row.id) for row in seen.all(InvitationRow) if row.used_by),
    }
