"""The calls that this side of a session makes: what each still waits for, and what its peer answers."""

from collections.abc import Callable
from typing import Any, Generic, Protocol

import msgspec
import trio

from covey.bus.credit import Window
from covey.bus.replies import Replies
from covey.contracts.method import Res, Streaming, Unary
from covey.errors import CallError


class OutboundCall(Protocol):
    """A call under way. The session's reader tells it what arrives; nothing here waits."""

    def data(self, payload: bytes) -> None:
        """A DATA frame; `ProtocolError` where the peer had no credit for it."""
        ...

    def end(self, payload: bytes) -> None:
        """The END frame: the last word."""
        ...

    def fail(self, error: CallError) -> None:
        """An ERROR frame, or the end of the session: the last word."""
        ...


class UnaryCall(Generic[Res]):
    """Waits for one response."""

    def __init__(self, method: Unary[Any, Res]) -> None:
        self._method = method
        self._lot = trio.lowlevel.ParkingLot()
        self._failure: CallError | None = None
        self._response: Res | None = None

    async def response(self) -> Res:
        """The response, once it is there; raises the call's failure."""
        while self._response is None:
            if self._failure is not None:
                raise self._failure
            await self._lot.park()
        return self._response

    def data(self, payload: bytes) -> None:
        """Nothing that a unary call knows: the peer serves something else under this name."""
        self.fail(CallError("protocol", f"The peer answers {self._method.name} with a stream: upgrade the older node."))

    def end(self, payload: bytes) -> None:
        """The response."""
        try:
            self._response = msgspec.msgpack.decode(payload, type=self._method.response)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            self._failure = misunderstood(self._method.name, error)
        self._lot.unpark_all()

    def fail(self, error: CallError) -> None:
        """No response."""
        if self._response is None and self._failure is None:
            self._failure = error
            self._lot.unpark_all()


class StreamCall(Generic[Res]):
    """Hands replies to a reader, and says when the peer may send more.

    Args:
        method: what is called.
        timeout_seconds: for the whole stream.
        acknowledge: told how many replies were taken, whenever the peer should know.
    """

    def __init__(
        self, method: Streaming[Any, Res], timeout_seconds: float | None, acknowledge: Callable[[int], None]
    ) -> None:
        self._method = method
        self._acknowledge = acknowledge
        self._window = Window()
        self.replies = Replies(method, timeout_seconds, self._took)
        self.ended = trio.Event()
        """The peer's handler is over."""
        self._left = False

    def data(self, payload: bytes) -> None:
        """One reply."""
        if self._left or self.replies.failure is not None:
            return  # it was under way when this side lost interest
        self._window.arrived(len(payload))
        try:
            item = msgspec.msgpack.decode(payload, type=self._method.response)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            self.replies.end(misunderstood(self._method.name, error))
        else:
            self.replies.put(item)

    def end(self, payload: bytes) -> None:
        """No more replies."""
        wrong = CallError("protocol", f"The peer answers {self._method.name} at once: upgrade the older node.")
        self.replies.end(wrong if payload and not self._left else None)
        self.ended.set()

    def fail(self, error: CallError) -> None:
        """No more replies, and this is why."""
        self.replies.end(error)
        self.ended.set()

    def leave(self) -> None:
        """The reader is gone."""
        self._left = True
        self.replies.leave()

    def _took(self, count: int) -> None:
        if grant := self._window.took(count):
            self._acknowledge(grant)


def misunderstood(method: str, error: Exception) -> CallError:
    """The `protocol` of a reply that is not what its contract says."""
    return CallError("protocol", f"The peer's answer to {method} is not understood: {error}. Upgrade the older node.")
