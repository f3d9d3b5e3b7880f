"""Every relative link and picture in the documents leads somewhere, and so does every anchor."""

import re
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

import pytest
from documents import ROOT, project_files, read

PAGES = sorted(name for name in project_files() if name.endswith(".md"))
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)|<img[^>]* src=\"([^\"]+)\"")


def without_code(text: str) -> str:
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", without_code(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    for found in LINK.finditer(without_code(read(page))):
        link = urlsplit(found[1] or found[2])
        if link.scheme or link.netloc:
            continue
        target = (ROOT / page).parent / unquote(link.path) if link.path else ROOT / page
        assert target.resolve().is_relative_to(ROOT), f"{page}: {link.path} leads out of the project"
        assert target.exists(), f"{page}: there is no {link.path}"
        if link.fragment:
            aim = PurePosixPath(target.resolve().relative_to(ROOT))
            assert link.fragment in anchors(read(str(aim))), f"{page}: {aim} has no heading for #{link.fragment}"
