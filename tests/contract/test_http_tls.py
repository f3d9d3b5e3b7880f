"""TLS on the listener: real handshakes, and every way in which the files can be wrong."""

import logging
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from certificates import write_pair
from http_harness import Served, eventually, serving

from covey.errors import CallError
from covey.http import tls
from covey.http.asgi import Receive, Scope, Send, respond
from covey.http.server import HttpConfig, Listener
from covey.http.tls import Certificate, load
from covey.telemetry.metrics import Metrics

PING = b"GET /ping HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    await respond(send, 200, f"{scope['scheme']} {scope['http_version']}".encode(), "text/plain", [])


def encrypted(folder: Path, **config: Any) -> Any:
    certificate_file, key_file = write_pair(folder)
    return serving(app, tls_certificate_file=str(certificate_file), tls_key_file=str(key_file), **config)


def trusting(folder: Path, *protocols: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=folder / "certificate.pem")
    if protocols:
        context.set_alpn_protocols(protocols)
    return context


@asynccontextmanager
async def connected(served: Served, context: ssl.SSLContext) -> AsyncGenerator["trio.SSLStream[Any]", None]:
    tcp = await trio.open_tcp_stream("127.0.0.1", served.port)
    stream = trio.SSLStream(tcp, context, server_hostname="localhost", https_compatible=True)
    try:
        yield stream
    finally:
        await trio.aclose_forcefully(stream)


async def test_the_listener_speaks_https_and_says_so(tmp_path: Path) -> None:
    async with encrypted(tmp_path) as served:
        assert served.listener.urls[0].startswith("https://127.0.0.1:")
        async with httpx.AsyncClient(verify=trusting(tmp_path)) as client:
            for _ in range(2):
                answer = await client.get(f"https://localhost:{served.port}/ping")
                assert (answer.status_code, answer.text) == (200, "https 1.1")
        assert served.metrics.registry.get_sample_value("covey_http_connections") is not None


@pytest.mark.parametrize(
    ("offered", "chosen"), [(("h2", "http/1.1"), "h2"), (("http/1.1",), "http/1.1"), ((), None), (("spdy/3",), None)]
)
async def test_the_protocol_is_the_one_that_the_client_offers(
    tmp_path: Path, offered: tuple[str, ...], chosen: str | None
) -> None:
    async with encrypted(tmp_path) as served, connected(served, trusting(tmp_path, *offered)) as stream:
        await stream.do_handshake()
        assert stream.selected_alpn_protocol() == chosen


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
async def test_versions_before_1_2_are_refused(tmp_path: Path, version: ssl.TLSVersion) -> None:
    async with encrypted(tmp_path) as served:
        context = trusting(tmp_path)
        context.minimum_version = ssl.TLSVersion.TLSv1_1
        context.maximum_version = version
        context.set_ciphers("ALL:@SECLEVEL=0")
        async with connected(served, context) as stream:
            if version is ssl.TLSVersion.TLSv1_1:
                with pytest.raises(trio.BrokenResourceError):
                    await stream.do_handshake()
            else:
                await stream.do_handshake()
                assert stream.version() == version.name.replace("_", ".")


async def test_the_end_is_said_before_the_connection_ends(tmp_path: Path) -> None:
    # Without it, a client cannot tell the end of an answer from somebody's cut.
    async with encrypted(tmp_path) as served, connected(served, trusting(tmp_path)) as stream:
        await stream.send_all(PING.replace(b"HTTP/1.1", b"HTTP/1.0"))
        data = b""
        while piece := await stream.receive_some():  # a cut would raise here
            data += piece
        assert data.endswith(b"https 1.0")


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01", PING])
async def test_a_handshake_that_does_not_end_is_closed_in_time_and_quietly(
    tmp_path: Path, sent: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tls, "HANDSHAKE_SECONDS_MAX", 0.3)
    caplog.set_level(logging.INFO, "covey")
    async with encrypted(tmp_path) as served, served.client() as client:
        await client.send(sent)
        await client.rest()
        await eventually(lambda: served.metrics.registry.get_sample_value("covey_http_connections") == 0)
    assert not [record for record in caplog.records if record.name.startswith("covey.http")]


async def test_handshakes_that_do_not_end_keep_nobody_out(tmp_path: Path) -> None:
    async with (
        encrypted(tmp_path, connections_max=2) as served,
        served.client() as one,
        served.client() as two,
        httpx.AsyncClient(verify=trusting(tmp_path)) as client,
    ):
        await eventually(lambda: served.metrics.registry.get_sample_value("covey_http_connections") == 2)
        assert (await client.get(f"https://localhost:{served.port}/ping")).status_code == 200
        assert await one.rest() == b""
        await two.send(b"\x16")


async def test_shutdown_does_not_wait_for_handshakes(tmp_path: Path) -> None:
    async with encrypted(tmp_path, drain_seconds=5) as served, served.client() as client:
        await eventually(lambda: served.metrics.registry.get_sample_value("covey_http_connections") == 1)
        assert await served.shut_down() < 2.5
        assert await client.rest() == b""


async def fingerprint(served: Served) -> bytes:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    async with connected(served, context) as stream:
        await stream.do_handshake()
        return bytes(stream.getpeercert(binary_form=True) or b"")


async def changed(served: Served, known: set[bytes]) -> bytes:
    """Wait until another certificate is shown."""
    with trio.fail_after(5):
        while (found := await fingerprint(served)) in known:
            pass
    return found


async def test_a_new_pair_is_taken_up_and_a_broken_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tls, "CHECK_SECONDS", 0.05)
    async with encrypted(tmp_path) as served, connected(served, trusting(tmp_path)) as kept:
        await kept.do_handshake()
        first = await fingerprint(served)
        write_pair(tmp_path)
        second = await changed(served, {first})
        (tmp_path / "certificate.pem").write_text("no certificate", encoding="utf-8")
        await eventually(lambda: "the old one stays" in caplog.text)
        assert await fingerprint(served) == second
        await kept.send_all(PING)  # what was open before goes on
        assert (await kept.receive_some()).startswith(b"HTTP/1.1 200")
        write_pair(tmp_path)
        await changed(served, {first, second})


async def test_a_broken_pair_is_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    certificate = Certificate(*map(str, write_pair(tmp_path)))
    context = certificate.context
    (tmp_path / "key.pem").unlink()
    for _ in range(3):
        await certificate.check()
    assert caplog.text.count("the old one stays") == 1
    assert certificate.context is context


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    certificate_file, key_file = write_pair(tmp_path)
    key_file.unlink()
    with pytest.raises(CallError, match=r"Cannot read .*key.pem.*No such file"):
        load(certificate_file, key_file)
    write_pair(tmp_path)
    certificate_file.unlink()
    with pytest.raises(CallError, match=r"Cannot read .*certificate.pem.*No such file"):
        load(certificate_file, key_file)


def test_a_file_that_cannot_even_be_looked_for_is_refused(tmp_path: Path) -> None:
    """As in a folder of another's: asking whether it is there fails, too. A name too long fails for root as well."""
    certificate_file, _ = write_pair(tmp_path)
    unnamable = tmp_path / ("k" * 300)
    with pytest.raises(CallError, match=r"Cannot read .*kkk") as refusal:
        load(certificate_file, unnamable)
    assert refusal.value.code == "invalid"


def test_a_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(CallError, match="does not belong to the certificate"):
        load(write_pair(tmp_path)[0], write_pair(tmp_path / "other")[1])


def test_an_encrypted_key_is_refused_without_asking(tmp_path: Path) -> None:
    with pytest.raises(CallError, match=r"key.pem is encrypted.*openssl pkey"):
        load(*write_pair(tmp_path, password=b"secret"))


@pytest.mark.parametrize("text", ["", "no certificate"])
def test_what_is_no_pem_is_refused(tmp_path: Path, text: str) -> None:
    certificate_file, key_file = write_pair(tmp_path)
    certificate_file.write_text(text, encoding="utf-8")
    with pytest.raises(CallError, match="not a certificate and its key in PEM"):
        load(certificate_file, key_file)


def test_a_key_that_everybody_can_read_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    certificate_file, key_file = write_pair(tmp_path)
    load(certificate_file, key_file)
    assert not caplog.records
    key_file.chmod(0o644)
    load(certificate_file, key_file)
    assert "chmod o-r" in caplog.text


async def test_a_public_address_is_allowed_with_tls(tmp_path: Path) -> None:
    certificate_file, key_file = write_pair(tmp_path)
    config = HttpConfig(listen="0.0.0.0:0", tls_certificate_file=str(certificate_file), tls_key_file=str(key_file))
    listener, stop = Listener(config, Metrics()), trio.Event()
    async with trio.open_nursery() as nursery:
        stop.set()
        await listener.serve(app, stop=stop, drain_until=trio.current_time)
        nursery.cancel_scope.cancel()
    assert listener.urls[0].startswith("https://")


async def test_a_client_that_leaves_within_a_handshake_costs_nothing(tmp_path: Path) -> None:
    async with encrypted(tmp_path) as served:
        for how in ("fin", "rst"):
            async with served.client() as client:
                await client.send(b"\x16\x03\x01\x00\xff")
                client.hang_up(how)
        await eventually(lambda: served.metrics.registry.get_sample_value("covey_http_connections") == 0)
