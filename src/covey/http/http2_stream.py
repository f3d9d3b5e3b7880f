"""One request of an HTTP/2 connection: its scope, and its answer within the client's windows.

Source: RFC 9113, 8 (HTTP semantics), 5.2 (flow control).
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING
from urllib.parse import unquote

import trio
from h2.errors import ErrorCodes

from covey.http.asgi import ClientGone, Headers, Message, Scope
from covey.http.exchange import Exchange
from covey.http.parser import HEADER_BYTES_MAX, HEADERS_MAX, TARGET_BYTES_MAX
from covey.http.writing import WRITE_BYTES

if TYPE_CHECKING:
    from covey.http.http2 import Http2Connection

Address = tuple[str, int]
HOP_BY_HOP = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"})
"""What an application may say of an HTTP/1.1 connection, and HTTP/2 does not carry (RFC 9113, 8.2.2)."""
BODILESS = frozenset({204, 304})


class Stream:
    """A request and its answer. `gone` ends it from without."""

    def __init__(self, number: int, scope: Scope, connection: "Http2Connection") -> None:
        self.number = number
        self.unread_bytes = 0  # of what the client's window has not been given back for
        self.is_over = False  # nothing more is sent
        self._connection = connection
        self._is_begun = False
        self._is_bodiless = scope["method"] == "HEAD"
        self.exchange = Exchange(scope, self.send, connection, consumed=self._consumed)

    async def send(self, message: Message | None) -> None:
        """What the exchange sends on; `None` where the application has returned.

        Raises:
            ClientGone: nobody takes it, or not in time.
        """
        if message is None:
            await self._finish()
        elif self.is_over:
            raise ClientGone
        elif message["type"] == "http.response.start":
            self._is_begun = True
            self._is_bodiless = self._is_bodiless or message["status"] in BODILESS
            self._connection.send_head(self.number, message["status"], _answer_headers(message.get("headers", ())))
        elif message["type"] == "http.response.body":
            data: bytes = b"" if self._is_bodiless else message.get("body", b"")
            await self._send_body(data, is_last=not message.get("more_body", False))
        else:
            raise RuntimeError(f"an application sent {message['type']}")

    async def gone(self) -> None:
        """The client takes nothing more of it."""
        self.is_over = True
        await self.exchange.put({"type": "http.disconnect"})

    def received(self, data: bytes) -> None:
        """A piece of the body."""
        self.unread_bytes += len(data)
        self.exchange.put_at_once(data, more_body=True)

    def _consumed(self, count: int) -> None:
        self.unread_bytes -= count
        self._connection.give_window(self.number, count)

    async def _send_body(self, data: bytes, *, is_last: bool) -> None:
        left, deadline_at = memoryview(data), len(data)
        with trio.CancelScope() as waiting:
            while left:
                if len(left) <= deadline_at:  # each deadline is for so much, as in HTTP/1.1
                    waiting.deadline = trio.current_time() + self._connection.write_seconds_max
                    deadline_at = len(left) - WRITE_BYTES
                room = await self._connection.window(self.number)
                if self.is_over:
                    raise ClientGone
                ends = is_last and room >= len(left)
                self._connection.send_data(self.number, bytes(left[:room]), end=ends)
                left = left[room:]
                if left:
                    await self._connection.flush()
        if waiting.cancelled_caught:  # a client that gives no window is one that does not read
            await self._connection.reset(self, ErrorCodes.CANCEL)
            raise ClientGone
        if is_last:
            if not data:
                self._connection.send_data(self.number, b"", end=True)
            await self._ended()

    async def _ended(self) -> None:
        # What is written now cannot be cancelled, and only then is the application told that it is over: a framework
        # may cancel its request's tasks at that word.
        self.is_over = True
        await self._connection.flush()
        await self._connection.answered(self)
        await self.exchange.put({"type": "http.disconnect"})

    async def _finish(self) -> None:
        if self.is_over:
            return
        if self._is_begun:
            await self._connection.reset(self, ErrorCodes.INTERNAL_ERROR)
            return
        self._connection.send_head(self.number, 500, [(b"content-length", b"0")], end=True)
        await self._ended()


def request_scope(headers: Iterable[tuple[bytes, bytes]], client: Address, server: Address) -> Scope | None:
    """A request's headers, which h2 has checked, as ASGI's scope; `None` for what no request of ours can be."""
    pseudo: dict[bytes, bytes] = {}
    plain: Headers = []
    for name, value in headers:
        if name.startswith(b":"):
            pseudo[name] = value
        else:
            plain.append((name, value))
    target, method = pseudo.get(b":path", b""), pseudo.get(b":method", b"")
    path, _, query = target.partition(b"?")
    is_everything = target == b"*" and method == b"OPTIONS"
    if not target.isascii() or not (path.startswith(b"/") or is_everything) or not method.isalpha():
        return None
    if b":authority" in pseudo:
        plain = [(b"host", pseudo[b":authority"]), *(pair for pair in plain if pair[0] != b"host")]
    return {
        "type": "http",
        "asgi": {"spec_version": "2.4", "version": "3.0"},
        "http_version": "2",
        "method": method.decode("ascii").upper(),
        "scheme": "https",  # the wire's, whatever the client calls it
        "path": unquote(path.decode("ascii")),
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": plain,
        "client": client,
        "server": server,
        "state": {},
        "extensions": {},
    }


def refusal(scope: Scope) -> int | None:
    """The status for a request that is not handed on, as `covey.http.parser` has it for HTTP/1.1."""
    headers: Headers = scope["headers"]
    if scope["method"] in ("CONNECT", "TRACE"):
        return 501
    if len(scope["raw_path"]) + len(scope["query_string"]) > TARGET_BYTES_MAX:
        return 414
    if len(headers) > HEADERS_MAX or sum(len(name) + len(value) for name, value in headers) > HEADER_BYTES_MAX:
        return 431
    return None if sum(name == b"host" for name, _ in headers) == 1 else 400


def _answer_headers(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    lowered = ((bytes(name).lower(), bytes(value).strip()) for name, value in headers)
    return [pair for pair in lowered if pair[0] not in HOP_BY_HOP]
