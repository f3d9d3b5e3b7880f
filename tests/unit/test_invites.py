"""The line that lets a machine in: safe to paste, and a typing error is told from a forgery."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.cluster import invites
from covey.cluster.invites import CHARS_MAX, PREFIX, SECRET_BYTES, Invite, format_invite, parse_invite
from covey.errors import CallError

INVITE = Invite(
    b"n" * 32, "12D3KooW", ("/ip4/192.0.2.1/tcp/26840",), ("inference",), 1_800_000_000, b"s" * SECRET_BYTES
)
INVITES = st.builds(
    Invite,
    st.binary(min_size=32, max_size=32),
    st.text(max_size=60),
    st.lists(st.text(max_size=60), min_size=1, max_size=8).map(tuple),
    st.lists(st.sampled_from(["auth", "inference", "gateway", "web"]), max_size=4).map(tuple),
    st.integers(0, 2**40),
    st.binary(min_size=SECRET_BYTES, max_size=SECRET_BYTES),
)


@given(INVITES)
def test_an_invite_survives_the_journey(invite: Invite) -> None:
    line = format_invite(invite)
    assert line.isascii()
    assert line.isalnum()
    assert line == line.lower()
    assert parse_invite(line) == invite


def test_what_mail_and_people_do_to_a_line_is_harmless() -> None:
    line = format_invite(INVITE)
    assert parse_invite(f"  {line[:40]}\n {line[40:].upper()}\r\n") == INVITE


@given(st.integers(0, 10_000), st.sampled_from("abcdefghijklmnopqrstuvwxyz234567"))
def test_one_wrong_character_is_told_without_the_secret(at: int, character: str) -> None:
    line = format_invite(INVITE)
    at = len(PREFIX) + at % (len(line) - len(PREFIX))
    wrong = line[:at] + character + line[at + 1 :]
    if wrong == line:
        return
    if at == len(line) - 1:
        return  # the last character may hold bits that stand for nothing
    with pytest.raises(CallError) as refused:
        parse_invite(wrong)
    assert refused.value.code == "invalid"
    assert wrong[-40:] not in refused.value.message


def sealed(content: bytes) -> str:
    """As `format_invite` would, of any content."""
    body = invites.base64.b32encode(content + invites._checksum(content)).decode()
    return PREFIX + body.rstrip("=").lower()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("covey up", "begins with covey1"),
        (PREFIX + "a" * CHARS_MAX, "too long"),
        (PREFIX, "copy the whole line"),
        (PREFIX + "!", "copy the whole line"),
        (format_invite(INVITE)[:-8], "copy the whole line"),
        (sealed(b"\xc1"), "another version"),
        (sealed(msgspec.msgpack.encode([1, 2])), "another version"),
        (sealed(b"\x91" * 2_000), "another version"),
        (format_invite(msgspec.structs.replace(INVITE, secret=b"short")), "copy the whole line"),
        (format_invite(msgspec.structs.replace(INVITE, network_id=b"")), "copy the whole line"),
        (format_invite(msgspec.structs.replace(INVITE, addresses=())), "copy the whole line"),
    ],
)
def test_what_is_no_invite_says_why(line: str, words: str) -> None:
    with pytest.raises(CallError, match=words) as refused:
        parse_invite(line)
    assert refused.value.code == "invalid"
