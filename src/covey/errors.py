"""The one error that crosses a boundary, and its closed set of codes.

A handler raises `CallError`; the bus carries it, near or far, unchanged; HTTP turns it into a status and a body
(`covey.http.problems`), the command line into one line. Anything else that escapes a handler is a bug: it is logged
where it happened and reaches the caller as `internal`.
"""

from collections.abc import Iterator
from typing import Literal, cast, get_args

import msgspec

Code = Literal[
    "invalid",  # the request is malformed; `param` names the field
    "unsupported",  # well formed, but this model or back end cannot do it
    "unauthenticated",  # no credential, or one that does not verify: always the same answer
    "forbidden",  # the person is known and may not
    "denied",  # the calling role or peer may not call this method
    "not_found",
    "conflict",  # the name is taken, the thing is in another state
    "too_large",
    "rate_limited",  # `reason` says which limit
    "loading",  # the model is being fetched or loaded; `retry_after_seconds` is a fair guess
    "no_capacity",
    "draining",  # the node is stopping and takes no new work
    "deadline",
    "unreachable",  # no live peer serves the method
    "peer_lost",  # the peer went away in the middle of the call
    "upstream",  # a back end failed
    "storage",  # the disk or the store refused
    "protocol",  # the other side broke the wire protocol
    "internal",  # a bug, logged where it happened
]
CODES: tuple[Code, ...] = get_args(Code)


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """A `CallError` as it travels in a frame."""

    code: Code
    message: str
    reason: str = ""
    param: str = ""
    retry_after_seconds: float | None = None


class CallError(Exception):
    """A refusal or failure that may be shown to people as it stands.

    Args:
        code: what kind of failure, from the closed set.
        message: one line: what happened and what to do next. Never a secret, never a traceback.
        reason: a finer, machine-readable word within the code (`model_not_found`, `requests`).
        param: the offending field of the request, where there is one.
        retry_after_seconds: when a retry may succeed.
    """

    def __init__(
        self, code: Code, message: str, *, reason: str = "", param: str = "", retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(message)
        self.code: Code = code
        self.message = message
        self.reason = reason
        self.param = param
        self.retry_after_seconds = retry_after_seconds

    def __str__(self) -> str:
        return f"{self.message} [{self.code}]"

    @property
    def problem(self) -> Problem:
        """The same, for a frame."""
        return Problem(self.code, self.message, self.reason, self.param, self.retry_after_seconds)

    @classmethod
    def of(cls, problem: Problem) -> "CallError":
        """The error that a frame carried."""
        return cls(
            problem.code,
            problem.message,
            reason=problem.reason,
            param=problem.param,
            retry_after_seconds=problem.retry_after_seconds,
        )


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The exceptions that a group holds, its groups' ones too, in order; a plain exception is its own leaf."""
    if isinstance(error, BaseExceptionGroup):
        for inner in cast("BaseExceptionGroup[BaseException]", error).exceptions:
            yield from leaves(inner)
    else:
        yield error


def describe(error: BaseException) -> str:
    """An error in one line: of a group, its first leaf."""
    first = next(leaves(error))
    if isinstance(first, CallError):
        return first.message
    text = str(first).strip().splitlines()
    return f"{type(first).__name__}: {text[0]}" if text else type(first).__name__
