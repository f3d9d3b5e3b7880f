"""Every message that the guide's last part explains is one that the code says."""

import ast
import re
from functools import cache

import pytest
from documents import ROOT, code, read, table

GUIDE = read("docs/guide.md")
PARTS = ("Starting", "Commands", "Requests", "Models", "The dashboard", "Several machines")


def rows(part: str) -> list[list[str]]:
    """Those of the table below a bold line."""
    return table(GUIDE.replace(f"**{part}**\n", f"# When: {part}\n"), f"When: {part}")


def worded(node: ast.JoinedStr) -> str:
    """An f-string with `…` for what is filled in."""
    return "".join(str(one.value) if isinstance(one, ast.Constant) else "…" for one in node.values)


@cache
def said() -> str:
    """Every text of the sources and the templates, a line each."""
    found: list[str] = []
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append(worded(node))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(" ".join(text.split()) for text in found)


def is_said(message: str) -> bool:
    """Whether one text holds the message, its `…` standing for anything."""
    pieces = [re.escape(piece.strip()) for piece in message.split("…") if piece.strip(" .?")]
    return re.search(".*".join(pieces), said()) is not None


@pytest.mark.parametrize("part", PARTS)
def test_every_message_is_one_that_the_code_says(part: str) -> None:
    # A status stands before the word that the code says.
    words = [re.sub(r"^\d{3} ", "", one) for row in rows(part) for one in code(row[0]) if not re.fullmatch(r"\d+", one)]
    assert words
    assert [one for one in words if not is_said(one)] == []


@pytest.mark.parametrize("part", PARTS)
def test_every_message_says_what_to_do(part: str) -> None:
    for row in rows(part):
        assert len(row) == 3, row
        assert row[2], f"{row[0]}: what to do?"
