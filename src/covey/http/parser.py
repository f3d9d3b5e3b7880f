"""h11, stricter: what it lets pass as long as it comes in one piece, or leaves to the server.

Source: RFC 9112 (HTTP/1.1), of which two readings of one request, ours and a proxy's, are how requests are smuggled.
"""

from typing import Any

import h11

HEADER_BYTES_MAX = 32 * 1024
HEADERS_MAX = 100
TARGET_BYTES_MAX = 8 * 1024
_REFUSED_METHODS = (b"CONNECT", b"TRACE")


class StrictParser(h11.Connection):
    """The server's side; `RemoteProtocolError` carries the status."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER, max_incomplete_event_size=HEADER_BYTES_MAX)

    @property
    def is_within_head(self) -> bool:
        """Whether a request has begun to come, and its head is not complete."""
        return self.their_state is h11.IDLE and bool(self.trailing_data[0])

    def next_event(self) -> Any:
        """As h11's."""
        if self.their_state is not h11.IDLE:
            return super().next_event()
        held = self.trailing_data[0]
        try:
            event = super().next_event()
        except h11.RemoteProtocolError as error:
            if error.error_status_hint == 431 and held and b"\n" not in held:
                raise h11.RemoteProtocolError("the request line is too long", error_status_hint=414) from error
            raise
        if isinstance(event, h11.Request):
            _check(event, held[: len(held) - len(self.trailing_data[0])])
        return event


def _check(request: h11.Request, head: bytes) -> None:
    """Raise for what h11 takes and we do not. `head` is the request as it came, up to the empty line."""
    if request.http_version not in (b"1.0", b"1.1"):
        raise h11.RemoteProtocolError("only HTTP/1 is spoken here", error_status_hint=505)
    if len(request.target) > TARGET_BYTES_MAX:
        raise h11.RemoteProtocolError("the request line is too long", error_status_hint=414)
    if len(head) > HEADER_BYTES_MAX or len(request.headers) > HEADERS_MAX:
        raise h11.RemoteProtocolError("the header is too large", error_status_hint=431)
    if not head.count(b"\n") == head.count(b"\r") == head.count(b"\r\n"):
        raise h11.RemoteProtocolError("a line that does not end with CR and LF", error_status_hint=400)
    if b"\n " in head or b"\n\t" in head:
        # RFC 9112, 5.2: others may take the second line for a header of its own.
        raise h11.RemoteProtocolError("a header in two lines", error_status_hint=400)
    _check_length(request)
    if request.method in _REFUSED_METHODS:
        raise h11.RemoteProtocolError("no such method here", error_status_hint=501)
    if not request.target.startswith(b"/"):
        _check_target(request)


def _check_length(request: h11.Request) -> None:
    lengths = [name for name, _ in request.headers if name in (b"content-length", b"transfer-encoding")]
    if len(lengths) > 1:
        # RFC 9112, 6.1. h11 has joined equal Content-Lengths to one.
        raise h11.RemoteProtocolError("Content-Length beside Transfer-Encoding", error_status_hint=400)
    if lengths == [b"transfer-encoding"] and request.http_version == b"1.0":
        raise h11.RemoteProtocolError("Transfer-Encoding in HTTP/1.0", error_status_hint=400)


def _check_target(request: h11.Request) -> None:
    is_everything = request.target == b"*" and request.method == b"OPTIONS"
    if not is_everything and not is_absolute(request.target):
        raise h11.RemoteProtocolError("a target that is no path", error_status_hint=400)


def is_absolute(target: bytes) -> bool:
    """Whether a target has the form that proxies are asked in: `http://host/path`."""
    return target[:8].lower().startswith((b"http://", b"https://"))


def split_absolute(target: bytes) -> tuple[bytes, bytes]:
    """Host and path of such a target.

    RFC 9112, 3.2.2: a server takes this form, too, and its host in place of the header's.
    """
    rest = target.partition(b"://")[2]
    end = min((at for at in (rest.find(b"/"), rest.find(b"?")) if at >= 0), default=len(rest))
    path = rest[end:]
    return rest[:end], path if path.startswith(b"/") else b"/" + path
