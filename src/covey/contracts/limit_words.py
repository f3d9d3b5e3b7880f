"""How much a limit may be, and how people read limits. Pure."""

from collections.abc import Mapping

from msgspec.structs import asdict

from covey.contracts.auth import KeyLimits, LimitName

LIMITS_MAX: Mapping[LimitName, int] = {
    "requests_per_minute": 1_000_000,
    "tokens_per_minute": 1_000_000_000,
    "concurrency": 10_000,
    "tokens_per_day": 1_000_000_000_000,
    "tokens_per_month": 30_000_000_000_000,
}
"""The most that each may be set to: more is a slip. The least is 1: whoever may use nothing is disabled instead."""

WORDS: Mapping[LimitName, str] = {
    "requests_per_minute": "requests a minute",
    "tokens_per_minute": "tokens a minute",
    "concurrency": "requests at once",
    "tokens_per_day": "tokens a day",
    "tokens_per_month": "tokens a month",
}
"""What people read after the number."""


def out_of_range(limits: Mapping[LimitName, int | None]) -> tuple[LimitName, str] | None:
    """The first limit that cannot be one, and what to say of it; `None` where all can."""
    for name, value in limits.items():
        if value is not None and not 1 <= value <= LIMITS_MAX[name]:
            return name, f"A limit is 1 to {LIMITS_MAX[name]} {WORDS[name]}, or none."
    return None


def limits_of(values: Mapping[LimitName, int | None]) -> KeyLimits:
    """Those limits; what is not among them is none."""
    return KeyLimits(**{str(name): value for name, value in values.items()})


def named(limits: KeyLimits) -> dict[LimitName, int | None]:
    """By name, those that are none too."""
    values = asdict(limits)
    return {name: values[name] for name in WORDS}


def told(limits: KeyLimits) -> list[str]:
    """The limits that there are: `["60 requests a minute", "2 requests at once"]`."""
    return [f"{value:,} {WORDS[name]}" for name, value in named(limits).items() if value is not None]
