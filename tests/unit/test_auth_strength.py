"""What passwords are refused, and that the refusal says what to do."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.contracts.auth import PASSWORD_CHARS_MAX, PASSWORD_CHARS_MIN
from covey.errors import CallError
from covey.roles.auth.strength import check_password, worth

EASY = [
    "aaaaaaaaaaaa", "abcabcabcabc", "password123", "P@ssw0rd2024!", "Summer2024!", "qwertyuiop1", "1234567890",
    "abcdefghijkl", "zyxwvutsrqpo", "iloveyou123", "alice12345", "ecila12345", "Alice-alice", "drowssap99",
    "0987654321", "!!!!!!!!!!!!", "1q2w3e1q2w3e", "adminadmin", "19991999!!", "aaaabbbbcccc",
]  # fmt: skip
GOOD = [
    "xK9#mQ2v!p",
    "correct horse battery",
    "wachtwoord-van-mij",
    "ünïcödé-långe",
    "パスワードは長いほうがよい",
    "Tr0ub4dor&3",
]


@pytest.mark.parametrize("password", EASY)
def test_what_guessers_try_first_is_refused(password: str) -> None:
    with pytest.raises(CallError, match="easy to guess: use") as caught:
        check_password(password, "alice")
    assert (caught.value.code, caught.value.param) == ("invalid", "password")
    assert password not in caught.value.message


@pytest.mark.parametrize("password", GOOD)
def test_good_passwords_pass(password: str) -> None:
    check_password(password, "alice")


@pytest.mark.parametrize(
    ("password", "said"),
    [
        ("", f"at least {PASSWORD_CHARS_MIN}"),
        ("short", f"at least {PASSWORD_CHARS_MIN}"),
        ("xK9#mQ2v!p" * 26, f"at most {PASSWORD_CHARS_MAX}"),
        ("\ufdfa" * 200, f"at most {PASSWORD_CHARS_MAX}"),  # one character that normalises to eighteen
    ],
)
def test_the_length_is_bounded(password: str, said: str) -> None:
    with pytest.raises(CallError, match=said):
        check_password(password, "alice")


def test_ones_own_name_is_worth_little() -> None:
    assert worth("marmaduke-71", "marmaduke") < worth("marmaduke-71", "alice")


def test_a_short_name_is_not_looked_for() -> None:
    assert worth("xK9#mQ2v!p", "x") == worth("xK9#mQ2v!p", "alice")


@given(st.text(max_size=300), st.text(max_size=32))
def test_it_is_bounded_by_the_length_and_never_fails(password: str, name: str) -> None:
    assert 0 <= worth(password, name) <= 64


@pytest.mark.parametrize(
    "text", ["a" * 256, "ab1" * 85, "".join(chr(33 + at * 7 % 90) for at in range(256)), "1q" * 128]
)
def test_the_longest_passwords_are_judged_quickly(text: str) -> None:
    steps = 0

    def count(*_: object) -> None:
        nonlocal steps
        steps += 1

    # It runs on the event loop. Calls and returns are counted, not seconds: those are other people's, too.
    before = sys.getprofile()
    sys.setprofile(count)
    try:
        worth(text, "alice")
    finally:
        sys.setprofile(before)
    assert 0 < steps < 400_000  # at most some 250,000, which are some 10 ms
