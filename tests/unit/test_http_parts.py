"""Which hosts are ours, where a path goes, and how an error looks to HTTP."""

import math
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from covey.dialects import sse
from covey.dialects.problems import TABLE, openai_body
from covey.errors import CODES, CallError
from covey.http.asgi import ON_GONE, RECEIVED, Message, Scope, leaving_with_client, read_body
from covey.http.credential import credential
from covey.http.problems import STATUS_BY_REASON, headers_of, status_of
from covey.http.router import Router
from covey.http.server import is_loopback, parse_listen, refuse_public


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:26839",
        "localhost.",
        "localhost.:80",
        "api.localhost",
        "127.0.0.1",
        "127.0.0.1:26839",
        "192.168.1.20:1",
        "[::1]",
        "[::1]:26839",
        "[fe80::1]:80",
        "covey.example",
        "Covey.Example:443",
        "covey.example.",
    ],
)
def test_hosts_that_are_ours(host: str) -> None:
    assert Router(["covey.example"]).is_ours(host)


@pytest.mark.parametrize(
    "host",
    [
        "",
        " ",
        "evil.example",
        "localhost.evil.example",
        "evillocalhost",
        "covey.example.evil.example",
        "127.0.0.1.evil.example",
        "127.0.0.1.nip.io",
        "0x7f.0.0.1",
        "2130706433",
        "127.1",
        "0177.0.0.1",
        "localhost..",
        "localhost:x",
        "localhost:",
        "localhost:123456",
        "localhost, evil.example",
        "localhost evil",
        "user@localhost",
        "localhost/",
        "localhost\r\nx: y",
        "[::1",
        "::1",
        "[localhost]",
        "[evil.example]",
        "[127.0.0.1]",
        "[::1]x",
        "[]",
        "lo\u212aalhost",
        ".localhost",
        ".",
    ],
)
def test_hosts_that_are_not(host: str) -> None:
    assert not Router(["covey.example"]).is_ours(host)


def test_a_name_that_no_host_can_have_is_none() -> None:
    """Mutation: judge it, and remember 256 such."""
    assert Router().is_ours("a." * 120 + "localhost")
    assert Router().is_ours("a." * 150 + "localhost") is None
    assert Router().is_ours("localhost, evil.example") is None
    assert Router().is_ours("evil.example") is False


@given(st.text(max_size=40))
def test_any_host_gets_a_verdict(host: str) -> None:
    Router().is_ours(host)


async def ask(router: Router, path: str, **scope: Any) -> tuple[int, bytes]:
    sent: list[Message] = []

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    whole: Scope = {
        "type": "http", "method": "GET", "path": path, "headers": [(b"host", b"localhost")], "server": None, **scope
    }  # fmt: skip
    await router(whole, receive, send)
    return sent[0]["status"], sent[1]["body"]


def named(name: bytes) -> Any:
    async def app(scope: Scope, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": name})

    return app


async def test_the_longest_prefix_takes_a_path() -> None:
    router = Router()
    assert not router.mounted
    router.mount("/", named(b"root"))
    router.mount("/v1", named(b"api"))
    router.mount("/v1/special", named(b"special"))
    for path, name in [
        ("/", b"root"),
        ("/v1", b"api"),
        ("/v1/", b"api"),
        ("/v1/x", b"api"),
        ("/v10", b"root"),
        ("/v1/special", b"special"),
        ("/v1/specials", b"api"),
        ("//v1/x", b"root"),
        ("/x/../v1", b"root"),
        ("*", b"root"),
        ("", b"root"),
    ]:
        assert await ask(router, path) == (200, name), path
    with pytest.raises(ValueError, match="/v1"):
        router.mount("/v1", named(b"other"))
    router.unmount("/v1")
    router.unmount("/v1")
    assert await ask(router, "/v1") == (200, b"root")
    router.unmount("/")
    assert (await ask(router, "/v2"))[0] == 404


async def test_hosts_of_a_request() -> None:
    router = Router()
    router.mount("/", named(b"root"))
    assert (await ask(router, "/", headers=[(b"host", b"evil.example")]))[0] == 421
    assert (await ask(router, "/", headers=[(b"host", b"localhost"), (b"host", b"localhost")]))[0] == 400
    for malformed in (b"", b"user@localhost", b"localhost, evil.example", b"localhost/", b"[::1", b"localhost:x"):
        assert (await ask(router, "/", headers=[(b"host", malformed)]))[0] == 400
    assert (await ask(router, "/", headers=[], server=("127.0.0.1", 80)))[0] == 200
    assert (await ask(router, "/", headers=[], server=("::1", 80)))[0] == 200
    assert (await ask(router, "/", headers=[]))[0] == 400


@pytest.mark.parametrize("extension", [True, False])
async def test_leaving_with_the_client(*, extension: bool, autojump_clock: trio.testing.MockClock) -> None:
    """With the call-back of our listener, and with nothing but what ASGI promises."""
    calls: list[Any] = []
    scope: Scope = {"extensions": {ON_GONE: calls.append}} if extension else {}

    async def receive() -> Message:
        await trio.sleep(2)
        if calls:
            calls[-1]()
        return {"type": "http.disconnect"}

    async with trio.open_nursery() as nursery:
        if extension:
            nursery.start_soon(receive)
        async with leaving_with_client(scope, receive):
            await trio.sleep(1)
        assert trio.current_time() == pytest.approx(1)  # the block's own end ends it
        async with leaving_with_client(scope, receive):
            await trio.sleep_forever()
        if not extension:
            assert trio.current_time() == pytest.approx(3)
    with pytest.raises(CallError, match="as it was raised") as caught:
        async with leaving_with_client(scope, receive):
            raise CallError("internal", "as it was raised")
    assert caught.value.code == "internal"


@pytest.mark.parametrize("extension", [True, False])
async def test_a_body_has_one_time_limit_for_all_its_pieces(
    *, extension: bool, autojump_clock: trio.testing.MockClock
) -> None:
    waiting = [{"type": "http.request", "body": b"x", "more_body": True}] * 2

    async def receive() -> Message:
        await trio.sleep(0.4)
        return {"type": "http.request", "body": b"x", "more_body": True}

    def received() -> Message | None:
        return waiting.pop() if waiting else None

    scope: Scope = {"extensions": {RECEIVED: received} if extension else {}}
    began = trio.current_time()
    with pytest.raises(CallError) as caught:
        await read_body(receive, body_bytes_max=1000, body_seconds_max=1.0, scope=scope)
    assert (caught.value.code, caught.value.reason) == ("deadline", "slow_body")
    assert trio.current_time() - began == pytest.approx(1.0)


async def test_a_body_that_has_come_needs_no_wait() -> None:
    pieces: list[Message] = [
        {"type": "http.request", "body": b"a", "more_body": True},
        {"type": "http.request", "body": b"b", "more_body": False},
    ]

    async def receive() -> Message:
        raise AssertionError("there was no need to wait")

    scope: Scope = {"extensions": {RECEIVED: lambda: pieces.pop(0)}}
    assert await read_body(receive, body_bytes_max=2, body_seconds_max=1.0, scope=scope) == b"ab"


def test_every_code_is_mapped_and_none_else() -> None:
    assert set(TABLE) == set(CODES)
    for status, kind, code in TABLE.values():
        assert 400 <= status < 600
        assert kind
        assert code
    assert set(STATUS_BY_REASON.values()) == {405, 408, 415}


@pytest.mark.parametrize("code", CODES)
def test_an_error_as_openai_tells_it(code: Any) -> None:
    body = openai_body(CallError(code, 'It "failed".'))
    status, kind, name = TABLE[code]
    assert body == (
        f'{{"error":{{"message":"It \\"failed\\".","type":"{kind}","param":null,"code":"{name}"}}}}'.encode()
    )
    assert status_of(CallError(code, "x")) == status


def test_a_reason_is_the_code_that_clients_see() -> None:
    error = CallError("not_found", "x", reason="model_not_found", param="model")
    assert b'"param":"model","code":"model_not_found"' in openai_body(error)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("seconds", [None, 0.0, -3.0, 0.0004, 2.5, math.inf, math.nan, 1e12, 1e307])
def test_headers_of_an_error(code: Any, seconds: float | None) -> None:
    headers = dict(headers_of(CallError(code, "x", retry_after_seconds=seconds)))
    assert headers[b"x-should-retry"] in (b"true", b"false")
    assert (b"www-authenticate" in headers) == (code == "unauthenticated")
    if seconds is None or not math.isfinite(seconds):
        assert b"retry-after" not in headers
    else:
        assert int(headers[b"retry-after"]) >= max(1, min(seconds, 1e12))
        assert int(headers[b"retry-after-ms"]) >= max(1, min(seconds, 1e12) * 1000)


@pytest.mark.parametrize(
    ("listen", "parts"),
    [
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        (":80", ("127.0.0.1", 80)),
        ("[::1]:0", ("::1", 0)),
        ("localhost:65535", ("localhost", 65_535)),
    ],
)
def test_listen_addresses(listen: str, parts: tuple[str, int]) -> None:
    assert parse_listen(listen) == parts


@pytest.mark.parametrize(
    "listen", ["", "80", "host", "host:", "host:x", "host:-1", "host:65536", "[::1]", "host:\u0663", "host:1 "]
)
def test_what_is_no_listen_address(listen: str) -> None:
    with pytest.raises(CallError, match=r"127\.0\.0\.1:26839") as caught:
        parse_listen(listen)
    assert caught.value.code == "invalid"


@pytest.mark.parametrize(
    ("host", "private"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.0.1", False),
        ("example.com", False),
        ("", False),
    ],
)
def test_public_addresses_are_refused(host: str, *, private: bool) -> None:
    assert is_loopback(host) == private
    refuse_public(host, allow_plain_http=True)
    if private:
        refuse_public(host, allow_plain_http=False)
    else:
        with pytest.raises(CallError, match="--allow-plain-http"):
            refuse_public(host, allow_plain_http=False)


# Credentials, and events


def headers(**values: str) -> Scope:
    return {"headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in values.items()]}


@pytest.mark.parametrize(
    "sent",
    [
        {"authorization": "Bearer k"},
        {"authorization": "bearer  k "},
        {"x_api_key": "k"},
        {"api_key": " k"},
        {"authorization": "Bearer k", "x_api_key": "k", "api_key": "k"},
        {"authorization": "Basic eDp5", "x_api_key": "k"},
    ],
)
def test_every_spelling_of_one_credential(sent: dict[str, str]) -> None:
    assert credential(headers(**sent)) == "k"


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ({}, "No API key was sent"),
        ({"authorization": "Bearer "}, "No API key was sent"),
        ({"authorization": "Basic eDp5", "api_key": " "}, "No API key was sent"),
        ({"authorization": "Bearer a", "x_api_key": "b"}, "not valid"),
        ({"x_api_key": "a", "api_key": "b"}, "not valid"),
    ],
)
def test_no_credential_and_two_of_them_are_refused(sent: dict[str, str], words: str) -> None:
    with pytest.raises(CallError, match=words) as refused:
        credential(headers(**sent))
    assert refused.value.code == "unauthenticated"


def test_events() -> None:
    assert sse.event(b"{}") == b"data: {}\n\n"
    assert sse.event(b"{}", "ping") == b"event: ping\ndata: {}\n\n"
