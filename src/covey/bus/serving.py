"""Running handlers, with one verdict near and far.

`Bus` runs them for callers in this process, `covey.bus.inbound` for peers; both through `run_unary` and `run_stream`.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, cast

import trio

from covey.bus.caller import Caller
from covey.bus.replies import Emit, too_slow
from covey.contracts.method import Req, Res, Streaming, Unary
from covey.errors import CallError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Served(Generic[Req, Res]):
    """A contract with its handler.

    `waits`: whether the handler is a coroutine function. One that never waits needs no deadline; its caller does not
    pay for one.
    """

    method: Unary[Req, Res] | Streaming[Req, Res]
    handler: Callable[..., Any]
    waits: bool = True


async def run_unary(served: Served[Req, Res], caller: Caller, request: Req, timeout_seconds: float) -> Res:
    """Run a handler to its response.

    Raises:
        CallError: the handler's own; `deadline`; `internal` for a bug, which is logged here, where it happened.
    """
    method = served.method
    try:
        if not served.waits:
            return _checked(served, served.handler(caller, request))
        with trio.move_on_after(max(0, timeout_seconds)):
            return _checked(served, await served.handler(caller, request))
    except CallError:
        raise
    except BaseException as error:
        if (verdict := _verdict(method.name, error)) is error:
            raise
        raise verdict from error
    raise too_slow(method.name, timeout_seconds)


def _checked(served: Served[Req, Res], response: Any) -> Res:
    if isinstance(response, served.method.response):
        return response
    raise TypeError(f"The handler of {served.method.name} returned {type(response).__name__}.")


async def run_stream(
    served: Served[Req, Res],
    caller: Caller,
    request: Req,
    emit: Emit[Res],
    timeout_seconds: float | None,
    scope: trio.CancelScope | None = None,
) -> None:
    """Run a streaming handler to its end; as `run_unary`.

    Args:
        served: whose handler.
        caller: as the handler sees it.
        request: the same.
        emit: the same.
        timeout_seconds: `None`: for as long as it takes.
        scope: to run it in, with that deadline, for who may cancel it: this returns then, as if it had ended. Another
            scope would cost as much as a call.
    """
    method = served.method
    seconds = float("inf") if timeout_seconds is None else max(timeout_seconds, 0)
    scope = scope or trio.CancelScope(deadline=trio.current_time() + seconds)
    try:
        with scope:
            await served.handler(caller, request, emit)
    except CallError:
        raise
    except BaseException as error:
        if (verdict := _verdict(method.name, error)) is error:
            raise
        raise verdict from error
    if scope.cancelled_caught and trio.current_time() >= scope.deadline:
        raise too_slow(method.name, seconds)


def not_served(method: str, where: str) -> CallError:
    """The `unreachable` for a node that does not serve the method."""
    return CallError("unreachable", f"{where} does not serve {method}.", reason="no_method")


def _verdict(method: str, error: BaseException) -> BaseException:
    """What a caller gets for what escaped a handler; `error` itself where it is none of ours (a cancellation)."""
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        cancelled = cast("BaseExceptionGroup[BaseException] | None", group.subgroup(trio.Cancelled))
        rest = group.split(trio.Cancelled)[1]
        leaves = list(_leaves(rest)) if rest else []
        if not leaves or not all(isinstance(leaf, Exception) for leaf in leaves):
            return group
        refusals = [leaf for leaf in leaves if isinstance(leaf, CallError)]
        if len(refusals) < len(leaves):
            log.error("The handler of %s failed.", method, exc_info=rest)
        if cancelled is not None:  # the caller has gone: nobody waits for a verdict, and the cancellation must go on
            return cancelled
        if len(refusals) == len(leaves):  # raised inside the handler's own nursery, which wrapped it
            return refusals[0]
    elif isinstance(error, Exception):
        log.error("The handler of %s failed.", method, exc_info=error)
    else:
        return error
    return CallError("internal", f"{method} failed; its node's log says why.")


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(cast("BaseExceptionGroup[BaseException]", error))
        else:
            yield error
