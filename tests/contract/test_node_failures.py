"""Who is said to have failed when a node ends with an error."""

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
import trio

from covey.errors import CallError
from covey.node import RoleCrashed, open_node

NODE = {"node": {"name": "one", "roles": ["auth", "web"]}}


@pytest.fixture(autouse=True)
def runtime(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("r")))


async def plainly(folder: Path, error: Exception) -> None:
    async with open_node(NODE, data=folder):
        raise error


async def from_a_nursery(folder: Path, error: Exception) -> None:
    async def fail() -> None:
        raise error

    async with open_node(NODE, data=folder), trio.open_nursery() as nursery:
        nursery.start_soon(fail)


@pytest.mark.parametrize("run", [plainly, from_a_nursery])
@pytest.mark.parametrize("kind", [ValueError, partial(CallError, "invalid"), partial(RoleCrashed, "auth")])
async def test_the_program_s_own_error_is_no_role_s(
    tmp_path: Path, run: Callable[[Path, Exception], Awaitable[None]], kind: Callable[[Exception], Exception]
) -> None:
    """Mutation: compared with the error itself alone, one out of a nursery is said to be the last role's."""
    error = kind(KeyError("mine"))
    error.__cause__ = OSError("why")
    with pytest.raises(type(error)) as told:
        await run(tmp_path / "data", error)
    assert told.value is error
    assert isinstance(error.__cause__, OSError)
