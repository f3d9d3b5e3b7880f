"""Adding up what was used. Pure, and the same wherever it is added: sums of sums are sums."""

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

from covey.contracts.usage import Dimension, UsageRecord, UsageRow, UsageSums
from covey.errors import CallError

HOUR_SECONDS = 3600
DAY_SECONDS = 24 * HOUR_SECONDS
HOURLY_SECONDS_MAX = 2 * DAY_SECONDS
"""Up to here hours are counted, beyond it days."""

BUCKET_SECONDS_MIN = 0.001
BUCKETS_PER_DOUBLING = 4
BUCKET_MAX = 80
"""A thousandth of a second, and 20 doublings of it: 17 minutes."""

_DELIVERED = ("ok", "cancelled")


def day_of(at: float) -> str:
    """The UTC day of a moment in Unix seconds: `2026-11-25`."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")


def hour_of(at: float) -> str:
    """Its UTC hour: `2026-11-25T13`."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H")


def counts_hours(since: float, until: float, group_by: Iterable[Dimension]) -> bool:
    """Whether whole hours are counted; else whole days."""
    return "hour" in group_by or until - since <= HOURLY_SECONDS_MAX


def bucket(seconds: float) -> int:
    """The place of a length of time in a histogram: four to every doubling, from a millisecond up."""
    if seconds <= BUCKET_SECONDS_MIN:
        return 0
    return min(math.ceil(math.log2(seconds / BUCKET_SECONDS_MIN) * BUCKETS_PER_DOUBLING), BUCKET_MAX)


def quantile(histogram: Mapping[int, int], share: float) -> float | None:
    """The length of time that `share` of the requests took at most, to within a fifth; `None` of no requests."""
    wanted = share * sum(histogram.values())
    counted = 0
    for place in sorted(histogram):
        counted += histogram[place]
        if counted >= wanted:
            return float(BUCKET_SECONDS_MIN * 2 ** (place / BUCKETS_PER_DOUBLING))
    return None


def sums_of(record: UsageRecord) -> UsageSums:
    """One request, as a sum."""
    return sums_of_all((record,))


def sums_of_all(records: Sequence[UsageRecord]) -> UsageSums:
    """Many requests, in one pass: a sum for each would cost several times as much."""
    failed = cancelled = prompt_tokens = completion_tokens = cached_tokens = first_tokens = 0
    seconds = first_token_seconds = 0.0
    all_seconds: dict[int, int] = {}
    all_first: dict[int, int] = {}
    for record in records:
        failed += record.outcome not in _DELIVERED
        cancelled += record.outcome == "cancelled"
        prompt_tokens += record.prompt_tokens
        completion_tokens += record.completion_tokens
        cached_tokens += record.cached_tokens
        seconds += record.seconds
        place = bucket(record.seconds)
        all_seconds[place] = all_seconds.get(place, 0) + 1
        if (first := record.first_token_seconds) is not None:
            first_tokens += 1
            first_token_seconds += first
            place = bucket(first)
            all_first[place] = all_first.get(place, 0) + 1
    return UsageSums(
        requests=len(records),
        failed=failed,
        cancelled=cancelled,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        cached_tokens=cached_tokens,
        seconds=seconds,
        first_tokens=first_tokens,
        first_token_seconds=first_token_seconds,
        seconds_histogram=all_seconds,
        first_token_histogram=all_first,
    )


def add(one: UsageSums, other: UsageSums) -> UsageSums:
    """Both together."""
    return UsageSums(
        requests=one.requests + other.requests,
        failed=one.failed + other.failed,
        cancelled=one.cancelled + other.cancelled,
        prompt_tokens=one.prompt_tokens + other.prompt_tokens,
        completion_tokens=one.completion_tokens + other.completion_tokens,
        cached_tokens=one.cached_tokens + other.cached_tokens,
        seconds=one.seconds + other.seconds,
        first_tokens=one.first_tokens + other.first_tokens,
        first_token_seconds=one.first_token_seconds + other.first_token_seconds,
        seconds_histogram=_add_counts(one.seconds_histogram, other.seconds_histogram),
        first_token_histogram=_add_counts(one.first_token_histogram, other.first_token_histogram),
    )


def _add_counts(one: Mapping[int, int], other: Mapping[int, int]) -> dict[int, int]:
    counts = dict(one)
    for place, count in other.items():
        counts[place] = counts.get(place, 0) + count
    return counts


def total(rows: Iterable[UsageRow]) -> UsageSums:
    """All lines together."""
    sums = UsageSums()
    for row in rows:
        sums = add(sums, row.sums)
    return sums


class Ledger:
    """Lines as they come together, one for each group.

    Args:
        groups_max: how many there may be.
    """

    def __init__(self, groups_max: int) -> None:
        self._groups_max = groups_max
        self._sums: dict[tuple[str, ...], UsageSums] = {}

    def add(self, group: tuple[str, ...], sums: UsageSums) -> None:
        """Add to a group; `too_large` where there are too many."""
        known = self._sums.get(group)
        if known is None and len(self._sums) >= self._groups_max:
            raise CallError(
                "too_large",
                f"This has more than {self._groups_max} lines: ask for a shorter time, or group by less.",
                param="group_by",
            )
        self._sums[group] = sums if known is None else add(known, sums)

    def rows(self) -> tuple[UsageRow, ...]:
        """Sorted by group."""
        return tuple(UsageRow(group, self._sums[group]) for group in sorted(self._sums))


def merge(parts: Iterable[Iterable[UsageRow]], groups_max: int) -> tuple[UsageRow, ...]:
    """What several gateways say, as one; all grouped by the same.

    Raises:
        CallError: `too_large`.
    """
    ledger = Ledger(groups_max)
    for rows in parts:
        for row in rows:
            ledger.add(row.group, row.sums)
    return ledger.rows()
