"""The options that say limits, for keys and for people, and how listings show them."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from covey.contracts.auth import KeyLimits, LimitName

F = TypeVar("F", bound=Callable[..., Any])

NONE = "none"
_PERIODS: "dict[str, LimitName]" = {"day": "tokens_per_day", "month": "tokens_per_month"}


def count(text: str) -> int:
    """A type for options: a whole number from 1."""
    if not (text.isascii() and text.isdigit() and len(text) <= 18 and int(text) > 0):
        raise click.BadParameter(f"{text!r} is not a whole number from 1.")
    return int(text)


def count_or_none(text: str) -> int:
    """The same, or `none`, which becomes 0."""
    if text != NONE and not text.isdigit():
        raise click.BadParameter(f"{text!r} is neither a whole number from 1 nor {NONE}.")
    return 0 if text == NONE else count(text)


def budget(text: str) -> "tuple[LimitName, int]":
    """A type for options: `N/day` or `N/month`, to the limit's name and its number."""
    return _budget(text, count)


def budget_or_none(text: str) -> "tuple[LimitName, int]":
    """The same, or `none/day` and `none/month`, of which the number is 0."""
    return _budget(text, count_or_none)


def _budget(text: str, number_of: Callable[[str], int]) -> "tuple[LimitName, int]":
    number, _, period = text.partition("/")
    if period not in _PERIODS:
        raise click.BadParameter(f"{text!r} is not a budget: write 100000/day or 2000000/month.")
    return _PERIODS[period], number_of(number)


def limit_options(*, removable: bool) -> Callable[[F], F]:
    """`--requests-per-minute`, `--tokens-per-minute`, `--concurrency` and `--budget-tokens` of a command.

    Args:
        removable: `none` takes a limit away; without it, one that is left out is none.
    """
    number, tokens = (count_or_none, budget_or_none) if removable else (count, budget)
    left_out = "unchanged" if removable else "no limit"
    options = [
        click.option("--requests-per-minute", type=number, metavar="N", help=f"[{left_out}]"),
        click.option("--tokens-per-minute", type=number, metavar="N", help=f"Of prompts and answers. [{left_out}]"),
        click.option("--concurrency", type=number, metavar="N", help=f"Requests at once. [{left_out}]"),
        click.option(
            "--budget-tokens",
            "budgets",
            type=tokens,
            multiple=True,
            metavar="N/day|N/month",
            help=f"Tokens in a day or a month of UTC; give it once for each. [{left_out}]",
        ),
    ]

    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def chosen_limits(
    requests_per_minute: int | None,
    tokens_per_minute: int | None,
    concurrency: int | None,
    budgets: "Sequence[tuple[LimitName, int]]",
) -> "dict[LimitName, int | None]":
    """The limits that were given, by name; `None` for those to take away.

    Raises:
        click.UsageError: two budgets for one period.
    """
    given: dict[LimitName, int | None] = {
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "concurrency": concurrency,
    }
    if len({name for name, _ in budgets}) < len(budgets):
        raise click.UsageError("Give one budget for a day and one for a month, not two for the same.")
    given.update(budgets)
    chosen: dict[LimitName, int | None] = {name: value or None for name, value in given.items() if value is not None}
    return chosen


def limits_told(limits: "KeyLimits") -> list[str]:
    """The limits that there are, short enough for a column: `["60/min", "10,000 tokens/day"]`."""
    words: dict[LimitName, str] = {
        "requests_per_minute": "/min",
        "tokens_per_minute": " tokens/min",
        "concurrency": " at once",
        "tokens_per_day": " tokens/day",
        "tokens_per_month": " tokens/month",
    }
    values: list[tuple[int | None, str]] = [(getattr(limits, name), word) for name, word in words.items()]
    return [f"{value:,}{word}" for value, word in values if value is not None]
