"""What somebody probably meant. Pure."""

from collections.abc import Iterable
from difflib import get_close_matches


def suggestion(word: str, known: Iterable[str]) -> str:
    """`; did you mean "x"`, without the full stop, or "" where nothing is near."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f'; did you mean "{close[0]}"' if close else ""
