"""A whole node behind TLS, behind a proxy, and asked from a page of another origin."""

import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec
import pytest
import trio
from certificates import write_pair
from http2_client import connected2
from http_harness import serving

from covey.config import build
from covey.contracts.auth import ADD_USER, Actor, AddUser
from covey.errors import CallError
from covey.http.asgi import PEER, Receive, Scope, Send, respond
from covey.http.server import HttpConfig
from covey.node import Node, open_node

ASKED = {"model": "echo", "messages": [{"role": "user", "content": "one two three four five"}], "stream": True}


@asynccontextmanager
async def running(folder: Path, *roles: str, token_seconds: float = 0.0, **http: Any) -> AsyncGenerator[Node, None]:
    tables = {
        "node": {"name": "here", "roles": ["auth", "inference", "gateway", *roles]},
        "http": {"listen": "127.0.0.1:0", **http},
        "inference": {"backends": ["echo"], "default_model": "echo"},
        "backends": {"echo": {"token_seconds": token_seconds}},
    }
    async with open_node(build(tables), data=folder, listen=True) as node:
        await node.bus.call(ADD_USER, AddUser(Actor(), "ada", "correct horse battery staple", "admin"))
        yield node


def files(folder: Path) -> dict[str, str]:
    certificate_file, key_file = write_pair(folder)
    return {"tls_certificate_file": str(certificate_file), "tls_key_file": str(key_file)}


def client(node: Node, folder: Path, **options: Any) -> httpx.AsyncClient:
    trusted = ssl.create_default_context(cafile=folder / "certificate.pem")
    url = node.urls[0].replace("127.0.0.1", "localhost")
    return httpx.AsyncClient(verify=trusted, base_url=url, **options)


@pytest.mark.parametrize("http2", [False, True])
async def test_an_answer_streams_token_by_token_over_tls(tmp_path: Path, *, http2: bool) -> None:
    async with running(tmp_path / "data", **files(tmp_path)) as node:
        assert node.urls[0].startswith("https://")
        key = (await node.client.create_key("ada")).key
        headers = {"authorization": f"Bearer {key}"}
        async with client(node, tmp_path, http2=http2, headers=headers) as asking:
            pieces: list[bytes] = []
            async with asking.stream("POST", "/v1/chat/completions", json=ASKED) as answer:
                assert (answer.http_version, answer.status_code) == ("HTTP/2" if http2 else "HTTP/1.1", 200)
                async for piece in answer.aiter_raw():
                    pieces.append(piece)
            assert b"".join(pieces).endswith(b"data: [DONE]\n\n")
            assert len(pieces) > 3  # each was written when it was there
            assert (await asking.get("/v1/models")).status_code == 200
            refused = await asking.get("/v1/models", headers={"authorization": "Bearer wrong"})
            assert refused.status_code == 401


async def test_a_stream_that_its_client_leaves_over_http_2_is_cancelled_at_once(tmp_path: Path) -> None:
    async with running(tmp_path / "data", token_seconds=0.05, **files(tmp_path)) as node:  # minutes, if it were not
        key = (await node.client.create_key("ada")).key
        body = msgspec.json.encode({**ASKED, "messages": [{"role": "user", "content": " ".join(["word"] * 5_000)}]})
        port = urlsplit(node.urls[0]).port
        assert port
        async with connected2(port, tmp_path) as asking:
            headers = [("authorization", f"Bearer {key}"), ("content-type", "application/json")]
            number = await asking.ask("/v1/chat/completions", "POST", end=False, headers=headers)
            await asking.send_body(number, body)
            await asking.until(lambda: b"word" in asking.answers[number].body)
            asking.h2.reset_stream(number)
            await asking.flush()
            shown = b""
            with trio.fail_after(5):
                while b"covey_num_requests_in_flight 0.0" not in shown:
                    shown = (await asking.answer(await asking.ask("/metrics"))).body


async def test_under_tls_cookies_are_secure_and_bound_to_the_host(tmp_path: Path) -> None:
    async with running(tmp_path / "data", "web", **files(tmp_path)) as node:
        async with client(node, tmp_path, http2=True) as browser:
            cookies = (await browser.get("/login")).headers.get_list("set-cookie")
        assert cookies
        for cookie in cookies:
            assert cookie.startswith("__Host-covey_")
            assert "; Secure" in cookie


async def test_behind_a_trusted_proxy_that_speaks_tls_cookies_are_secure_too(tmp_path: Path) -> None:
    told = {"x-forwarded-for": "203.0.113.9", "x-forwarded-proto": "https", "x-forwarded-host": "ai.example"}
    async with (
        running(tmp_path, "web", trusted_proxies=["127.0.0.1"], host_names=["ai.example"]) as node,
        httpx.AsyncClient(base_url=node.urls[0]) as proxy,
    ):
        answer = await proxy.get("/login", headers=told)
        assert answer.status_code == 200
        assert all(one.startswith("__Host-covey_") for one in answer.headers.get_list("set-cookie"))
        assert (await proxy.get("/login", headers={**told, "x-forwarded-host": "evil.example"})).status_code == 421


async def test_behind_a_proxy_metrics_want_an_administrators_key(tmp_path: Path) -> None:
    async with (
        running(tmp_path, trusted_proxies=["127.0.0.1"]) as node,
        httpx.AsyncClient(base_url=node.urls[0]) as proxy,
    ):
        assert (await proxy.get("/metrics")).status_code == 401
        assert (await proxy.get("/healthz")).status_code == 200


@pytest.mark.parametrize(
    ("trusted", "said"), [(["127.0.0.1"], "203.0.113.9 https"), (["10.0.0.0/8"], "127.0.0.1 http")]
)
async def test_the_peer_stays_known_whoever_it_speaks_for(trusted: list[str], said: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        peer = scope["extensions"][PEER][0]
        await respond(send, 200, f"{scope['client'][0]} {scope['scheme']} {peer}".encode(), "text/plain", [])

    headers = {"x-forwarded-for": "203.0.113.9", "x-forwarded-proto": "https"}
    async with serving(app, trusted_proxies=tuple(trusted)) as served, httpx.AsyncClient() as asking:
        assert (await asking.get(served.url, headers=headers)).text == f"{said} 127.0.0.1"


async def test_a_page_of_a_configured_origin_may_use_the_api(tmp_path: Path) -> None:
    page = "https://app.example.org"
    async with running(tmp_path, cors_origins=[page]) as node, httpx.AsyncClient(base_url=node.urls[0]) as browser:
        preflight = await browser.options(
            "/v1/chat/completions",
            headers={
                "origin": page,
                "access-control-request-method": "POST",
                "access-control-request-headers": "authorization",
            },
        )
        assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (204, page)
        key = (await node.client.create_key("ada", requests_per_minute=5)).key
        answer = await browser.get("/v1/models", headers={"origin": page, "authorization": f"Bearer {key}"})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, page)
        other = await browser.get("/v1/models", headers={"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


async def test_without_configuration_no_page_may(tmp_path: Path) -> None:
    async with running(tmp_path) as node, httpx.AsyncClient(base_url=node.urls[0]) as browser:
        answer = await browser.get("/v1/models", headers={"origin": "https://app.example.org"})
        assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"tls_key_file": "key.pem"}, "go together"),
        ({"trusted_proxies": ["here"]}, "here"),
        ({"cors_origins": ["https://a/b"]}, "is no origin"),
        ({"proxy_header": "via"}, "proxy_header"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_the_configuration(table: dict[str, Any], words: str) -> None:
    with pytest.raises(CallError, match=words):
        build({"http": table})


def test_the_defaults_keep_plain_http_to_this_machine() -> None:
    assert not HttpConfig().is_private
    assert HttpConfig(trusted_proxies=("10.0.0.1",)).is_private
    assert HttpConfig(tls_certificate_file="a", tls_key_file="b").is_private
    assert HttpConfig(allow_plain_http=True).is_private
