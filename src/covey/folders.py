"""Where a user's own files are (XDG on Linux). Light: the command line needs it before anything heavy is imported."""

from pathlib import Path

import platformdirs


def default_data_folder() -> Path:
    """The user's own data folder."""
    return Path(platformdirs.user_data_dir("covey"))


def default_config_path() -> Path:
    """Where a user's own configuration is looked for."""
    return platformdirs.user_config_path("covey") / "roles.toml"
