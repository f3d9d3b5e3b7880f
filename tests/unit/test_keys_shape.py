"""The shape of API keys: what is minted parses, and nothing else does."""

import hashlib
import re
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from covey.contracts.keys import ALPHABET, KEY_CHARS, KEY_ID_CHARS, MINT_BYTES, base62, mint, parse

randomness = st.binary(min_size=MINT_BYTES, max_size=MINT_BYTES)


@given(randomness)
@example(bytes(MINT_BYTES))
@example(b"\xff" * MINT_BYTES)
def test_a_minted_key_parses_to_its_own_id_and_digest(source: bytes) -> None:
    key = mint(source)
    parsed = parse(key.text)
    assert parsed is not None
    assert (parsed.key_id, parsed.digest) == (key.key_id, key.digest)
    assert key.digest == hashlib.sha256(key.text.encode()).digest()
    assert len(key.text) == KEY_CHARS
    assert re.fullmatch(r"cvy_[0-9A-Za-z]{12}_[0-9A-Za-z]{32}_[0-9A-Za-z]{6}", key.text)
    assert key.prefix == "cvy_" + key.key_id


@given(randomness, st.integers(0, KEY_CHARS - 1), st.sampled_from(ALPHABET + "_-é\n "))
def test_one_wrong_character_never_parses(source: bytes, at: int, character: str) -> None:
    text = mint(source).text
    altered = text[:at] + character + text[at + 1 :]
    assert (parse(altered) is None) == (altered != text)


@given(randomness, st.data())
def test_two_swapped_characters_never_parse(source: bytes, data: st.DataObject) -> None:
    text = mint(source).text
    at = data.draw(st.integers(0, len(text) - 2))
    swapped = text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    assert (parse(swapped) is None) == (swapped != text)


@given(st.text(max_size=80))
@example("")
@example("cvy_")
@example("cvy_" + "0" * 12 + "_" + "0" * 32 + "_" + "0" * 6)
def test_arbitrary_text_does_not_parse(text: str) -> None:
    assert parse(text) is None


@pytest.mark.parametrize("frame", ["{}\n", "\n{}", " {}", "{} ", "Bearer {}", "{}{}", "\0{}"])
def test_nothing_may_surround_a_key(frame: str) -> None:
    text = mint(bytes(range(MINT_BYTES))).text
    assert parse(frame.format(text, text)) is None


def test_digits_of_other_scripts_are_no_digits() -> None:
    text = mint(bytes(MINT_BYTES)).text
    assert parse(text.replace("0", "٠")) is None


@pytest.mark.parametrize("count", [0, MINT_BYTES - 1, MINT_BYTES + 1])
def test_minting_wants_exactly_its_randomness(count: int) -> None:
    with pytest.raises(ValueError, match="random bytes"):
        mint(bytes(count))


@given(st.integers(0, 62**8 - 1))
def test_base62_is_a_number_in_62_digits(number: int) -> None:
    digits = base62(number, 8)
    assert len(digits) == 8
    value = 0
    for digit in digits:
        value = value * 62 + ALPHABET.index(digit)
    assert value == number


def test_the_alphabet_is_62_letters_and_digits() -> None:
    assert set(ALPHABET) == set(string.ascii_letters + string.digits)
    assert len(ALPHABET) == 62
    assert KEY_ID_CHARS == 12


def test_a_key_of_old_still_parses() -> None:
    """Golden: the shape of keys that are out there must never change."""
    key = mint(bytes(range(MINT_BYTES)))
    assert key.text == GOLDEN
    assert parse(GOLDEN) is not None


GOLDEN = "cvy_xkEgOGusQGwp_7u7ED6UzpF5eHPrBI5AHumY7UBpOQIJz_2x2lwh"
