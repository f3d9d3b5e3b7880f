"""Adding up what was used, and writing it down as a table."""

import csv
import io
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.contracts.usage import UsageRecord, UsageRow, UsageSums
from covey.contracts.usage_sums import (
    BUCKET_MAX,
    Ledger,
    add,
    bucket,
    counts_hours,
    day_of,
    hour_of,
    merge,
    quantile,
    sums_of,
    total,
)
from covey.contracts.usage_table import (
    RECORD_COLUMNS,
    ROW_COLUMNS,
    Names,
    as_csv,
    columns_of_rows,
    line_of_record,
    line_of_row,
)
from covey.errors import CallError

NOON = 1_764_072_000.0  # 2025-11-25T12:00:00Z


def record(at: float = NOON, **fields: Any) -> UsageRecord:
    known: dict[str, Any] = {
        "request_id": "r", "key_id": "k1", "owner": "a1", "model": "tiny", "node": "alpha", "route": "/v1/chat",
        "outcome": "ok", "prompt_tokens": 7, "completion_tokens": 3, "seconds": 0.5, "first_token_seconds": 0.1,
    }  # fmt: skip
    return UsageRecord(at, **(known | fields))


def test_days_and_hours_are_utc() -> None:
    assert day_of(NOON) == "2025-11-25"
    assert hour_of(NOON + 3599) == "2025-11-25T12"
    assert day_of(NOON + 12 * 3600 - 1) == "2025-11-25"
    assert day_of(NOON + 12 * 3600) == "2025-11-26"


def test_a_record_counts_once_by_how_it_ended() -> None:
    ok, failed, cancelled = (sums_of(record(outcome=how)) for how in ("ok", "upstream", "cancelled"))
    assert (ok.requests, ok.failed, ok.cancelled) == (1, 0, 0)
    assert (failed.requests, failed.failed, failed.cancelled) == (1, 1, 0)
    assert (cancelled.requests, cancelled.failed, cancelled.cancelled) == (1, 0, 1)
    silent = sums_of(record(first_token_seconds=None))
    assert (silent.first_tokens, silent.first_token_seconds, silent.first_token_histogram) == (0, 0.0, {})


lengths = st.floats(min_value=0.0, max_value=2000.0)


@given(st.lists(st.builds(lambda seconds: sums_of(record(seconds=seconds)), lengths), max_size=8), st.randoms())
def test_the_order_of_adding_does_not_matter(sums: list[UsageSums], order: random.Random) -> None:
    shuffled = list(sums)
    order.shuffle(shuffled)
    one, other = UsageSums(), UsageSums()
    for each in sums:
        one = add(one, each)
    for each in shuffled:
        other = add(each, other)
    assert one.seconds == pytest.approx(other.seconds)
    assert one.seconds_histogram == other.seconds_histogram
    assert one.requests == other.requests == len(sums)
    assert sum(one.seconds_histogram.values()) == len(sums)


@given(st.floats(min_value=0.0011, max_value=1000.0))
def test_a_quantile_is_near_what_it_stands_for(seconds: float) -> None:
    found = quantile({bucket(seconds): 1}, 0.5)
    assert found is not None
    assert seconds <= found * 1.000001
    assert found <= seconds * 1.19


def test_quantiles_of_many() -> None:
    assert quantile({}, 0.5) is None
    assert bucket(0) == bucket(0.001) == 0
    assert bucket(1e9) == BUCKET_MAX
    histogram = {bucket(0.1): 98, bucket(10.0): 2}
    assert quantile(histogram, 0.5) == pytest.approx(0.1, rel=0.2)
    assert quantile(histogram, 0.99) == pytest.approx(10.0, rel=0.2)


@pytest.mark.parametrize(
    ("span_days", "group_by", "hours"), [(2, (), True), (2.01, (), False), (30, ("hour",), True), (30, ("day",), False)]
)
def test_what_is_counted(span_days: float, group_by: Any, hours: bool) -> None:
    assert counts_hours(NOON, NOON + span_days * 86_400, group_by) is hours


def test_gateways_are_merged_by_group() -> None:
    one = [UsageRow(("a",), sums_of(record())), UsageRow(("c",), sums_of(record(prompt_tokens=1)))]
    other = [UsageRow(("b",), sums_of(record())), UsageRow(("c",), sums_of(record(prompt_tokens=2)))]
    merged = merge([one, other, []], groups_max=10)
    assert [row.group for row in merged] == [("a",), ("b",), ("c",)]
    assert merged[2].sums.prompt_tokens == 3
    assert merge([other, one], 10) == merged
    assert total(merged).requests == 4
    assert total([]) == UsageSums()


def test_there_is_a_limit_to_the_lines() -> None:
    ledger = Ledger(groups_max=2)
    for group in ("a", "b", "a"):
        ledger.add((group,), UsageSums(1))
    with pytest.raises(CallError, match="more than 2 lines") as refused:
        ledger.add(("c",), UsageSums(1))
    assert refused.value.code == "too_large"


# As a table

NAMES = Names({"a1": "ada"}, {"k1": "notes", "k2": ""})


def test_names_stand_beside_the_ids() -> None:
    line = line_of_row(("day", "user", "key"), UsageRow(("2025-11-25", "a1", "k1"), sums_of(record())), NAMES)
    assert (line["user"], line["user_name"], line["key"], line["key_name"]) == ("a1", "ada", "k1", "notes")
    assert tuple(line) == columns_of_rows(("day", "user", "key"))
    assert tuple(line)[5:] == ROW_COLUMNS
    assert (line["seconds_mean"], line["first_token_seconds_mean"]) == (0.5, 0.1)


@pytest.mark.parametrize(
    ("key", "shown"),
    [("k1", "notes"), ("k2", "k2"), ("k3", "k3"), ("operator", "operator"), ("session:a1", "dashboard (ada)")],
)
def test_what_a_key_is_called(key: str, shown: str) -> None:
    assert NAMES.of("key", key) == shown


def test_what_nobody_ran_is_said_so() -> None:
    assert NAMES.of("node", "") == "none"
    assert NAMES.of("node", "alpha") == "alpha"
    assert NAMES.of("user", "a9") == "a9"


def read(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline="")))


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_a_cell_never_becomes_a_formula(start: str) -> None:
    evil = start + 'cmd|" /C calc"!A0'
    line = line_of_record(record(model=evil), Names(keys={"k1": evil}))
    head, cells = read(as_csv([line], RECORD_COLUMNS))
    shown = dict(zip(head, cells, strict=True))
    assert shown["model"] == shown["key_name"] == "'" + evil
    assert not any(cell.startswith(start) for cell in cells)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20))
def test_csv_gives_back_what_was_put_in(model: str) -> None:
    rows = read(as_csv([line_of_record(record(model=model), Names())], RECORD_COLUMNS))
    assert len(rows) == 2
    assert rows[1][RECORD_COLUMNS.index("model")].removeprefix("'") == model.removeprefix("'")


def test_a_file_in_parts_has_one_head() -> None:
    line = line_of_record(record(), NAMES)
    assert len(read(as_csv([line], RECORD_COLUMNS) + as_csv([line]))) == 3
    assert as_csv([], ("a", "b")) == "a,b\r\n"
    assert line["ended_at"] == "2025-11-25T12:00:00.000+00:00"
    assert line_of_record(record(first_token_seconds=None), NAMES)["first_token_seconds"] is None
    assert line_of_row((), UsageRow((), UsageSums()), NAMES)["seconds_mean"] is None
