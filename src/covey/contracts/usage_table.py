"""What was used as a table for other programs: the same columns in CSV and JSON, from the terminal and the dashboard.

CSV is RFC 4180's, with a head. What a person may have chosen (a label, a model's name) and a spreadsheet would take for
a formula gets an apostrophe before it (OWASP, CSV Injection).
"""

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from covey.contracts.usage import Dimension, UsageRecord, UsageRow, UsageSums
from covey.contracts.usage_sums import quantile

Cell = str | int | float | None
Fields = dict[str, Cell]
"""One line, in the order of its columns; `None` where there is nothing to say."""

SESSION = "session:"
OPERATOR = "operator"
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""The wide ones too: a spreadsheet of East Asia heeds them."""


@dataclass(frozen=True, slots=True)
class Names:
    """How people are called and keys are labelled, by their ids, as far as who asks may know."""

    users: Mapping[str, str] = field(default_factory=dict[str, str])
    keys: Mapping[str, str] = field(default_factory=dict[str, str])

    def user(self, account: str) -> str:
        """A person's name; the id where it is not known, as of an account in a backup that was lost."""
        return self.users.get(account, account)

    def key(self, key_id: str) -> str:
        """A key's label, or what was used in its stead; the id where there is none."""
        if key_id.startswith(SESSION):
            return f"dashboard ({self.user(key_id.removeprefix(SESSION))})"
        return OPERATOR if key_id == OPERATOR else self.keys.get(key_id) or key_id

    def of(self, dimension: Dimension, value: str) -> str:
        """What people call the value of a dimension."""
        if dimension == "user":
            return self.user(value)
        if dimension == "key":
            return self.key(value)
        return value or "none"


def line_of_row(group_by: Iterable[Dimension], row: UsageRow, names: Names) -> Fields:
    """One line of totals."""
    fields: Fields = {}
    for dimension, value in zip(group_by, row.group, strict=True):
        fields[dimension] = value
        if dimension in ("user", "key"):
            fields[f"{dimension}_name"] = names.of(dimension, value)
    return fields | line_of_sums(row.sums)


def line_of_sums(sums: UsageSums) -> Fields:
    """The figures alone."""
    return {
        "requests": sums.requests,
        "failed": sums.failed,
        "cancelled": sums.cancelled,
        "prompt_tokens": sums.prompt_tokens,
        "completion_tokens": sums.completion_tokens,
        "cached_tokens": sums.cached_tokens,
        "seconds_mean": mean(sums.seconds, sums.requests),
        "seconds_p50": _rounded(quantile(sums.seconds_histogram, 0.5)),
        "seconds_p99": _rounded(quantile(sums.seconds_histogram, 0.99)),
        "first_token_seconds_mean": mean(sums.first_token_seconds, sums.first_tokens),
        "first_token_seconds_p50": _rounded(quantile(sums.first_token_histogram, 0.5)),
        "first_token_seconds_p99": _rounded(quantile(sums.first_token_histogram, 0.99)),
    }


def line_of_record(record: UsageRecord, names: Names) -> Fields:
    """One request. `ended_at` is UTC, to the millisecond."""
    return {
        "ended_at": datetime.fromtimestamp(record.ended_at, UTC).isoformat(timespec="milliseconds"),
        "request_id": record.request_id,
        "key": record.key_id,
        "key_name": names.key(record.key_id),
        "user": record.owner,
        "user_name": names.user(record.owner),
        "model": record.model,
        "node": record.node,
        "route": record.route,
        "outcome": record.outcome,
        "prompt_tokens": record.prompt_tokens,
        "completion_tokens": record.completion_tokens,
        "cached_tokens": record.cached_tokens,
        "seconds": _rounded(record.seconds),
        "first_token_seconds": _rounded(record.first_token_seconds),
    }


def mean(seconds: float, count: int) -> float | None:
    """To the millisecond; `None` of nothing."""
    return _rounded(seconds / count) if count else None


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def as_csv(lines: Iterable[Fields], columns: Iterable[str] = ()) -> str:
    """Lines that have the same columns, below their head.

    Args:
        lines: may be none.
        columns: of the head; none: no head, for the next part of a file.
    """
    text = io.StringIO()
    writer = csv.writer(text)
    if head := tuple(columns):
        writer.writerow(head)
    for line in lines:
        writer.writerow(_cell(value) for value in line.values())
    return text.getvalue()


def _cell(value: Cell) -> Cell:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_STARTS) else value


ROW_COLUMNS = tuple(line_of_sums(UsageSums()))
RECORD_COLUMNS = tuple(line_of_record(UsageRecord(0.0, "", "", "", "", "", "", ""), Names()))


def columns_of_rows(group_by: Iterable[Dimension]) -> tuple[str, ...]:
    """The columns of totals."""
    group_by = tuple(group_by)
    return tuple(line_of_row(group_by, UsageRow(("",) * len(group_by), UsageSums()), Names()))
