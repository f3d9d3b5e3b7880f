"""Who is given the key of the configuration, and who has to bring one: above all, who does not get it."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.contracts.keys import MINT_BYTES, mint
from covey.errors import CallError
from covey.http.asgi import PEER
from covey.roles.gateway.loopback import loopback_credential, read_loopback_key

KEY = mint(bytes(MINT_BYTES)).text
US = "127.0.0.1:26839"


def given_key(
    *headers: tuple[str, str], client: object = ("127.0.0.1", 50_000), host: str = US, key: str = KEY
) -> bool:
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in (("Host", host), *headers)]
    scope = {"type": "http", "scheme": "http", "client": client, "headers": raw}
    found = loopback_credential(scope, key)
    assert found in (None, KEY)
    return found is not None


@pytest.mark.parametrize("host", [US, "localhost:26839", "localhost", "127.0.0.1", "[::1]:26839", "covey.localhost"])
@pytest.mark.parametrize("client", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"])
def test_a_program_of_this_machine_that_sends_no_key_is_given_it(host: str, client: str) -> None:
    assert given_key(client=(client, 50_000), host=host)
    assert given_key(
        ("User-Agent", "ollama-python/0.5"), ("Content-Type", "application/json"), client=(client, 1), host=host
    )
    assert not given_key(client=(client, 50_000), host=host, key="")  # off


@pytest.mark.parametrize(
    "header", [("Authorization", ""), ("Authorization", "Bearer"), ("Authorization", "Bearer  "), ("x-api-key", " ")]
)
def test_an_empty_credential_is_none(header: tuple[str, str]) -> None:
    assert given_key(header)


@pytest.mark.parametrize(
    "header",
    [
        ("Authorization", f"Bearer {KEY}"),
        ("Authorization", "Bearer wrong"),
        ("Authorization", "bearer x"),
        ("Authorization", "Basic dXNlcjpwYXNz"),
        ("Authorization", KEY),
        ("x-api-key", "x"),
        ("api-key", "x"),
    ],
)
def test_whoever_brings_a_credential_is_judged_by_it(header: tuple[str, str]) -> None:
    assert not given_key(header)
    assert not given_key(("Authorization", "Bearer"), header)


@pytest.mark.parametrize(
    "client",
    [None, ("192.0.2.7", 1), ("10.0.0.1", 1), ("0.0.0.0", 1), ("::", 1), ("fe80::1", 1), ("::ffff:192.0.2.7", 1),
     ("localhost", 1), ("", 0), ("127.0.0.1.evil", 1)],
)  # fmt: skip
def test_nobody_elsewhere_is_given_it(client: object) -> None:
    assert not given_key(client=client)
    # What headers claim counts for nothing.
    assert not given_key(("X-Forwarded-For", "127.0.0.1"), ("X-Real-IP", "127.0.0.1"), client=client)


@pytest.mark.parametrize(
    "name",
    ["X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded", "Forwarded", "Via", "X-Real-IP",
     "CF-Connecting-IP", "True-Client-IP", "X-Client-IP"],
)  # fmt: skip
def test_whoever_comes_through_a_proxy_of_this_machine_is_not_given_it(name: str) -> None:
    assert not given_key((name, "203.0.113.9"))
    assert not given_key((name, "127.0.0.1"))
    assert not given_key((name, ""))


@pytest.mark.parametrize(
    "host",
    ["ai.example.org", "evil.example:26839", "127.0.0.1.evil.example", "localhost.evil.example", "192.0.2.7:26839",
     "0.0.0.0:26839", "[::]:26839", "", "localhost@evil.example", "127.0.0.1, evil.example", "[::1", "localhost:"],
)  # fmt: skip
def test_another_name_than_loopbacks_own_is_not_given_it(host: str) -> None:
    """A page whose name somebody points at 127.0.0.1 sends that name; a proxy passes on its own."""
    assert not given_key(host=host)


@pytest.mark.parametrize(("client", "peer"), [("127.0.0.1", "192.0.2.7"), ("192.0.2.7", "127.0.0.1")])
def test_both_the_peer_and_whom_a_trusted_proxy_names_have_to_be_near(client: str, peer: str) -> None:
    scope = {"client": (client, 0), "extensions": {PEER: (peer, 1)}, "headers": [(b"host", US.encode())]}
    assert loopback_credential(scope, KEY) is None
    near = {**scope, "client": ("::1", 1), "extensions": {PEER: ("::1", 1)}}
    assert loopback_credential(near, KEY) == KEY


def test_two_hosts_or_none_are_not_given_it() -> None:
    assert not given_key(("Host", US))
    assert loopback_credential({"client": ("127.0.0.1", 1), "headers": []}, KEY) is None


@pytest.mark.parametrize(
    "headers",
    [
        [("Origin", "https://evil.example")],
        [("Origin", "null")],  # a sandboxed frame, a file
        [("Origin", "http://127.0.0.1:3000")],  # another program's page on this machine
        [("Origin", "https://127.0.0.1:26839")],
        [("Origin", "http://127.0.0.1:26839.evil.example")],
        [("Origin", "http://evil.example/http://127.0.0.1:26839")],
        [("Origin", "app://obsidian.md")],
        [("Origin", "")],
        [("Origin", f"http://{US}"), ("Origin", "https://evil.example")],
        [("Referer", "https://evil.example/page")],
        [("Sec-Fetch-Site", "cross-site")],
        [("Sec-Fetch-Site", "same-site")],
        [("Sec-Fetch-Site", "")],
        [("Sec-Fetch-Site", "same-origin"), ("Origin", "https://evil.example")],
        [("Sec-Fetch-Site", "cross-site"), ("Origin", f"http://{US}")],
        [("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "no-cors"), ("Sec-Fetch-Dest", "image")],
    ],
)
def test_a_page_in_a_browser_of_this_machine_is_not_given_it(headers: list[tuple[str, str]]) -> None:
    assert not given_key(*headers)


def test_our_own_page_is_given_it() -> None:
    own = ("Origin", f"http://{US}"), ("Referer", f"http://{US}/chat?x=1"), ("Sec-Fetch-Site", "same-origin")
    assert given_key(*own)
    assert given_key(("Origin", "HTTP://LOCALHOST:26839"), host="localhost:26839")
    assert given_key(("Sec-Fetch-Site", "none"))  # typed into the address bar


@given(st.text(st.characters(max_codepoint=255), max_size=40))
def test_no_header_of_any_text_breaks_it(text: str) -> None:
    for name in ("Origin", "Referer", "Sec-Fetch-Site", "Authorization", "X-Api-Key"):
        given_key((name, text))
    given_key(host=text)
    given_key(client=(text, 1))


# Where it comes from


def test_it_is_read_from_a_file_or_a_variable(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    assert read_loopback_key(str(file), "", {}) == KEY
    assert read_loopback_key("", "COVEY_LOCAL", {"COVEY_LOCAL": f" {KEY} "}) == KEY
    assert read_loopback_key("", "", {"COVEY_LOCAL": KEY}) == ""


@pytest.mark.parametrize("content", [b"", b"cvy_nonsense\n", b"\xff\xfe", KEY.encode() * 2, f"{KEY}\n{KEY}".encode()])
def test_a_file_without_a_key_is_refused_and_not_shown(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    with pytest.raises(CallError) as refused:
        read_loopback_key(str(file), "", {})
    assert refused.value.code == "invalid"
    assert str(file) in refused.value.message
    assert "cvy_" not in refused.value.message


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    for file, variable in (("a", "B"), (str(tmp_path / "none"), ""), (str(tmp_path), ""), ("", "UNSET")):
        with pytest.raises(CallError) as refused:
            read_loopback_key(file, variable, {})
        assert refused.value.code == "invalid"
