"""What the page of usage shows: a choice, a table, and bars of days. Pure: rows, names and the time are arguments."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec
from msgspec.structs import replace

from covey.contracts.usage import Dimension, UsageRow, UsageSums
from covey.contracts.usage_sums import DAY_SECONDS, add, day_of, merge, quantile, total
from covey.contracts.usage_table import Names, mean
from covey.roles.web.display import query

RANGES: Mapping[int, str] = {7: "7 days", 30: "30 days", 90: "90 days"}
KINDS: Mapping[Dimension, str] = {"model": "Model", "key": "Key", "user": "Person", "node": "Machine"}
MEASURES: Mapping[str, str] = {"tokens": "Tokens", "requests": "Requests"}
SERIES_MAX = 6
"""How many colours there are to tell apart; what is less than these is one more, the rest."""
LINES_MAX = 200


class Choice(msgspec.Struct, frozen=True):
    """What the visitor wants to see. `mine`: an administrator their own alone."""

    days: int = 7
    by: Dimension = "model"
    measure: str = "tokens"
    mine: bool = False

    def link(self, **changes: object) -> str:
        """The address of the same page with something changed."""
        wanted = replace(self, **changes)
        fields = {"days": str(wanted.days), "by": wanted.by, "measure": wanted.measure}
        return f"/usage?{query(**fields, **({'mine': '1'} if wanted.mine else {}))}"

    def export(self, what: str) -> str:
        """Where the same time is to be had as a file."""
        return f"/usage/{what}?{query(days=str(self.days), **({'mine': '1'} if self.mine else {}))}"

    def period(self, now: float) -> tuple[float, float]:
        """From the begin of the first day to the end of today, UTC, in Unix seconds."""
        tomorrow = (int(now) // DAY_SECONDS + 1) * DAY_SECONDS
        return float(tomorrow - self.days * DAY_SECONDS), float(tomorrow)


def choose(arguments: Mapping[str, str]) -> Choice:
    """The choice that an address stands for; what it does not know is left at its default."""
    days, by, measure = arguments.get("days"), arguments.get("by"), arguments.get("measure")
    choice = Choice(mine=arguments.get("mine") == "1")
    return replace(
        choice,
        days=next((one for one in RANGES if str(one) == days), choice.days),
        by=by if by in KINDS else choice.by,
        measure=measure if measure in MEASURES else choice.measure,
    )


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table. `colour`: that of its bars, `SERIES_MAX` for the rest of them."""

    name: str
    sums: UsageSums
    colour: int

    @property
    def mean_seconds(self) -> float | None:
        """From the request to the end of the answer."""
        return mean(self.sums.seconds, self.sums.requests)

    @property
    def first_token_seconds(self) -> float | None:
        """To the first token."""
        return mean(self.sums.first_token_seconds, self.sums.first_tokens)


class Series(msgspec.Struct, frozen=True):
    """The bars of one colour: a value for each day."""

    name: str
    values: tuple[int, ...]
    colour: int


class Bars(msgspec.Struct, frozen=True):
    """What the script draws: days as `Nov 25`."""

    days: tuple[str, ...]
    unit: str
    series: tuple[Series, ...]


@dataclass(frozen=True, slots=True)
class UsageView:
    """The page: its sum, its lines with the most used first, its days with the latest first, and the bars of these."""

    sums: UsageSums
    lines: tuple[Line, ...]
    days: tuple[tuple[str, UsageSums], ...]
    bars: Bars
    left_out: int = 0

    @property
    def first_token_p99_seconds(self) -> float | None:
        """What 99 of 100 first tokens took at most."""
        return quantile(self.sums.first_token_histogram, 0.99)

    @property
    def seconds_p99(self) -> float | None:
        """What 99 of 100 answers took at most."""
        return quantile(self.sums.seconds_histogram, 0.99)

    @property
    def bars_json(self) -> str:
        """For an attribute of the page."""
        return msgspec.json.encode(self.bars).decode()


def measured(sums: UsageSums, measure: str) -> int:
    """How much it is."""
    return sums.requests if measure == "requests" else sums.prompt_tokens + sums.completion_tokens


def lay_out(rows: Iterable[UsageRow], choice: Choice, names: Names, now: float) -> UsageView:
    """Make the page of rows that are grouped by day and by what was chosen."""
    rows = tuple(rows)
    since, until = choice.period(now)
    starts = range(int(since), int(until), DAY_SECONDS)
    groups = merge([[UsageRow(row.group[1:], row.sums) for row in rows]], groups_max=max(len(rows), 1))
    groups = tuple(sorted(groups, key=lambda row: (-measured(row.sums, choice.measure), row.group)))
    colours = {row.group[0]: min(place, SERIES_MAX) for place, row in enumerate(groups)}
    by_day: dict[str, UsageSums] = {day_of(start): UsageSums() for start in starts}
    values: dict[int, dict[str, int]] = {}
    for row in rows:
        day, group = row.group
        by_day[day] = add(by_day.get(day, UsageSums()), row.sums)
        of_colour = values.setdefault(colours[group], {})
        of_colour[day] = of_colour.get(day, 0) + measured(row.sums, choice.measure)
    title = {min(place, SERIES_MAX): names.of(choice.by, row.group[0]) for place, row in enumerate(groups)}
    if len(groups) > SERIES_MAX:
        title[SERIES_MAX] = f"{len(groups) - SERIES_MAX} more"
    series = tuple(
        Series(title[colour], tuple(values[colour].get(day_of(start), 0) for start in starts), colour)
        for colour in sorted(values)
    )
    lines = tuple(
        Line(names.of(choice.by, row.group[0]), row.sums, colours[row.group[0]]) for row in groups[:LINES_MAX]
    )
    return UsageView(
        sums=total(groups),
        lines=lines,
        days=tuple((day, sums) for day, sums in sorted(by_day.items(), reverse=True) if sums.requests),
        bars=Bars(tuple(_short(start) for start in starts), MEASURES[choice.measure].lower(), series),
        left_out=len(groups) - len(lines),
    )


def _short(start: int) -> str:
    at = datetime.fromtimestamp(start, UTC)
    return f"{at:%b} {at.day}"
