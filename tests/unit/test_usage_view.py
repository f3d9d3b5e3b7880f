"""The page of usage: what an address stands for, and what is made of the rows."""

import msgspec
import pytest
from test_usage_sums import NOON, record

from covey.contracts.usage import UsageRow
from covey.contracts.usage_sums import DAY_SECONDS, day_of, sums_of
from covey.contracts.usage_table import Names
from covey.roles.web.usage_view import LINES_MAX, SERIES_MAX, Bars, Choice, choose, lay_out


@pytest.mark.parametrize(
    ("arguments", "choice"),
    [
        ({}, Choice()),
        ({"days": "30", "by": "user", "measure": "requests", "mine": "1"}, Choice(30, "user", "requests", mine=True)),
        ({"days": "31", "by": "route", "measure": "<b>", "mine": "yes"}, Choice()),
        ({"days": "", "by": "", "measure": ""}, Choice()),
    ],
)
def test_what_an_address_stands_for(arguments: dict[str, str], choice: Choice) -> None:
    assert choose(arguments) == choice


def test_links_change_one_thing() -> None:
    choice = Choice(30, "key", "requests", mine=True)
    assert choice.link(days=90) == "/usage?days=90&by=key&measure=requests&mine=1"
    assert choice.link(mine=False) == "/usage?days=30&by=key&measure=requests"
    assert choice.export("totals.csv") == "/usage/totals.csv?days=30&mine=1"
    assert Choice().export("requests.json") == "/usage/requests.json?days=7"


def test_a_period_is_of_whole_days_and_holds_today() -> None:
    since, until = Choice(7).period(NOON)
    assert (until - since) / DAY_SECONDS == 7
    assert day_of(since) == "2025-11-19"
    assert day_of(until - 1) == day_of(NOON) == "2025-11-25"
    midnight = Choice(7).period(since)
    assert midnight[1] == since + DAY_SECONDS


def row(group: str, days_ago: int = 0, **fields: object) -> UsageRow:
    return UsageRow((day_of(NOON - days_ago * DAY_SECONDS), group), sums_of(record(**fields)))


def test_the_most_used_comes_first_and_has_a_bar_each_day() -> None:
    rows = [row("small", prompt_tokens=1, completion_tokens=0), row("big", prompt_tokens=100), row("big", 2)]
    view = lay_out(rows, Choice(), Names(), NOON)
    assert [(line.name, line.sums.requests, line.colour) for line in view.lines] == [("big", 2, 0), ("small", 1, 1)]
    assert view.bars.series[0].values == (0, 0, 0, 0, 10, 0, 103)
    assert view.bars.series[1].values == (0, 0, 0, 0, 0, 0, 1)
    assert view.bars.days == ("Nov 19", "Nov 20", "Nov 21", "Nov 22", "Nov 23", "Nov 24", "Nov 25")
    assert [(day, sums.requests) for day, sums in view.days] == [("2025-11-25", 2), ("2025-11-23", 1)]
    assert msgspec.json.decode(view.bars_json, type=Bars) == view.bars
    assert view.sums.requests == 3
    assert view.lines[0].mean_seconds == 0.5
    assert view.lines[0].first_token_seconds == 0.1
    assert view.seconds_p99 == pytest.approx(0.5, rel=0.2)
    assert view.first_token_p99_seconds == pytest.approx(0.1, rel=0.2)


def test_what_is_counted_may_be_requests() -> None:
    rows = [row("few", prompt_tokens=1000), *(row("many", prompt_tokens=0) for _ in range(3))]
    view = lay_out(rows, Choice(measure="requests"), Names(), NOON)
    assert [line.name for line in view.lines] == ["many", "few"]
    assert view.bars.unit == "requests"
    assert view.bars.series[0].values[-1] == 3


def test_too_many_to_tell_apart_are_one() -> None:
    rows = [row(f"k{number:03}", prompt_tokens=1000 - number) for number in range(LINES_MAX + 5)]
    view = lay_out(rows, Choice(by="key"), Names(keys={"k000": "<b>notes</b>"}), NOON)
    assert len(view.bars.series) == SERIES_MAX + 1
    assert view.bars.series[0].name == "<b>notes</b>"
    assert view.bars.series[-1].name == f"{LINES_MAX + 5 - SERIES_MAX} more"
    assert sum(one.values[-1] for one in view.bars.series) == sum(1003 - number for number in range(LINES_MAX + 5))
    assert (len(view.lines), view.left_out) == (LINES_MAX, 5)
    assert {line.colour for line in view.lines[SERIES_MAX:]} == {SERIES_MAX}
    seventh = lay_out(rows[: SERIES_MAX + 1], Choice(by="key"), Names(), NOON)
    assert seventh.bars.series[-1].name == "1 more"


def test_nothing_is_nothing() -> None:
    view = lay_out([], Choice(), Names(), NOON)
    assert (view.lines, view.days, view.bars.series) == ((), (), ())
    assert view.first_token_p99_seconds is None


def test_what_lies_outside_the_bars_is_still_counted() -> None:
    """A gateway whose clock is ahead: the sum says so, though there is no place for its bar."""
    view = lay_out([row("a", -3), row("a")], Choice(), Names(), NOON)
    assert view.sums.requests == 2
    assert sum(view.bars.series[0].values) == 10
