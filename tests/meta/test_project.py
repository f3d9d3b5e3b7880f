"""What must hold for the project as a whole: no trace of somebody's machine, one version, a changelog that goes on."""

import re
from importlib.metadata import version
from pathlib import Path

from documents import ROOT, project_files, read

from covey.version import __version__

# In pieces, so that this file does not hold them.
FOREIGN = re.compile(
    "|".join((r"(?<![\w.~])/" + r"work/(?:main|shared)", r"/tmp" + r"/lab\b", r"\bissues " + r"show\b"))
)
IMAGE_BYTES_MAX = 200_000


def test_no_file_knows_the_machine_it_was_written_on() -> None:
    for name in project_files():
        content = (ROOT / name).read_bytes()
        if b"\0" in content:
            continue
        found = FOREIGN.search(content.decode("utf-8", "replace"))
        assert found is None, f"{name}: {found}"


def test_there_is_one_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(?:(?:a|b|rc)\d+)?", __version__)
    assert version("covey") == __version__
    assert 'path = "src/covey/version.py"' in read("pyproject.toml")


def test_the_changelog_goes_on() -> None:
    releases = re.findall(r"^## (\S+)", read("CHANGELOG.md"), re.MULTILINE)
    assert releases[0] == "Unreleased"
    assert all(re.fullmatch(r"\d+\.\d+\.\d+.*", one) for one in releases[1:])


def test_pictures_are_small() -> None:
    pictures = [ROOT / name for name in project_files() if name.startswith("docs/images/")]
    assert all(picture.stat().st_size < IMAGE_BYTES_MAX for picture in pictures), [Path(one).name for one in pictures]
