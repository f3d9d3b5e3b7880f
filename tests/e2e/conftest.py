"""Writes docs/clients.md anew where `COVEY_CLIENTS_TABLE` names it: only from a run in which every test passed."""

import os
from pathlib import Path

import pytest
from clients import rows_of, table

TABLE = "COVEY_CLIENTS_TABLE"
MARK = "<!-- the table -->\n"


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """At the end of a run in one process."""
    path = os.environ.get(TABLE)
    if not path or exitstatus:
        return
    document = Path(path)
    before, mark, rest = document.read_text(encoding="utf-8").partition(MARK)
    _, _, after = rest.partition(MARK)
    document.write_text(before + mark + table(rows_of(session.items)) + mark + after, encoding="utf-8")
