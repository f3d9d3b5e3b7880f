"""Where `templates/`, `static/` and `roles.toml` are: in the wheel, or in the checkout of an editable install."""

from pathlib import Path

from covey.errors import CallError

_PACKAGE = Path(__file__).resolve().parent


def assets_folder() -> Path:
    """The folder that holds the three.

    Raises:
        CallError: `internal` where the installation is incomplete.
    """
    for folder in (_PACKAGE / "_assets", _PACKAGE.parent.parent):
        if (folder / "templates").is_dir() and (folder / "roles.toml").is_file():
            return folder
    raise CallError("internal", "This installation of Covey lacks its pages. Install it again: pip install covey")
