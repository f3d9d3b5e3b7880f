"""Reading a form, and showing it again with what was wrong."""

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, cast

from quart import Response, render_template, request
from werkzeug.datastructures import MultiDict

from covey.errors import CallError
from covey.http.problems import status_of

FIELD_CHARS_MAX = 2_000


@dataclass(frozen=True, slots=True)
class Form:
    """The fields of the form that was sent."""

    fields: MultiDict[str, str]

    def text(self, name: str) -> str:
        """A field without the spaces around it; "" where it is missing.

        Raises:
            CallError: `invalid`, longer than any field of ours.
        """
        return self.verbatim(name).strip()

    def verbatim(self, name: str) -> str:
        """A field exactly as typed, as passwords are."""
        value = self.fields.get(name, "")
        if len(value) > FIELD_CHARS_MAX:
            raise CallError("invalid", f"This is longer than {FIELD_CHARS_MAX} characters.", param=name)
        return value

    def shown(self, name: str) -> str:
        """A field as it goes back into a form that is shown again."""
        return self.fields.get(name, "")[:FIELD_CHARS_MAX].strip()

    def log_in_name(self, name: str = "name") -> str:
        """A log-in name; names have no capitals, keyboards of phones like to begin with one."""
        return self.text(name).lower()

    def number(self, name: str, *, lowest: int, highest: int) -> int | None:
        """A whole number, `None` where the field is empty.

        Raises:
            CallError: `invalid`, not a number or out of range.
        """
        text = self.text(name)
        if not text:
            return None
        if not (text.isascii() and text.isdigit() and len(text) <= 15 and lowest <= int(text) <= highest):
            raise CallError("invalid", f"Give a whole number from {lowest} to {highest}, or nothing.", param=name)
        return int(text)

    def several(self, name: str) -> tuple[str, ...]:
        """The values of the ticked boxes of that name."""
        return tuple(self.fields.getlist(name))


async def read_form() -> Form:
    """The form of the current request; its size was limited before."""
    # Quart leaves out what its form is a dictionary of.
    return Form(await cast("Awaitable[MultiDict[str, str]]", cast(Any, request).form))


async def form_page(template: str, problem: CallError | None = None, **context: object) -> Response:
    """Render a page with forms.

    Args:
        template: its file.
        problem: what was wrong with the form, shown beside the field that its `param` names, else above the form.
        context: the template's variables.
    """
    status = 200
    if problem is not None:
        # 422 is what htmx swaps in; it leaves other failures to a full page.
        status = 422 if problem.code in ("invalid", "conflict", "not_found", "forbidden") else status_of(problem)
    response = Response(await render_template(template, problem=problem, **context), status)
    if problem is not None and problem.retry_after_seconds is not None:
        response.headers["Retry-After"] = str(max(round(problem.retry_after_seconds), 1))
    return response
