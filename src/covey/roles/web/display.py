"""Figures and times as people read them. Pure; the filters of the templates."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlencode

from covey.contracts.auth import KeyLimits
from covey.contracts.limit_words import told

_UNITS = ((86_400.0, "day"), (3_600.0, "hour"), (60.0, "minute"), (1.0, "second"))
_MAGNITUDES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def span(seconds: float) -> str:
    """A length of time in its largest unit: `3 hours`."""
    for size, unit in _UNITS:
        if seconds >= size:
            number = int(seconds // size)
            return f"{number} {unit}{'' if number == 1 else 's'}"
    return "a moment"


def when(at: float | None, now: float) -> str:
    """A moment relative to now: `5 minutes ago`, `in 2 days`, `never`. Both in Unix seconds."""
    if at is None:
        return "never"
    if abs(at - now) < 5:
        return "just now"
    return f"in {span(at - now)}" if at > now else f"{span(now - at)} ago"


def stamp(at: float) -> str:
    """A moment for machines and for a title: ISO 8601 in UTC, to the second."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def count(number: float) -> str:
    """A count in at most four digits: `999`, `12.3 k`, `4.56 M`."""
    if number < 10_000:
        return f"{number:,.0f}".replace(",", "\u202f")
    size, unit = next(each for each in _MAGNITUDES if number >= each[0])
    return f"{number / size:.3g}\u202f{unit}" if number < size * 1000 else f"{number / size:.0f}\u202f{unit}"


def rate(number: float) -> str:
    """A rate: `0`, `0.4`, `37`."""
    return "0" if number == 0 else f"{number:.1f}" if number < 10 else count(number)


def latency(seconds: float | None) -> str:
    """A short time: `–`, `85 ms`, `1.2 s`."""
    if seconds is None:
        return "–"
    return f"{seconds * 1000:.0f}\u202fms" if seconds < 1 else f"{seconds:.1f}\u202fs"


def size(number: int) -> str:
    """Bytes: `512 MB`, `1.5 GB`."""
    if number < 1_000_000_000:
        return f"{number / 1e6:.0f}\u202fMB"
    return f"{number / 1e9:.1f}\u202fGB"


def limits(held: KeyLimits) -> str:
    """The limits that there are: `60 requests a minute · 2 requests at once`; "" where there are none."""
    return " · ".join(told(held))


def percent(share: float) -> str:
    """A share of 1: `42 %`. Never `100 %` before it is whole."""
    return f"{int(min(max(share, 0.0), 1.0) * 100)}\u202f%"


def query(**values: str) -> str:
    """A query string."""
    return urlencode(values)


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of a chart, in the units of its `viewBox`."""

    x: float
    y: float
    width: float
    height: float
    value: int


@dataclass(frozen=True, slots=True)
class Chart:
    """Bars for an SVG of `width` by `height`, oldest first; `peak` is the largest value."""

    width: int
    height: int
    bars: tuple[Bar, ...]
    peak: int
    total: int


def chart(values: Sequence[int], *, periods: int = 60, width: int = 600, height: int = 96) -> Chart:
    """Lay out the last `periods` values; what is missing before them is nothing."""
    latest = [0] * max(periods - len(values), 0) + list(values[-periods:])
    peak = max(latest, default=0)
    step = width / periods
    bars: list[Bar] = []
    for position, value in enumerate(latest):
        tall = 0.0 if peak == 0 else height * value / peak
        tall = max(tall, 2.0) if value else 1.0  # a little is still to be seen, and nothing is a base line
        bars.append(
            Bar(
                round(position * step + step * 0.14, 2),
                round(height - tall, 2),
                round(step * 0.72, 2),
                round(tall, 2),
                value,
            )
        )
    return Chart(width, height, tuple(bars), peak, sum(latest))


FILTERS: Mapping[str, Callable[..., str]] = {
    "span": span,
    "when": when,
    "stamp": stamp,
    "count": count,
    "rate": rate,
    "latency": latency,
    "size": size,
    "percent": percent,
    "limits": limits,
}
