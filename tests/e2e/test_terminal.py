"""What only a terminal shows: hidden prompts and the conversation, through a real pseudo-terminal."""

import json
import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import COVEY, ECHO, PASSWORD, NodeProcess, install_plugin, place_for, running_node

ANSWER_SECONDS = 20.0


SLOW = """
from contextlib import asynccontextmanager
import msgspec
from covey import BackendPlugin
from covey.contracts.inference import ModelStatus, PullProgress

class Config(msgspec.Struct, frozen=True):
    pass

class Slow:
    name = "slow"
    looked = 0

    def models(self):
        # A tenth further each time that somebody looks.
        self.looked += 1
        if self.looked > 20:
            return (ModelStatus("big", "slow", "loaded"),)
        return (ModelStatus("big", "slow", "loading", progress=self.looked / 20, detail="fetching"),)

    async def generate(self, request, emit):
        raise NotImplementedError

    async def pull(self, model, report):
        for tenth in range(11):
            await report(PullProgress(model, "fetching", tenth * 1_000_000, 10_000_000))
        await report(PullProgress(model, "verifying", 10_000_000, 10_000_000))
        await report(PullProgress(model, "done", 10_000_000, 10_000_000))

@asynccontextmanager
async def open_slow(config, parts):
    yield Slow()

BACKEND = BackendPlugin("slow", Config, open_slow)
"""


# In the background of a script SIGINT is ignored, and what is started there inherits it; a shell at a terminal has it.
AT_A_TERMINAL = ["env", "--default-signal=INT,QUIT"]


class Terminal:
    """A program on a pseudo-terminal. `screen` is everything it has written."""

    def __init__(self, environment: dict[str, str], *arguments: str) -> None:
        self.screen = ""
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [*AT_A_TERMINAL, *COVEY, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**environment, "TERM": "xterm"},
            start_new_session=True,
        )
        os.close(slave)

    def expect(self, text: str) -> None:
        """Read until the text appears after what was expected before."""
        deadline = time.monotonic() + ANSWER_SECONDS
        while text not in self.screen:
            assert time.monotonic() < deadline, self.screen
            if not self._read():
                break
        assert text in self.screen, self.screen
        self.screen = self.screen.partition(text)[2]

    def interrupt_until(self, text: str) -> None:
        """Press Ctrl-C, again where it came between the prompt and the reading of it, until the text appears."""
        for _ in range(int(ANSWER_SECONDS)):
            self.process.send_signal(signal.SIGINT)
            if select.select([self._master], [], [], 1.0)[0]:
                break
        self.expect(text)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def end(self) -> int:
        """The exit code; killed where it does not end by itself."""
        deadline = time.monotonic() + ANSWER_SECONDS
        while self._read():
            if time.monotonic() > deadline:
                self.process.kill()
                pytest.fail(f"it does not end:\n{self.screen}")
        os.close(self._master)
        return self.process.wait(ANSWER_SECONDS)

    def _read(self) -> bool:
        if not select.select([self._master], [], [], 1.0)[0]:
            return True
        try:
            content = os.read(self._master, 65_536)
        except OSError:  # Linux says EIO once the other side is closed
            return False
        self.screen += content.decode(errors="replace")
        return bool(content)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    with running_node(tmp_path_factory.mktemp("node"), config=ECHO + "[backends.echo]\ntoken_seconds = 0.05\n") as one:
        yield one


def test_a_password_is_asked_for_twice_and_never_shown(node: NodeProcess) -> None:
    terminal = Terminal(node.place.environment, "users", "add", "ann", "--admin")
    terminal.expect("Password:")
    terminal.type(PASSWORD + "\n")
    terminal.expect("confirm")
    terminal.type(PASSWORD + "\n")
    terminal.expect("ann may log in now")
    assert terminal.end() == 0
    assert PASSWORD not in terminal.screen


def test_an_interrupted_prompt_exits_with_130(node: NodeProcess) -> None:
    terminal = Terminal(node.place.environment, "users", "add", "bob")
    terminal.expect("Password:")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.end() == 130


def test_a_conversation(node: NodeProcess) -> None:
    terminal = Terminal(node.place.environment, "chat")
    terminal.expect("> ")
    terminal.type("hello there\n")
    terminal.expect("hello there\r\n")  # the echo of what was typed
    terminal.expect("hello there")
    terminal.expect("> ")
    terminal.type("word " * 200 + "end\n")
    terminal.expect("end\r\n")
    terminal.expect("word word")
    terminal.process.send_signal(signal.SIGINT)  # 200 words take 10 s: this stops them
    terminal.expect("> ")
    assert "end" not in terminal.screen
    terminal.interrupt_until("Ctrl-D leaves")
    terminal.type("again\n")
    terminal.expect("again\r\n")
    terminal.expect("again")
    terminal.expect("> ")
    terminal.type("\x04")
    assert terminal.end() == 0


def test_an_interrupted_answer_of_one_question_exits_with_130(node: NodeProcess) -> None:
    terminal = Terminal(node.place.environment, "chat", "echo", "word " * 200)
    terminal.expect("word word")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.end() == 130


def test_tables_fit_a_narrow_terminal(node: NodeProcess, tmp_path: Path) -> None:
    environment = {**node.place.environment, "COLUMNS": "80"}
    terminal = Terminal(environment, "status")
    terminal.expect("roles")
    assert terminal.end() == 0
    assert max(len(line.rstrip()) for line in terminal.screen.splitlines()) <= 80


def test_a_model_that_comes_shows_as_a_bar(tmp_path: Path) -> None:
    environment = install_plugin(tmp_path, source=SLOW, backends="slow")
    config = '[inference]\nbackends = ["slow"]\ndefault_model = "big"\n'
    with place_for(tmp_path, config=config, environment=environment) as place:
        up = Terminal(place.environment, "up", "--listen", "127.0.0.1:0", "--config", str(place.config))
        up.expect("Covey runs as")
        up.expect("big")
        up.expect("fetching")
        up.expect("done")

        pull = Terminal(place.environment, "models", "pull", "bigger")
        pull.expect("bigger")
        pull.expect("done")
        assert pull.end() == 0

        assert place.covey("models", "pull", "bigger").stdout.splitlines() == [
            *(f"bigger: fetching {tenth * 10}% of 10.0 MB" for tenth in range(11)),
            "bigger: verifying 100% of 10.0 MB",
            "bigger: done",
        ]
        lines = [json.loads(line) for line in place.covey("models", "pull", "bigger", "--json").stdout.splitlines()]
        assert len(lines) == 13
        assert lines[5] == {
            "model": "bigger",
            "stage": "fetching",
            "share": 0.5,
            "bytes_total": 10_000_000,
            "already": False,
        }

        up.process.send_signal(signal.SIGINT)
        assert up.end() == 0
