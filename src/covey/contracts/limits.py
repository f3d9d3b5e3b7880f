"""Limits that hold over a whole cluster: what a gateway reports to the owner of a limit, and what it is lent.

Every limit has one owner among the auth nodes, by rendezvous hashing. A gateway spends only what the owner lent it, and
reports with totals, never with differences: a report that is lost, or sent twice, changes nothing.
"""

from collections.abc import Iterable
from hashlib import blake2b
from typing import Literal

import msgspec

from covey.contracts.method import Unary
from covey.errors import CallError

LimitKind = Literal["requests", "tokens", "concurrency", "day", "month"]
"""Requests and tokens a minute, requests at once, tokens in a day and in a month of UTC."""

LEASE_SECONDS = 2.0
"""How long what was lent may be spent; its holder counts from when it asked, the owner from when it lent."""
BEAT_SECONDS = 1.0
"""Between two signs of life of a gateway to every auth node that it sees."""
REPORTS_MAX = 64
"""In one request."""
SEES_MAX = 256
AMOUNT_MAX = 2**50
"""Of anything: beyond it nobody is believed."""
ID_CHARS_MAX = 160


class LimitUse(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One limit as a gateway sees it. Totals (`spent` to `overdrawn`) count since the gateway's process began.

    `period`: of a budget: `2026-11-25` or `2026-11`. `needed`: what a waiting request takes at least; `wanted`: all
    that wait. `held`: what was lent and is not spent, with what runs (concurrency) or is reserved (budgets).
    Of requests and tokens: `spent`; `reserved`: the part of it that may come back; `settled`: what of that is decided,
    and `returned` of it; `overdrawn`: used beyond what was reserved. Of budgets: `used` since the process began, and
    `base`: what the owner said it had counted for this gateway before; -1: not told yet.
    """

    kind: LimitKind
    limit: int
    period: str = ""
    needed: int = 0
    wanted: int = 0
    held: int = 0
    spent: int = 0
    reserved: int = 0
    settled: int = 0
    returned: int = 0
    overdrawn: int = 0
    used: int = 0
    base: int = -1


class LimitReport(msgspec.Struct, frozen=True):
    """Every limit of one key (`key:<id>`) or person (`owner:<id>`). `sequence` grows with each report."""

    id: str
    sequence: int
    uses: tuple[LimitUse, ...]


class LeaseLimits(msgspec.Struct, frozen=True):
    """`term`: of the gateway's process; a later one's is higher. `sees`: the auth nodes that it sees. No reports: a
    sign of life.
    """

    term: int
    sees: tuple[str, ...]
    reports: tuple[LimitReport, ...] = ()


class LimitGrant(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is lent, in the order of the uses. `left`: what the owner could still lend, `per_second`: how it grows.

    `retry_after_seconds`: when it may have what was needed; 0 where it was lent. `base`: as in `LimitUse`.
    """

    granted: int = 0
    left: int = 0
    per_second: float = 0.0
    retry_after_seconds: float = 0.0
    base: int = -1


class LimitGrants(msgspec.Struct, frozen=True, omit_defaults=True):
    """`owned`: whether the answering node is the owner of this id; if not, nothing was taken note of."""

    id: str
    owned: bool
    grants: tuple[LimitGrant, ...] = ()


class LimitsLeased(msgspec.Struct, frozen=True):
    """In the order of the reports. `gateways`: how many share each limit."""

    gateways: int
    limits: tuple[LimitGrants, ...] = ()


LEASE_LIMITS = Unary(
    "auth.lease_limits", LeaseLimits, LimitsLeased, access=frozenset({"gateway"}), timeout_seconds=1.0, idempotent=False
)
"""Asked of the owner. `too_large` for more than `REPORTS_MAX` reports, `invalid` for what no gateway says."""


def ranked(limit_id: str, nodes: Iterable[str]) -> list[str]:
    """The nodes in the order in which they would own a limit (rendezvous hashing; Thaler and Ravishankar, 1998)."""

    def weight(node: str) -> bytes:
        return blake2b(f"{limit_id}\0{node}".encode(), digest_size=8).digest()

    return sorted(nodes, key=lambda node: (weight(node), node), reverse=True)


def check_request(request: LeaseLimits) -> None:
    """Raise `too_large` or `invalid` for what no gateway of ours sends."""
    if len(request.reports) > REPORTS_MAX or len(request.sees) > SEES_MAX:
        raise CallError("too_large", f"Report at most {REPORTS_MAX} limits at once.", param="reports")
    for report in request.reports:
        if not 0 < len(report.id) <= ID_CHARS_MAX or len(report.uses) > 10:
            raise CallError("invalid", "That is the id of no limit.", param="reports.id")
        for use in report.uses:
            amounts = (use.limit, use.needed, use.wanted, use.held, use.spent, use.reserved, use.settled)
            if not all(0 <= amount <= AMOUNT_MAX for amount in (*amounts, use.returned, use.overdrawn, use.used)):
                raise CallError("invalid", "An amount is impossible.", param="reports.uses")
            if use.base > AMOUNT_MAX or len(use.period) > 10:
                raise CallError("invalid", "A budget's period or base is impossible.", param="reports.uses")
