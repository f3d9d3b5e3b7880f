"""What was used: one record for each request, written where it ended. Never a word of a prompt or an answer."""

from typing import Literal

import msgspec

from covey.contracts.auth import Actor
from covey.contracts.gateway import ASKERS
from covey.contracts.method import Streaming

Dimension = Literal["day", "hour", "model", "key", "user", "node", "route", "outcome"]
"""What requests can be told apart by. Days (`2026-11-25`) and hours (`2026-11-25T13`) are UTC's."""

GROUPS_MAX = 20_000
"""The most lines that one question may have for its answer."""
SPAN_SECONDS_MAX = 4000 * 86_400.0


class UsageRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """One request.

    `ended_at`: Unix seconds. `key_id` is `session:<account id>` or `operator` where no key was shown. `node`: the name
    of the machine that ran it, "" where none did. `route`: the API path, or the method of the bus. `outcome`: `ok`,
    `cancelled`, or the error's code.
    """

    ended_at: float
    request_id: str
    key_id: str
    owner: str
    model: str
    node: str
    route: str
    outcome: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    seconds: float = 0.0
    first_token_seconds: float | None = None


class UsageSums(msgspec.Struct, frozen=True, omit_defaults=True):
    """What several requests add up to.

    `failed`: neither answered nor cancelled by who asked. `cached_tokens` are some of `prompt_tokens`. `seconds` and
    `first_token_seconds` are sums, the latter over the `first_tokens` requests that had one. The histograms count
    requests by `covey.contracts.usage_sums.bucket` of the two.
    """

    requests: int = 0
    failed: int = 0
    cancelled: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    seconds: float = 0.0
    first_tokens: int = 0
    first_token_seconds: float = 0.0
    seconds_histogram: dict[int, int] = {}
    first_token_histogram: dict[int, int] = {}


class AskUsage(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was used in a time, on behalf of `actor` (empty: the operator).

    `since` and `until`: Unix seconds; of more than two days whole UTC days are counted, else whole hours, outwards.
    `group_by`: one line for each combination that occurs; none: one line. `user` (an account id), `key` (its id) and
    `model` leave out all others. `here`: of the asked gateway alone; else it asks all others that are live, too.
    """

    actor: Actor
    since: float
    until: float
    group_by: tuple[Dimension, ...] = ()
    user: str = ""
    key: str = ""
    model: str = ""
    here: bool = False


class UsageRow(msgspec.Struct, frozen=True):
    """One line. `group`: as `AskUsage.group_by`, in its order; users and keys by their ids."""

    group: tuple[str, ...]
    sums: UsageSums


class UsageRows(msgspec.Struct, frozen=True, omit_defaults=True):
    """Some of the lines, sorted by group over all parts. `silent`: names of gateways that did not answer."""

    rows: tuple[UsageRow, ...]
    silent: tuple[str, ...] = ()


USAGE = Streaming("gateway.usage", AskUsage, UsageRows, access=ASKERS, idle_seconds=30)
"""A person sees what was asked with their own keys and sessions, a key that is not an administrator's its own use, an
administrator everything. `forbidden`: somebody else's; `invalid`; `too_large`: more than `GROUPS_MAX` lines."""


class UsageRecords(msgspec.Struct, frozen=True, omit_defaults=True):
    """Some of the records. `silent`: as `UsageRows`."""

    records: tuple[UsageRecord, ...]
    silent: tuple[str, ...] = ()


USAGE_RECORDS = Streaming("gateway.usage_records", AskUsage, UsageRecords, access=ASKERS, idle_seconds=30)
"""Every request by itself, exactly from `since` to before `until`: of one gateway after the other, each in the order
of time. `group_by` is not heeded. As `USAGE` otherwise."""
