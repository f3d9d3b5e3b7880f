"""Which pages of other origins are let in, and that nothing else is said to them."""

from typing import Any

import pytest

from covey.http.asgi import Message, Receive, Scope, Send, respond
from covey.http.cors import Cors, check_origin

PAGE = "https://app.example.org"


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    await respond(send, 401, b"a key, please", "text/plain", [(b"vary", b"Accept")])


async def ask(cors: Cors, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, list[str]]]:
    """Status and headers of an answer."""
    sent: list[Message] = []

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    await cors({"type": "http", "method": method, "path": path, "headers": named}, receive, send)
    found: dict[str, list[str]] = {}
    for name, value in sent[0]["headers"]:
        found.setdefault(name.decode(), []).append(value.decode())
    return sent[0]["status"], found


def preflight(**headers: str) -> dict[str, str]:
    return {"access_control_request_method": "POST", **headers}


@pytest.mark.parametrize("path", ["/v1", "/v1/chat/completions", "/api/chat"])
async def test_a_page_that_is_named_may_ask_and_read_limits(path: str) -> None:
    status, headers = await ask(Cors(app, [PAGE]), path, origin=PAGE)
    assert status == 401  # it needs a key as everybody
    assert headers["access-control-allow-origin"] == [PAGE]
    assert "access-control-allow-credentials" not in headers
    assert headers["vary"] == ["Accept", "Origin"]
    for name in ("x-request-id", "x-ratelimit-remaining-requests", "retry-after"):
        assert name in headers["access-control-expose-headers"][0].split(", ")


async def test_its_preflight_is_answered_without_a_key() -> None:
    wanted = "authorization, content-type, x-stainless-os"
    status, headers = await ask(
        Cors(app, [PAGE]), "/v1/chat/completions", "OPTIONS",
        **preflight(origin=PAGE, access_control_request_headers=wanted),
    )  # fmt: skip
    assert status == 204
    assert headers["access-control-allow-origin"] == [PAGE]
    assert headers["access-control-allow-headers"] == [wanted]
    assert "POST" in headers["access-control-allow-methods"][0]
    assert headers["vary"] == ["Access-Control-Request-Headers", "Origin"]


@pytest.mark.parametrize("wanted", ["a\r\nb: c", "a b", ",", "a," * 200])
async def test_header_names_that_are_none_are_not_repeated(wanted: str) -> None:
    _, headers = await ask(
        Cors(app, [PAGE]), "/v1", "OPTIONS", **preflight(origin=PAGE, access_control_request_headers=wanted)
    )
    assert "access-control-allow-headers" not in headers


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://app.example.org", f"{PAGE}:444", ""])
async def test_any_other_page_is_told_nothing(origin: str) -> None:
    for method, more in (("GET", {}), ("OPTIONS", preflight())):
        status, headers = await ask(Cors(app, [PAGE]), "/v1/models", method, origin=origin, **more)
        assert status == (401 if method == "GET" else 204)
        assert not [name for name in headers if name.startswith("access-control")]
        assert "Origin" in headers["vary"]  # a cache must not give it what the named page got


async def test_a_program_is_no_page() -> None:
    _, headers = await ask(Cors(app, [PAGE]), "/v1/models")
    assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("path", ["/", "/login", "/v10", "/apis", "/healthz"])
async def test_the_dashboard_is_never_opened(path: str) -> None:
    for method, more in (("GET", {}), ("OPTIONS", preflight())):
        status, headers = await ask(Cors(app, ["*"]), path, method, origin=PAGE, **more)
        assert status == 401
        assert not [name for name in headers if name.startswith("access-control")]


async def test_every_origin_is_let_in_by_a_star() -> None:
    status, headers = await ask(Cors(app, ["*"]), "/v1/models", origin="null")
    assert (status, headers["access-control-allow-origin"]) == (401, ["*"])
    status, headers = await ask(Cors(app, ["*"]), "/v1/models", "OPTIONS", **preflight(origin=PAGE))
    assert (status, headers["access-control-allow-origin"]) == (204, ["*"])


async def test_other_options_reach_the_api() -> None:
    assert (await ask(Cors(app, [PAGE]), "/v1/models", "OPTIONS", origin=PAGE))[0] == 401


async def test_what_is_no_request_passes() -> None:
    seen: list[str] = []

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    nothing: Any = None
    await Cors(inner, [PAGE])({"type": "lifespan"}, nothing, nothing)
    assert seen == ["lifespan"]


@pytest.mark.parametrize(
    "wrong", ["app.example.org", f"{PAGE}/", f"{PAGE}/path", "https://App.example.org", "", "https://", "null"]
)
def test_what_is_no_origin_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="is no origin"):
        check_origin(wrong)


@pytest.mark.parametrize("right", ["*", PAGE, "http://localhost:3000", "http://[::1]:3000", "app://obsidian.md"])
def test_origins_as_browsers_send_them(right: str) -> None:
    check_origin(right)
