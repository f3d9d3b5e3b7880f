"""What h11 reads and we refuse, in whatever pieces it comes."""

from typing import Any

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.http.parser import HEADER_BYTES_MAX, HEADERS_MAX, TARGET_BYTES_MAX, StrictParser, is_absolute, split_absolute

HOST = b"Host: localhost\r\n"


def verdict(data: bytes, size: int | None = None) -> int:
    """The status that a request is refused with; 0 where it is complete, -1 where more of it is wanted."""
    parser = StrictParser()
    for start in range(0, len(data), size or len(data)):
        parser.receive_data(data[start : start + (size or len(data))])
        try:
            event: Any = parser.next_event()
        except h11.RemoteProtocolError as error:
            return error.error_status_hint
        if isinstance(event, h11.Request):
            assert not parser.is_within_head
            return 0
        assert parser.is_within_head
    return -1


def request(line: bytes = b"GET / HTTP/1.1\r\n", headers: bytes = b"") -> bytes:
    return line + HOST + headers + b"\r\n"


@pytest.mark.parametrize("size", [None, 1, 7, 1_000])
@pytest.mark.parametrize(
    ("data", "status"),
    [
        (request(), 0),
        (request()[:-2], -1),
        (request(b"OPTIONS * HTTP/1.1\r\n"), 0),
        (request(b"GET http://localhost/ HTTP/1.1\r\n"), 0),
        (request(b"GET / HTTP/1.1\n"), 400),
        (request(headers=b"X: y\n"), 400),
        (request(headers=b"X: y\r\n z\r\n"), 400),
        (request(headers=b"X: y\r\n\tz\r\n"), 400),
        (request(headers=b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n"), 400),
        (request(b"POST / HTTP/1.0\r\n", b"Transfer-Encoding: chunked\r\n"), 400),
        (request(b"GET * HTTP/1.1\r\n"), 400),
        (request(b"OPTIONS ** HTTP/1.1\r\n"), 400),
        (request(b"GET localhost:80 HTTP/1.1\r\n"), 400),
        (request(b"TRACE / HTTP/1.1\r\n"), 501),
        (request(b"CONNECT localhost:80 HTTP/1.1\r\n"), 501),
        (request(b"GET / HTTP/2.0\r\n"), 505),
        (request(b"GET /" + b"a" * TARGET_BYTES_MAX + b" HTTP/1.1\r\n"), 414),
        (b"GET /" + b"a" * HEADER_BYTES_MAX, 414),
        (request(headers=b"X: y\r\n" * HEADERS_MAX), 431),
        (request(headers=b"X: " + b"y" * HEADER_BYTES_MAX + b"\r\n"), 431),
    ],
)
def test_a_request_is_judged_alike_in_whatever_pieces(data: bytes, status: int, size: int | None) -> None:
    if size == 1 and len(data) > 9_000:
        size = 100  # the same, and sooner
    assert verdict(data, size) == status


def test_what_follows_a_head_is_not_judged_with_it() -> None:
    head = request(b"POST / HTTP/1.1\r\n", b"Content-Length: 3\r\n")
    assert verdict(head + b"\n \n" + b"GET") == 0


@given(st.binary(max_size=200))
def test_whatever_comes_has_a_verdict(data: bytes) -> None:
    assert verdict(data or b"x") in (-1, 0, 400, 414, 431, 501, 505)


@pytest.mark.parametrize(
    ("target", "parts"),
    [
        (b"http://a/b?c", (b"a", b"/b?c")),
        (b"http://a", (b"a", b"/")),
        (b"https://a:1?b/c", (b"a:1", b"/?b/c")),
        (b"HTTP://[::1]:2/", (b"[::1]:2", b"/")),
        (b"http://user@a/", (b"user@a", b"/")),  # which the router refuses
    ],
)
def test_a_target_with_a_host(target: bytes, parts: tuple[bytes, bytes]) -> None:
    assert is_absolute(target)
    assert split_absolute(target) == parts


@pytest.mark.parametrize("target", [b"/", b"*", b"localhost:80", b"ftp://a/", b"/http://a", b""])
def test_a_target_without_one(target: bytes) -> None:
    assert not is_absolute(target)
