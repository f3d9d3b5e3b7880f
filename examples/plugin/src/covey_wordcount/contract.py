"""What the role says to others. Callers import this module, and nothing else of the package."""

import msgspec

from covey import Unary


class CountWords(msgspec.Struct, frozen=True):
    """The words of `text` are counted as they are separated by white space."""

    text: str


class WordCount(msgspec.Struct, frozen=True):
    """How many."""

    words: int


COUNT_WORDS = Unary("wordcount.count", CountWords, WordCount, access=frozenset({"member", "operator"}), idempotent=True)
"""`too_large` beyond the configured length."""
