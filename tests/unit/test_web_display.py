"""Figures and times as people read them, and the pure half of the dashboard's security."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.roles.web import display
from covey.roles.web.security import comes_from_us, csrf_matches, csrf_token, local_path


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "a moment"), (1, "1 second"), (59.9, "59 seconds"), (60, "1 minute"), (7_300, "2 hours"), (90_000, "1 day")],
)
def test_span(seconds: float, text: str) -> None:
    assert display.span(seconds) == text


@pytest.mark.parametrize(
    ("at", "text"), [(None, "never"), (1_000, "just now"), (880, "2 minutes ago"), (8_300, "in 2 hours")]
)
def test_when(at: float | None, text: str) -> None:
    assert display.when(at, 1_000) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (9_999, "9\u202f999"),
        (12_345, "12.3\u202fk"),
        (4.56e6, "4.56\u202fM"),
        (7e9, "7\u202fG"),
    ],
)
def test_count(number: float, text: str) -> None:
    assert display.count(number) == text


@given(st.floats(min_value=0, max_value=1e18))
def test_count_is_short_and_never_in_scientific_notation(number: float) -> None:
    text = display.count(number)
    assert "e" not in text
    assert len(text) <= 10


@pytest.mark.parametrize(("number", "text"), [(0, "0"), (0.44, "0.4"), (37.2, "37"), (12_345, "12.3\u202fk")])
def test_rate(number: float, text: str) -> None:
    assert display.rate(number) == text


@pytest.mark.parametrize(("seconds", "text"), [(None, "–"), (0.0851, "85\u202fms"), (1.24, "1.2\u202fs")])
def test_latency(seconds: float | None, text: str) -> None:
    assert display.latency(seconds) == text


def test_query() -> None:
    assert display.query(next="/keys?a=1&b", name="é") == "next=%2Fkeys%3Fa%3D1%26b&name=%C3%A9"


def test_size_and_percent_and_stamp() -> None:
    assert display.size(180_000_000) == "180\u202fMB"
    assert display.size(2_300_000_000) == "2.3\u202fGB"
    assert display.percent(0.999) == "99\u202f%"
    assert display.percent(7) == "100\u202f%"
    assert display.stamp(0) == "1970-01-01T00:00:00Z"


@given(st.lists(st.integers(min_value=0, max_value=10**9), max_size=90))
def test_a_chart_shows_the_latest_and_stays_in_its_frame(values: list[int]) -> None:
    chart = display.chart(values)
    assert [bar.value for bar in chart.bars] == ([0] * 60 + values)[-60:]
    assert all(bar.x >= 0 and bar.x + bar.width <= chart.width for bar in chart.bars)
    assert all(bar.y >= 0 and bar.y + bar.height <= chart.height + 0.01 for bar in chart.bars)
    assert chart.peak == max(values[-60:], default=0)


@given(st.text())
def test_after_logging_in_one_stays_here(target: str) -> None:
    path = local_path(target)
    assert path.startswith("/")
    assert not path.startswith(("//", "/\\"))


@pytest.mark.parametrize("path", ["/", "/keys?everyone=1", "/chat?model=a%2Fb"])
def test_after_logging_in_one_goes_on(path: str) -> None:
    assert local_path(path) == path


@pytest.mark.parametrize(
    ("site", "origin", "ours"),
    [
        (None, None, True),
        ("same-origin", None, True),
        ("none", None, True),
        ("same-site", None, False),
        ("cross-site", "http://here:1", False),
        (None, "http://here:1", True),
        (None, "https://HERE:1", True),
        (None, "http://here:2", False),
        (None, "http://here:1.evil.example", False),
        (None, "http://evil.example/here:1", False),
        (None, "null", False),
        (None, "http://[", False),
        (None, "", False),
    ],
)
def test_whether_a_request_is_ours(site: str | None, origin: str | None, ours: bool) -> None:
    assert comes_from_us(site, origin, "here:1") is ours


@given(st.text(), st.text())
def test_a_token_fits_its_own_session_alone(binding: str, other: str) -> None:
    assert csrf_matches(binding, csrf_token(binding)) is bool(binding)
    assert not csrf_matches(binding, other)
    if binding != other:
        assert not csrf_matches(binding, csrf_token(other))
