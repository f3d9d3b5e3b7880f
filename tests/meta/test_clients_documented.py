"""docs/clients.md lists what the tests of clients show, no more and no less."""

import ast

from documents import ROOT, code, read, table


def shown() -> set[tuple[str, str]]:
    """The tests' own lines."""
    found: set[tuple[str, str]] = set()
    for node in ast.walk(ast.parse((ROOT / "tests/e2e/test_clients.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and isinstance(mark.func, ast.Name) and mark.func.id == "shows":
                    what = ast.literal_eval(mark.args[1])
                    found.add((what, node.name))
    return found


def test_the_table_is_what_the_tests_show() -> None:
    rows = table(read("docs/clients.md"), "Clients")
    assert {(row[1], code(row[2])[0]) for row in rows} == shown()
    assert len(rows) >= 30
