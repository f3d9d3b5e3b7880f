"""What an API key is worth, by the rows of the keys feeds. Pure: the rows and the time are arguments.

Auth nodes and gateways ask the same functions, so a key gets the same verdict near and far.
"""

import hmac
from typing import Literal

from covey.contracts.auth import Identity, KeyState, VerifyKey
from covey.contracts.feeds import KeyCreate, ScopedKeyCreate
from covey.contracts.keys import INVALID_KEY, KEY_ID_CHARS
from covey.errors import CallError
from covey.store.merge import Rows
from covey.store.rows import KeyRow, StandingRow

KEY_AUTHOR = "key:"
"""How `by` begins where it was done with a key that is not an administrator's."""
_NO_DIGEST = bytes(32)

KeyOutcome = Literal["ok", "unknown", "expired", "revoked", "owner_disabled"]
"""For the metrics alone; whoever asks hears the same for all but the first. A wrong secret is `unknown` too."""


def bad_key() -> CallError:
    """The one answer for every key that does not count."""
    return CallError("unauthenticated", INVALID_KEY, reason="invalid_api_key")


def asked_id(request: VerifyKey) -> str:
    """The id of the key that is asked about; "", which is nobody's, for what cannot be one."""
    key_id = request.key_id
    return key_id if len(key_id) == KEY_ID_CHARS and key_id.isascii() else ""


def judge_key(
    rows: Rows, key_id: str, digest: bytes, now: float
) -> tuple[KeyRow | None, KeyOutcome, StandingRow | None]:
    """Find a key by its id and the SHA-256 of its text, and say whether it counts; `None` unless it does. At last its
    owner's standing, which has been read anyway.

    An unknown id is compared with a digest that nothing has, so that it goes the way of a wrong secret.
    """
    row = rows.get(KeyRow, key_id)
    created = row.created if row is not None else None
    expected = created.digest if created is not None else _NO_DIGEST
    if not hmac.compare_digest(expected, digest) or row is None or created is None:
        return None, "unknown", None
    stands = standing(rows, created.owner)
    state = _state(rows, row, created, stands, now)
    return (row, "ok", stands) if state == "active" else (None, state, stands)


def key_state(rows: Rows, row: KeyRow, created: KeyCreate, now: float) -> KeyState:
    """What has become of a key. One that was made with another lives no longer than that one."""
    return _state(rows, row, created, standing(rows, created.owner), now)


def _state(rows: Rows, row: KeyRow, created: KeyCreate, stands: StandingRow, now: float) -> KeyState:
    if row.revoked:
        return "revoked"
    if created.by.startswith(KEY_AUTHOR):
        parent = rows.get(KeyRow, created.by.removeprefix(KEY_AUTHOR))
        if parent is None or parent.created is None or parent.revoked:
            return "revoked"
    if not stands.active:
        return "owner_disabled"
    return "expired" if created.expires_at is not None and now >= created.expires_at else "active"


def standing(rows: Rows, owner: str) -> StandingRow:
    """An owner's standing; that of one who never had any is not active."""
    return rows.get(StandingRow, owner) or StandingRow(owner=owner)


def identity_of_key(row: KeyRow, created: KeyCreate, stands: StandingRow) -> Identity:
    """Whom a key that counts speaks for. Its role is what it may act as: only a key made with `admin` is an
    administrator's. Such a key is made for administrators alone, who stay so for as long as they stand.
    """
    node_labels, routes = restrictions(created)
    return Identity(
        key_id=row.id,
        owner=created.owner,
        role="admin" if created.admin else "user",
        models=created.models,
        limits=created.limits,
        expires_at=created.expires_at,
        owner_limits=stands.limits,
        node_labels=node_labels,
        routes=routes,
    )


def restrictions(created: KeyCreate) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A key's `node_labels` and `routes`, as in `Identity`."""
    return (created.node_labels, created.routes) if isinstance(created, ScopedKeyCreate) else ((), ())
