"""The limit of open files: raised as far as needed and allowed, and said where it does not suffice."""

import resource

import pytest

from covey.http import descriptors
from covey.http.descriptors import RESERVED, allow_connections

INFINITE = resource.RLIM_INFINITY


class Limits:
    """Stands in for the kernel: the tests' own limits stay as they are."""

    RLIMIT_NOFILE = resource.RLIMIT_NOFILE
    RLIM_INFINITY = INFINITE

    def __init__(self, soft: int, hard: int) -> None:
        self.now = (soft, hard)

    def getrlimit(self, which: int) -> tuple[int, int]:
        assert which == self.RLIMIT_NOFILE
        return self.now

    def setrlimit(self, which: int, limits: tuple[int, int]) -> None:
        assert which == self.RLIMIT_NOFILE
        assert INFINITE in (self.now[1], limits[1]) or limits[0] <= self.now[1] == limits[1]
        self.now = limits


@pytest.mark.parametrize(
    ("soft", "hard", "fit", "raised_to"),
    [
        (1_024, 1_048_576, 10_000, 10_000 + RESERVED),
        (1_024, INFINITE, 10_000, 10_000 + RESERVED),
        (65_536, 65_536, 10_000, 65_536),
        (INFINITE, INFINITE, 10_000, INFINITE),
        (1_024, 4_096, 4_096 - RESERVED, 4_096),
        (256, 256, 128, 256),
    ],
)
def test_how_many_connections_fit(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, soft: int, hard: int, fit: int, raised_to: int
) -> None:
    limits = Limits(soft, hard)
    monkeypatch.setattr(descriptors, "resource", limits)
    assert allow_connections(10_000) == fit
    assert limits.now == (raised_to, hard)
    assert ("Only" in caplog.text) == (fit < 10_000)
