"""Limits in forms: which fields there are, and what was typed into them. Pure."""

import re
from dataclasses import dataclass

from covey.contracts.auth import KeyLimits, LimitName
from covey.contracts.limit_words import LIMITS_MAX, limits_of, named
from covey.errors import CallError
from covey.roles.web.forms import Form

LABELS: dict[LimitName, str] = {
    "requests_per_minute": "Requests a minute",
    "concurrency": "Requests at once",
    "tokens_per_minute": "Tokens a minute",
    "tokens_per_day": "Tokens a day",
    "tokens_per_month": "Tokens a month",
}
"""What a form calls each limit, in its order."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a form of limits. `value`: what it shows; "" for no limit. `was`: what holds now."""

    name: LimitName
    label: str
    value: str
    was: str
    highest: int


def fields(limits: KeyLimits, form: Form | None = None) -> tuple[Field, ...]:
    """What a form of limits shows: what was typed, else the limits that hold now."""
    now = {name: str(value or "") for name, value in named(limits).items()}
    return tuple(
        Field(name, label, now[name] if form is None else form.shown(name), now[name], LIMITS_MAX[name])
        for name, label in LABELS.items()
    )


def typed(form: Form) -> KeyLimits:
    """What was typed; an empty field is no limit.

    Raises:
        CallError: `invalid`, with the field.
    """
    return limits_of({name: form.number(name, lowest=1, highest=LIMITS_MAX[name]) for name in LABELS})


def changes(form: Form) -> dict[LimitName, int | None]:
    """What a form changes of the limits that it was shown with (its fields `was_...`): one that it leaves alone, and
    that somebody else has changed meanwhile, stays as that one left it.

    Raises:
        CallError: as `typed`.
    """
    wanted = named(typed(form))
    return {name: value for name, value in wanted.items() if form.shown(f"was_{name}") != str(value or "")}


def typed_labels(form: Form, name: str) -> tuple[str, ...]:
    """Labels as people type them: with spaces or commas between. Whether they are labels is the auth role's to say."""
    return tuple(dict.fromkeys(word for word in re.split(r"[\s,]+", form.text(name).lower()) if word))


def is_about_limits(problem: CallError | None) -> bool:
    """Whether it is a limit that was wrong."""
    return problem is not None and problem.param in LABELS
