"""Whom a proxy speaks for, and whose word counts."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.http.proxies import Hop, Proxies, bare_address, parse_forwarded

NETWORKS = ("127.0.0.1", "10.0.0.0/8", "2001:db8::/32")


def seen(
    proxies: Proxies, headers: list[tuple[bytes, bytes]], peer: str | None = "127.0.0.1"
) -> tuple[str | None, str, str]:
    """Client, scheme and host after the proxies had their say."""
    scope: dict[str, Any] = {
        "client": (peer, 1234) if peer else None, "scheme": "http", "headers": [(b"host", b"inner"), *headers]
    }  # fmt: skip
    proxies.apply(scope)
    hosts = [value.decode() for name, value in scope["headers"] if name == b"host"]
    assert len(hosts) == 1
    return scope["client"] and scope["client"][0], scope["scheme"], hosts[0]


def x_forwarded(text: str, proto: str = "", host: str = "") -> list[tuple[bytes, bytes]]:
    named = ((b"x-forwarded-for", text), (b"x-forwarded-proto", proto), (b"x-forwarded-host", host))
    return [(name, value.encode()) for name, value in named if value]


@pytest.mark.parametrize(
    ("text", "client"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("203.0.113.9:5555", "203.0.113.9"),
        ("[2001:db9::1]:80", "2001:db9::1"),
        ("2001:db9::1", "2001:db9::1"),
        ("1.1.1.1, 203.0.113.9", "203.0.113.9"),  # the first was written by the client itself
        ("1.1.1.1, 203.0.113.9, 10.1.2.3", "203.0.113.9"),
        ("127.0.0.1, 203.0.113.9", "203.0.113.9"),  # nobody makes himself loopback
        ("10.1.2.3, 10.4.5.6", "10.1.2.3"),  # all of them trusted: the farthest
        ("203.0.113.9, unknown", "127.0.0.1"),
        ("203.0.113.9, unknown, 10.1.2.3", "10.1.2.3"),
        ("evil, 203.0.113.9", "203.0.113.9"),
        ("", "127.0.0.1"),
        (" , ,", "127.0.0.1"),
        ("1.1.1.1," * 1_000 + "10.0.0.1", "1.1.1.1"),
        ("::ffff:10.1.2.3", "::ffff:10.1.2.3"),
    ],
)
def test_the_client_is_the_rightmost_address_that_is_no_trusted_proxy(text: str, client: str) -> None:
    assert seen(Proxies(NETWORKS), x_forwarded(text))[0] == client


def test_scheme_and_host_are_the_nearest_proxys() -> None:
    proxies = Proxies(NETWORKS)
    assert seen(proxies, x_forwarded("203.0.113.9", "https", "ai.example")) == ("203.0.113.9", "https", "ai.example")
    assert seen(proxies, x_forwarded("203.0.113.9", "http, HTTPS", "evil, ai.example"))[1:] == ("https", "ai.example")
    assert seen(proxies, x_forwarded("203.0.113.9", "gopher"))[1:] == ("http", "inner")
    assert seen(proxies, x_forwarded("", "https")) == ("127.0.0.1", "https", "inner")


@pytest.mark.parametrize("peer", ["203.0.113.9", "11.0.0.1", "::1", "", None, "no address"])
def test_from_everybody_else_the_headers_are_ignored(peer: str | None) -> None:
    assert seen(Proxies(NETWORKS), x_forwarded("1.2.3.4", "https", "evil"), peer) == (peer or None, "http", "inner")


def test_an_ipv4_peer_of_a_socket_for_both_families_is_known() -> None:
    assert Proxies(NETWORKS).trusts("::ffff:10.1.2.3")
    assert not Proxies(NETWORKS).trusts("::ffff:11.1.2.3")


def test_headers_in_several_lines_are_one_list() -> None:
    lines = [(b"x-forwarded-for", b"203.0.113.9"), (b"x-forwarded-for", b"10.1.2.3")]
    assert seen(Proxies(NETWORKS), lines)[0] == "203.0.113.9"


def test_only_the_header_that_is_configured_is_read() -> None:
    both = [*x_forwarded("1.1.1.1", "https"), (b"forwarded", b"for=2.2.2.2;proto=https;host=ai.example")]
    assert seen(Proxies(NETWORKS), both) == ("1.1.1.1", "https", "inner")
    assert seen(Proxies(NETWORKS, "forwarded"), both) == ("2.2.2.2", "https", "ai.example")


@pytest.mark.parametrize(
    ("text", "hops"),
    [
        ("", []),
        ("for=192.0.2.60;proto=http;by=203.0.113.43", [Hop("192.0.2.60", "http")]),
        ('For="[2001:db8:cafe::17]:4711"', [Hop("2001:db8:cafe::17")]),
        ("for=1.1.1.1, for=2.2.2.2;Proto=HTTPS", [Hop("1.1.1.1"), Hop("2.2.2.2", "https")]),
        ('for=_hidden;host="a\\"b"', [Hop("_hidden", "", 'a"b')]),
        ("proto=https", [Hop("", "https")]),
        ("for=1.1.1.1;", []),
        ("for=1.1.1.1,", []),
        ("for", []),
        ('for="1.1.1.1', []),
        ("for=1.1.1.1 for=2.2.2.2", []),
        (";", []),
    ],
)
def test_forwarded_as_rfc_7239_has_it(text: str, hops: list[Hop]) -> None:
    assert parse_forwarded(text) == hops


def test_scheme_and_host_of_forwarded_are_those_of_the_clients_hop() -> None:
    text = b"for=9.9.9.9;host=evil;proto=http, for=203.0.113.9;proto=https;host=ai.example, for=10.1.2.3;proto=http"
    headers = [(b"forwarded", text)]
    assert seen(Proxies(NETWORKS, "forwarded"), headers) == ("203.0.113.9", "https", "ai.example")
    assert seen(Proxies(NETWORKS, "forwarded"), [(b"forwarded", b"for=unknown;proto=https")])[:2] == (
        "127.0.0.1", "https",
    )  # fmt: skip
    assert seen(Proxies(NETWORKS, "forwarded"), [(b"forwarded", b"broken")]) == ("127.0.0.1", "http", "inner")


@pytest.mark.parametrize("wrong", ["10.0.0.0/33", "localhost", "", "10.0.0"])
def test_what_is_no_network_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Proxies([wrong])


def test_none_is_trusted_unless_configured() -> None:
    assert not Proxies()
    assert Proxies(["::1"])


@given(st.text(max_size=200), st.sampled_from(["x-forwarded-for", "forwarded"]))
def test_whatever_is_written_gives_an_address_or_none(text: str, header: Any) -> None:
    value = text.encode("latin-1", "ignore")
    client, scheme, _ = seen(Proxies(NETWORKS, header), [(header.encode(), value), (b"x-forwarded-proto", value)])
    assert client
    assert scheme in ("http", "https")
    assert isinstance(bare_address(text), str)
