"""How a node ends: by signals at every moment of its life, and with a role that does not behave."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import NodeProcess, Place, install_plugin, place_for

ROLE = """
from contextlib import asynccontextmanager
import msgspec, trio
from covey import Role, Parts

class Config(msgspec.Struct, frozen=True):
    pass

@asynccontextmanager
async def open_odd(config, parts):
    print("odd is opening", flush=True)
{body}

ROLE = Role("odd", Config, open_odd)
"""
CRASHES_OPENING = """
    raise RuntimeError("the cable is loose")
    yield
"""
CRASHES_RUNNING = """
    async def crash():
        await trio.sleep(0.2)
        raise RuntimeError("the cable came loose")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(crash)
        yield
        nursery.cancel_scope.cancel()
"""
OPENS_FOR_EVER = """
    await trio.sleep_forever()
    yield
"""
CLOSES_FOR_EVER = """
    try:
        yield
    finally:
        print("odd is closing", flush=True)
        with trio.CancelScope(shield=True):
            await trio.sleep_forever()
"""
CLOSES_SLOWLY = """
    yield
    print("odd is closing", flush=True)
    await trio.sleep_forever()
"""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with place_for(tmp_path, config='[node]\nroles = ["auth", "odd"]\nshutdown_seconds = 0.5\n') as one:
        yield one


@pytest.fixture
def odd(request: pytest.FixtureRequest, place: Place, tmp_path: Path) -> Iterator[NodeProcess]:
    environment = install_plugin(tmp_path, source=ROLE.format(body=request.param), roles="odd")
    node = place.start(environment=environment)
    try:
        yield node
    finally:
        node.end()


@pytest.mark.parametrize("odd", [CRASHES_OPENING, CRASHES_RUNNING], indirect=True, ids=["opening", "running"])
def test_a_role_that_crashes_ends_the_node_with_its_cause(odd: NodeProcess) -> None:
    assert odd.wait() == 1
    said = odd.errors.read_text()
    assert "role odd failed" in said
    assert "RuntimeError: the cable" in said
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) == 1
    assert not odd.ready_file.exists()


@pytest.mark.parametrize("odd", [OPENS_FOR_EVER], indirect=True, ids=[""])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_node_that_is_still_starting_stops_at_once(odd: NodeProcess, number: int) -> None:
    odd.wait_said("odd is opening")
    assert odd.stop(number) == 0
    assert odd.errors.read_text() == ""


@pytest.mark.parametrize("module", ["covey.cli.running", "trio"])
def test_a_signal_while_the_libraries_load_is_not_lost(place: Place, module: str) -> None:
    place.config.unlink()
    node = place.start(environment={"PYTHONPROFILEIMPORTTIME": "1"})  # standard error tells what has been imported
    try:
        node.wait_said(f" {module}\n")
        assert node.stop() == 0
        assert not node.ready_file.exists()
        assert "Covey runs" not in node.output.read_text()
    finally:
        node.end()


@pytest.mark.parametrize("odd", [CLOSES_SLOWLY], indirect=True, ids=[""])
def test_a_role_that_does_not_close_is_cut_within_the_grace_period(odd: NodeProcess) -> None:
    odd.wait_ready()
    began = time.monotonic()
    assert odd.stop() == 0
    assert time.monotonic() - began < 5
    assert "did not stop in time" in odd.said()
    assert not odd.ready_file.exists()


@pytest.mark.parametrize("odd", [CLOSES_FOR_EVER], indirect=True, ids=[""])
def test_a_second_interrupt_does_not_wait(odd: NodeProcess) -> None:
    odd.wait_ready()
    odd.process.send_signal(signal.SIGINT)
    odd.wait_said("odd is closing")
    assert odd.process.poll() is None
    assert odd.stop(signal.SIGINT) == 1
    assert not odd.ready_file.exists()


def test_a_role_that_is_not_installed_is_one_line(place: Place) -> None:
    node = place.start()
    try:
        assert node.wait() == 1
        assert "no role 'odd'" in node.errors.read_text()
    finally:
        node.end()
