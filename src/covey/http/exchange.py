"""One request of a connection, as its application sees it: the body in pieces, the answer, the client's leaving."""

import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import trio

from covey.errors import leaves
from covey.http.asgi import ON_GONE, RECEIVED, ASGIApp, ClientGone, Message, Scope


class Answering(Protocol):
    """The part of a connection, or of one stream of it, that answers go through."""

    def hold(self) -> None:
        """Keep what is sent from now on, for one write with what follows."""
        ...

    async def flush(self) -> None:
        """Write what was kept, and keep no more."""
        ...


log = logging.getLogger(__name__)

QUEUED_PIECES_MAX = 10
"""How many pieces of a body, as large as a connection reads them, wait for the application."""
MERGED_BYTES_MAX = 64 * 1024
"""Up to which size a piece that waits is joined with the next."""
UNREAD_BYTES_MAX = 256 * 1024
UNREAD_SECONDS_MAX = 0.25
"""How much of an unread body is read before an early answer, so that the connection can be kept."""


class Exchange:
    """One request between its connection (`put`, and the `send` that is given) and the application.

    Args:
        scope: the request's.
        send: where ASGI's messages go, and `None` at the end.
        connection: what they are written by.
        consumed: where several requests share a connection: is told how much of the body the application has taken.
            What is still to come does not hold up an answer then.
    """

    def __init__(
        self,
        scope: Scope,
        send: Callable[[Any], Awaitable[None]],
        connection: Answering,
        consumed: Callable[[int], None] | None = None,
    ) -> None:
        self._scope = scope
        self._connection = connection
        self._send = send
        self._pieces: deque[Message] = deque()
        self._put_all = False  # no more of the body comes, or its client has gone
        self._changed = trio.lowlevel.ParkingLot()
        self._is_awaited = False  # whether somebody may be parked there: cheaper to ask
        self._length = next((value for name, value in scope["headers"] if name == b"content-length"), None)
        self._consumed = consumed
        self._unread = consumed is None and (
            self._length not in (None, b"0") or any(name == b"transfer-encoding" for name, _ in scope["headers"])
        )
        self._receiving = 0
        self._complete = False  # the body's end has come; `put` needs not know
        self._over = False  # the last message was sent
        self._gone = False
        self._call_when_gone: Callable[[], None] | None = None
        extensions = scope.setdefault("extensions", {})
        extensions[ON_GONE], extensions[RECEIVED] = self._on_gone, self._received

    async def run(self, app: ASGIApp) -> None:
        """Run the application to its end; its failure is logged here."""
        try:
            await app(self._scope, self.receive, self.send)
        except Exception as error:
            if not all(isinstance(leaf, ClientGone) for leaf in leaves(error)):
                log.exception("The application failed at %s.", self._scope["path"])
        finally:
            await self._send(None)

    async def put(self, message: Message) -> None:
        """A piece of the body has come, or the client has gone; waits while the application has enough to read."""
        if message["type"] == "http.disconnect":
            self._gone = not self._over
            if self._gone and self._call_when_gone is not None:
                self._call_when_gone()
            self._put_all = True  # never waits behind a body that nobody reads
            self._wake()
            return
        while len(self._pieces) >= QUEUED_PIECES_MAX and not self._put_all:
            await self._wait()
        if not self._put_all:
            self._pieces.append(message)
            self._wake()

    def put_at_once(self, body: bytes, *, more_body: bool) -> None:
        """A piece of the body has come; the windows of its connection bound how much of it waits."""
        if self._put_all:
            return
        last = self._pieces[-1] if self._pieces else None
        if last is not None and len(last["body"]) < MERGED_BYTES_MAX:
            # A byte at a time costs a byte each, and no message.
            last["body"], last["more_body"] = last["body"] + body, more_body
        else:
            self._pieces.append({"type": "http.request", "body": body, "more_body": more_body})
        self._complete = not more_body
        self._wake()

    @property
    def expects_more(self) -> bool:
        """Whether the body's end has not come yet, told to `put_at_once`."""
        return not self._complete

    async def receive(self) -> Message:
        """ASGI's `receive`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self._receiving += 1
        try:
            while not self._pieces and not self._put_all:
                await self._wait()
        finally:
            self._receiving -= 1
        return self._received() or {"type": "http.disconnect"}

    def _received(self) -> Message | None:
        if not self._pieces:
            return None
        message = self._pieces.popleft()
        self._wake()
        if self._consumed is not None:
            self._consumed(len(message["body"]))
        if not message.get("more_body", False):
            self._unread = False
        return message

    async def _wait(self) -> None:
        self._is_awaited = True
        await self._changed.park()

    def _wake(self) -> None:
        if self._is_awaited:
            self._is_awaited = False
            self._changed.unpark_all()

    async def send(self, message: Message) -> None:
        """ASGI's `send`; raises `ClientGone` once nobody listens."""
        if self._gone:
            await trio.lowlevel.checkpoint()
            raise ClientGone
        if message["type"] == "http.response.start":
            if self._unread and not self._receiving:
                message = await self._before_early_answer(message)
            self._connection.hold()  # until there is something to it, as ASGI has it
            await self._send(message)
            return
        if not message.get("more_body", False):
            self._over = True
            self._connection.hold()
        await self._send(message)
        await self._connection.flush()

    def _on_gone(self, call: Callable[[], None]) -> None:
        self._call_when_gone = call
        if self._gone:
            call()

    async def _before_early_answer(self, message: Message) -> Message:
        left = UNREAD_BYTES_MAX
        if self._length is None or int(self._length) <= left:
            with trio.move_on_after(UNREAD_SECONDS_MAX):
                while self._unread and left > 0:
                    piece = await self.receive()
                    if piece["type"] == "http.disconnect":
                        break
                    left -= len(piece["body"])
        if not self._unread:
            return message
        return {**message, "headers": [*message["headers"], (b"connection", b"close")]}
