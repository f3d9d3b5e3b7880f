"""Every test that SECURITY.md names as proof exists."""

import re

import pytest
from documents import read, table

SECTIONS = re.findall(r"^### (.+)$", read("SECURITY.md"), re.MULTILINE)
PROOF = re.compile(r"`([\w/]+\.py)::(test_\w+)`")


def test_it_has_sections() -> None:
    assert len(SECTIONS) > 5


@pytest.mark.parametrize("section", SECTIONS)
def test_every_promise_is_shown_by_a_test_that_exists(section: str) -> None:
    for promise, proofs in table(read("SECURITY.md"), section):
        found = PROOF.findall(proofs)
        assert found, f"nothing shows that {promise}"
        assert PROOF.sub("", proofs).strip(" ,") == "", f"what is {proofs}?"
        for path, name in found:
            assert re.search(rf"^ *(?:async )?def {name}\(", read(f"tests/{path}"), re.MULTILINE), f"{path}::{name}"
