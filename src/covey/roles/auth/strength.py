"""Is this password easy to guess? Pure.

In the manner of zxcvbn (Wheeler, USENIX Security 2016) and of NIST SP 800-63B: no rules about which characters to mix,
but what guessers try first is worth little. Every word, run, repetition or year in it counts as `PATTERN_WORTH`
characters however long it is; every other character as one; and the sum must reach `WORTH_MIN`.
"""

import re
import unicodedata
from itertools import pairwise

from covey.contracts.auth import PASSWORD_CHARS_MAX, PASSWORD_CHARS_MIN
from covey.errors import CallError

WORTH_MIN = 8
READ_CHARS_MAX = 64
"""What comes later is not read: a password that needs it is a strange one, and reading takes quadratic time."""
PATTERN_WORTH = 2
PATTERN_CHARS_MIN = 3

_LEET = str.maketrans("013457$@!", "oieastsai")
_ROWS = (
    "qwertyuiop",
    "asdfghjkl",
    "zxcvbnm",
    "qwertzuiop",
    "azertyuiop",
    "1qaz2wsx3edc4rfv5tgb",
    "abcdefghijklmnopqrstuvwxyz",
)
_YEAR = re.compile(r"(?:19|20)\d\d")

# The stems of the passwords that every leak is full of; digits and signs around them are what people add.
_COMMON = """
123456 654321 112233 121212 123123 123321 159753 147258 789456 696969 666666 password passwort passw0rd pass
passwd kennwort motdepasse contrasena senha parola admin administrator root user guest login welcome willkommen
bienvenue hello hallo bonjour letmein access secret geheim master changeme default test testing demo temp monkey
dragon princess sunshine shadow football baseball basketball hockey soccer superman batman spiderman starwars
pokemon naruto iloveyou loveyou love lovely flower cookie cheese coffee summer winter spring autumn sommer
monday friday sunday january march april june july august september october november december michael jordan
jennifer jessica ashley amanda daniel charlie thomas robert andrew joshua matthew nicole michelle hannah george
maggie ginger pepper buster tigger killer freedom whatever trustno internet computer samsung google facebook
linkedin microsoft windows apple iphone android server network covey llama ollama openai chatgpt qwerty qwertz
azerty asdf zxcvbn qazwsx abc abcd abcdef aaa london berlin paris america england mustang ferrari porsche
mercedes corvette harley yankees liverpool arsenal chelsea barcelona juventus metallica nirvana matrix ninja
hunter ranger soldier wizard phoenix thunder silver golden diamond orange purple yellow banana chocolate junior
babygirl angel angels blessed jesus christ heaven forever friends family mother father qwe asd zxc
"""
_WORDS = frozenset(_COMMON.split())


def normalised(password: str) -> str:
    """The password as it is hashed: NFKC (SP 800-63B 3.1.1.2), so that any keyboard's spelling of it is the same."""
    return unicodedata.normalize("NFKC", password)


def check_password(password: str, name: str, *, param: str = "password") -> None:
    """Raise `invalid`, with what to do about it, for a password that is too short, too long or easy to guess.

    `param` is the field that it came in.
    """
    chars = len(normalised(password))
    if chars < PASSWORD_CHARS_MIN:
        raise _refusal(f"The password is too short: use at least {PASSWORD_CHARS_MIN} characters.", param)
    if chars > PASSWORD_CHARS_MAX or len(password) > PASSWORD_CHARS_MAX:
        raise _refusal(f"The password is too long: use at most {PASSWORD_CHARS_MAX} characters.", param)
    if worth(password, name) < WORTH_MIN:
        raise _refusal(
            "The password is easy to guess: use a few unrelated words, without your name, well-known passwords, "
            "years, and runs like 1234 or qwerty.",
            param,
        )


def worth(password: str, name: str) -> int:
    """How many characters' worth of guessing a password takes; the least over its readings.

    `name` is the person's own: whoever guesses tries it first.
    """
    text = normalised(password).lower()
    if (unit := _repeated_unit(text)) is not None:
        text = unit
    text = text[:READ_CHARS_MAX]
    readings = {text, text.translate(_LEET)}
    return min(_worth(reading, name.lower()) for reading in readings)


def _worth(text: str, name: str) -> int:
    words = _WORDS | {name} if len(name) >= PATTERN_CHARS_MIN else _WORDS
    words = words | {word[::-1] for word in words if len(word) > 4}
    # The cheapest cover of every prefix, character by character.
    cheapest = [0]
    for end in range(1, len(text) + 1):
        best = cheapest[end - 1] + (0 if end > 1 and text[end - 1] == text[end - 2] else 1)
        for start in range(max(0, end - 32), end - PATTERN_CHARS_MIN + 1):
            if cheapest[start] + PATTERN_WORTH < best and _is_pattern(text[start:end], words):
                best = cheapest[start] + PATTERN_WORTH
        cheapest.append(best)
    return cheapest[-1]


def _is_pattern(part: str, words: frozenset[str]) -> bool:
    return part in words or _YEAR.fullmatch(part) is not None or _is_run(part)


def _is_run(part: str) -> bool:
    steps = {ord(after) - ord(before) for before, after in pairwise(part)}
    if len(steps) == 1 and steps <= {-1, 0, 1}:
        return True
    return any(part in row or part[::-1] in row for row in _ROWS)


def _repeated_unit(text: str) -> str | None:
    """`abc` for `abcabcabc`, and for `abcabca`."""
    periods = (size for size in range(1, len(text) // 2 + 1) if text[size:] == text[:-size])
    size = next(periods, None)
    return None if size is None else text[:size]


def _refusal(message: str, param: str) -> CallError:
    return CallError("invalid", message, param=param)
