"""An answer on its way to the chat page: lines of JSON as the model speaks.

Each line is one object with one member: `text` (a piece of the answer, with `tokens`, how many), `done` (why it ended,
and the usage), `loading` (the model is being made ready; ask again) or `error`. Empty lines keep the connection alive.
"""

from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Self

import msgspec
import trio
from quart.wrappers.response import ResponseBody

from covey.bus.bus import BusHandle
from covey.bus.replies import Replies
from covey.contracts.gateway import COMPLETE, LIST_MODELS, Completion, ListModels
from covey.contracts.inference import ChatDelta, Finish, Usage
from covey.errors import CallError

PING_SECONDS = 15.0
"""Proxies like to cut what is silent for a minute; a long prompt takes longer on a small machine."""
RETRY_SECONDS = 2.0


class Piece(msgspec.Struct, frozen=True):
    """A piece of the answer."""

    text: str
    tokens: int


class Done(msgspec.Struct, frozen=True):
    """How it ended."""

    finish: Finish
    usage: Usage | None


class Ended(msgspec.Struct, frozen=True):
    """The last line of a whole answer."""

    done: Done


class Loading(msgspec.Struct, frozen=True):
    """The model is not ready. `progress` 0 to 1, where it is known."""

    message: str
    progress: float | None
    retry_after_seconds: float


class NotYet(msgspec.Struct, frozen=True):
    """The only line, while the model is being made ready."""

    loading: Loading


class Trouble(msgspec.Struct, frozen=True):
    """What failed, in the words of a `CallError`."""

    message: str
    code: str
    retry_after_seconds: float | None


class Failed(msgspec.Struct, frozen=True):
    """The last line of an answer that is not whole."""

    error: Trouble


class CompletionBody(ResponseBody):
    """The body of the response: the bus's stream is open exactly as long as the body is being sent.

    Not a generator: one that is left at a `yield` closes when it is collected, and the engine would run until then.
    Quart leaves this body, and so the stream, in the moment in which the browser goes away.

    Args:
        bus: where the gateway is asked.
        completion: what it is asked.
    """

    def __init__(self, bus: BusHandle, completion: Completion) -> None:
        self._bus = bus
        self._completion = completion
        self._stream: AbstractAsyncContextManager[Replies[ChatDelta]] | None = None
        self._replies: Replies[ChatDelta] | None = None
        self._heard_at = 0.0
        self._refusal: CallError | None = None
        self._ended = False

    async def __aenter__(self) -> Self:
        stream = self._bus.stream(COMPLETE, self._completion)
        try:
            self._replies = await stream.__aenter__()
        except CallError as error:
            self._refusal = error  # the status is sent already: the failure becomes a line
        else:
            self._stream = stream
        self._heard_at = trio.current_time()
        return self

    # It may swallow, as the stream's own exit may: `async with` heeds that, though Quart's signature forgot it.
    async def __aexit__(  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        if self._stream is None:
            return None
        return await self._stream.__aexit__(kind, error, traceback)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._ended:
            raise StopAsyncIteration
        try:
            if self._replies is None:
                raise self._refusal or CallError("internal", "The stream was not opened.")
            return await self._next_lines(self._replies)
        except CallError as error:
            self._ended = True
            return line(await self._explain(error))

    async def _next_lines(self, replies: Replies[ChatDelta]) -> bytes:
        # `batch` begins to wait anew after every ping, so the contract's patience is measured here.
        if trio.current_time() - self._heard_at >= COMPLETE.idle_seconds:
            raise CallError("deadline", f"The model said nothing for {COMPLETE.idle_seconds:g} s.")
        with trio.move_on_after(PING_SECONDS):
            deltas = await replies.batch()
            self._heard_at = trio.current_time()
            if not deltas:
                raise CallError("upstream", "The answer broke off before its end.")
            return self._lines(deltas)
        return b"\n"

    def _lines(self, deltas: list[ChatDelta]) -> bytes:
        text = "".join(delta.text for delta in deltas)
        lines = line(Piece(text, sum(delta.tokens for delta in deltas))) if text else b""
        for delta in deltas:
            if delta.finish is not None:
                self._ended = True
                lines += line(Ended(Done(delta.finish, delta.usage)))
        return lines or b"\n"

    async def _explain(self, error: CallError) -> msgspec.Struct:
        if error.code != "loading":
            return Failed(Trouble(error.message, error.code, error.retry_after_seconds))
        seconds = error.retry_after_seconds or RETRY_SECONDS
        return NotYet(Loading(error.message, await self._progress(), min(max(seconds, 0.5), 15.0)))

    async def _progress(self) -> float | None:
        wanted = self._completion.chat.model
        try:
            listed = await self._bus.call(LIST_MODELS, ListModels(self._completion.actor), timeout_seconds=2)
        except CallError:
            return None  # it is only for a kinder message
        return next((model.progress for model in listed.models if model.name == wanted), None)


def line(value: msgspec.Struct) -> bytes:
    """One line of the answer."""
    return msgspec.json.encode(value) + b"\n"
