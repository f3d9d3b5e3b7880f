"""What the tests of clients show, as the table of docs/clients.md."""

from collections.abc import Callable, Iterable
from importlib.metadata import version
from typing import Any, TypeVar

import pytest

Test = TypeVar("Test", bound=Callable[..., Any])
DISTRIBUTIONS = ("openai", "anthropic", "ollama", "llm", "langchain-openai")


def shows(client: str, what: str) -> Callable[[Test], Test]:
    """Mark a test with the line of the table that it stands for."""
    return pytest.mark.client(client, what)


def table(rows: list[tuple[str, str, str]]) -> str:
    """The table: client, what was done with it, the test that does it."""
    lines = ["| client | what | test |", "| --- | --- | --- |"]
    lines += [f"| `{client}` {version(client)} | {what} | `{test}` |" for client, what, test in rows]
    return "\n".join(lines) + "\n"


def rows_of(tests: Iterable[pytest.Item]) -> list[tuple[str, str, str]]:
    """The rows that tests stand for, in their order; a test with parameters is one."""
    rows: dict[tuple[str, str, str], None] = {}
    for test in tests:
        if (mark := test.get_closest_marker("client")) is not None:
            rows[(*mark.args, test.name.partition("[")[0])] = None
    return list(rows)
