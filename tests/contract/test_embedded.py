"""The embedded back end over real engines: what goes wrong with files, processes and time."""

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio
from engine_world import Answer, ensure_model, models_folder, process

from covey.backends import child_process, embedded_worker, engine
from covey.backends.base import BackendParts
from covey.backends.catalogue import DEFAULT_MODEL
from covey.backends.child_process import cause_of_death
from covey.backends.embedded import EmbeddedBackend, EmbeddedConfig, open_embedded
from covey.backends.engine import Child, socket_folder
from covey.contracts.inference import ChatDelta, ChatRequest, Message, PullProgress, Sampling
from covey.errors import CallError
from covey.telemetry.metrics import Metrics

pytestmark = pytest.mark.model
SMALL = EmbeddedConfig(context_tokens=512, slots=1, threads=1, cache_mib=0)
ASK = ChatRequest(
    DEFAULT_MODEL, (Message("user", "What is the capital of France?"),), 12, (), Sampling(temperature=0.0)
)


@asynccontextmanager
async def embedded(config: EmbeddedConfig = SMALL, folder: Path | None = None) -> AsyncIterator[EmbeddedBackend]:
    await ensure_model()
    async with open_embedded(config, BackendParts(folder or models_folder(), Metrics())) as backend:
        assert isinstance(backend, EmbeddedBackend)
        yield backend


async def ask(backend: EmbeddedBackend, request: ChatRequest = ASK) -> Answer:
    answer = Answer()
    await backend.generate(request, answer.take)
    return answer


async def child_of(backend: EmbeddedBackend, model: str = DEFAULT_MODEL) -> Child:
    with trio.fail_after(30):
        while True:
            found = backend.engines.find(model)
            if found and found.child:
                return found.child
            await trio.sleep(0.01)


def state_of(backend: EmbeddedBackend, model: str = DEFAULT_MODEL) -> str:
    return next(status.state for status in backend.models() if status.name == model)


@pytest.fixture
async def own_folder(tmp_path: Path) -> Path:
    """A folder with a copy of the model, to be damaged."""
    shutil.copy(await ensure_model(), tmp_path / f"{DEFAULT_MODEL}.gguf")
    return tmp_path


async def test_the_default_model_answers_without_a_system_prompt_of_the_callers() -> None:
    async with embedded() as backend:
        answer = await ask(backend)  # waits for the engine, which is just coming up
        assert "Paris" in answer.text
        assert state_of(backend) == "loaded"
        assert "Paris" in (await ask(backend, msgspec.structs.replace(ASK, model="smollm2"))).text


async def test_a_prompt_longer_than_the_context_is_refused_in_the_known_words() -> None:
    async with embedded() as backend:
        words = Message("user", " ".join(f"word{number}" for number in range(400)))
        with pytest.raises(CallError, match="This model's maximum context length is 512 tokens") as caught:
            await ask(backend, msgspec.structs.replace(ASK, messages=(words,)))
        assert (caught.value.code, caught.value.reason) == ("invalid", "context_length_exceeded")


async def test_a_request_does_not_wait_for_ever_for_an_engine() -> None:
    async with embedded(msgspec.structs.replace(SMALL, warm_up_seconds=0.0)) as backend:
        with pytest.raises(CallError) as caught:
            await ask(backend)
        assert (caught.value.code, caught.value.reason) == ("loading", "model_loading")
        assert caught.value.retry_after_seconds
        await child_of(backend)
        assert (await ask(backend)).text


async def test_a_model_that_is_not_there_is_fetched_and_says_how_far_it_is(tmp_path: Path) -> None:
    config = msgspec.structs.replace(SMALL, default_model="", models=("hf:owner/repo/other.gguf",))
    config = msgspec.structs.replace(config, hugging_face_url="http://127.0.0.1:9")
    async with embedded(config, tmp_path) as backend:
        with pytest.raises(CallError) as caught:
            await ask(backend, msgspec.structs.replace(ASK, model="other"))
        assert caught.value.code == "loading"
        with trio.fail_after(10):
            await until(lambda: state_of(backend, "other") == "failed")
        assert "cannot be reached" in backend.models()[0].detail


# Files


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty", "rubbish"])
async def test_a_damaged_model_is_told_and_never_run(own_folder: Path, damage: str) -> None:
    path = own_folder / f"{DEFAULT_MODEL}.gguf"
    with path.open("r+b") as file:
        if damage == "flipped":
            file.seek(50_000_000)
            file.write(b"\x00\xff" * 8)
        else:
            file.truncate({"truncated": 60_000_000, "empty": 0, "rubbish": 100}[damage])
            if damage == "rubbish":
                file.write(b"rubbish")
    async with embedded(folder=own_folder) as backend:
        with pytest.raises(CallError, match=f"covey models pull {DEFAULT_MODEL}") as caught:
            await ask(backend)
        assert (caught.value.code, caught.value.reason) == ("storage", "corrupt_model")
        assert state_of(backend) == "failed"


async def test_a_checked_file_is_not_read_again_until_it_changes(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with embedded(folder=own_folder) as backend:
        await ask(backend)
    reads: list[Path] = []

    async def reading(path: Path) -> str:
        reads.append(path)
        return "0" * 64

    monkeypatch.setattr("covey.backends.model_folder.sha256_of", reading)
    async with embedded(folder=own_folder) as backend:
        await ask(backend)
    assert reads == []
    path = own_folder / f"{DEFAULT_MODEL}.gguf"
    os.utime(path, ns=(1, 1))
    async with embedded(folder=own_folder) as backend:
        with pytest.raises(CallError):
            await ask(backend)
    assert reads


async def test_pulling_what_is_there_asks_nobody_and_leaves_the_engine_alone(own_folder: Path) -> None:
    reports: list[PullProgress] = []

    async def report(progress: PullProgress) -> None:
        reports.append(progress)
        assert state_of(backend) == "loaded"

    config = msgspec.structs.replace(SMALL, index_url="http://127.0.0.1:9")
    async with embedded(config, own_folder) as backend:
        child = await child_of(backend)
        await backend.pull(DEFAULT_MODEL, report)
        assert (reports[-1].stage, reports[-1].already) == ("done", True)
        assert await child_of(backend) is child
        assert (await ask(backend)).text


async def test_a_file_that_somebody_put_there_is_a_model_too(own_folder: Path) -> None:
    async with embedded(msgspec.structs.replace(SMALL, default_model=""), own_folder) as backend:
        (own_folder / f"{DEFAULT_MODEL}.gguf").rename(own_folder / "My_Model.v2.gguf")
        assert (await ask(backend, msgspec.structs.replace(ASK, model="My_Model.v2"))).text
        assert state_of(backend, "My_Model.v2") == "loaded"


async def test_a_malformed_file_costs_its_model_alone(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "PAUSE_SECONDS_MAX", 0.01)
    (own_folder / "bad.gguf").write_bytes(b"GGUF" + b"\x03\x00\x00\x00" + b"\xff" * 5_000)
    async with embedded(folder=own_folder) as backend:
        with pytest.raises(CallError) as caught:
            await ask(backend, msgspec.structs.replace(ASK, model="bad"))
        assert (caught.value.code, caught.value.reason) == ("upstream", "engine_failed")
        assert "covey models pull bad" in caught.value.message
        assert state_of(backend, "bad") == "failed"
        assert "Paris" in (await ask(backend)).text


# Memory and time


async def test_engines_make_room_and_go_to_sleep(own_folder: Path) -> None:
    (own_folder / "second.gguf").hardlink_to(own_folder / f"{DEFAULT_MODEL}.gguf")
    config = msgspec.structs.replace(SMALL, default_model="", loaded_max=1, keep_alive_seconds=100.0)
    async with embedded(config, own_folder) as backend:
        second = msgspec.structs.replace(ASK, model="second")
        await ask(backend)
        child = (await child_of(backend)).process
        await ask(backend, second)
        assert child.returncode is not None
        assert state_of(backend) == "on_disk"

        async with trio.open_nursery() as nursery:
            started = trio.Event()

            async def hold(delta: ChatDelta) -> None:
                started.set()
                await trio.sleep_forever()

            nursery.start_soon(backend.generate, second, hold)
            await started.wait()
            with pytest.raises(CallError) as caught:
                await ask(backend)
            assert caught.value.code == "no_capacity"
            await backend.engines.sweep(trio.current_time() + 1_000)
            assert state_of(backend, "second") == "loaded"
            nursery.cancel_scope.cancel()
        await backend.engines.sweep(trio.current_time() + 1_000)
        assert state_of(backend, "second") == "on_disk"


# Processes


async def test_nobody_else_can_reach_the_engine_and_it_knows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    async with embedded() as backend:
        child = (await child_of(backend)).process
        environment = Path(f"/proc/{child.pid}/environ").read_bytes()
        assert b"OMP_WAIT_POLICY=PASSIVE" in environment
        assert b"sk-secret" not in environment
        assert os.getsid(child.pid) == child.pid  # Ctrl-C in a terminal does not reach it
        assert not listens(child.pid)


def listens(pid: int) -> bool:
    """Whether a process holds a listening TCP socket."""
    inodes = {
        line.split()[9]
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
        if line.split()[3] == "0A"
    }
    held = {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
    return any(f"socket:[{inode}]" in held for inode in inodes)


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGSTOP])
async def test_leaving_stops_the_engine_even_one_that_hangs(
    stop: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_process, "STOP_SECONDS_MAX", 0.2)
    async with embedded() as backend:
        child = (await child_of(backend)).process
        child.send_signal(stop)
    assert child.returncode is not None


async def test_an_engine_that_hangs_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "HEALTH_SECONDS_MAX", 0.2)
    async with embedded(msgspec.structs.replace(SMALL, idle_seconds=0.5)) as backend:
        count = 0

        async def take(delta: ChatDelta) -> None:
            nonlocal count
            count += 1
            if count == 3:
                (await child_of(backend)).process.send_signal(signal.SIGSTOP)

        # It must not be through with it before it is stopped.
        endless = Message("user", "Write the numbers 1, 2, 3 and so on, up to 10000.")
        with pytest.raises(CallError) as caught:
            await backend.generate(msgspec.structs.replace(ASK, messages=(endless,), max_tokens=400), take)
        assert caught.value.code == "upstream"
        assert "Paris" in (await ask(backend)).text


async def test_a_killed_parent_leaves_no_orphan() -> None:
    """`kill -9` of the node ends its engines, and their sockets' folders."""
    model = await ensure_model()
    runtime = Path(tempfile.mkdtemp(prefix="cvy"))  # short: a socket's path must be
    script = (
        "import sys, trio\nfrom pathlib import Path\n"
        "from covey.backends.base import BackendParts\nfrom covey.backends.embedded import *\n"
        "async def main():\n"
        "    parts = BackendParts(Path(sys.argv[1]), Metrics())\n"
        "    async with open_embedded(EmbeddedConfig(threads=1), parts) as backend:\n"
        "        while not (e := backend.engines.find(DEFAULT_MODEL)) or not e.child: await trio.sleep(0.01)\n"
        "        print(e.child.process.pid, flush=True)\n"
        "        await trio.sleep_forever()\n"
        "trio.run(main)\n"
    )
    command = [sys.executable, "-c", script, str(model.parent)]
    async with process(command, XDG_RUNTIME_DIR=str(runtime)) as parent:
        assert parent.stdout is not None
        with trio.fail_after(60):
            pid = int(await parent.stdout.receive_some())
        assert list(runtime.glob("covey-engine-*/engine.sock"))
        assert all(folder.stat().st_mode & 0o777 == 0o700 for folder in runtime.iterdir())
    with trio.fail_after(10):
        await until(lambda: not is_alive(pid))
        await until(lambda: not list(runtime.iterdir()))
    runtime.rmdir()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


async def until(true: Callable[[], bool]) -> None:
    """Wait for something outside this process."""
    while not true():  # noqa: ASYNC110
        await trio.sleep(0.01)


@pytest.mark.parametrize(
    ("status", "word"),
    [
        (-signal.SIGILL, "AVX2"),
        (-signal.SIGKILL, "memory"),
        (-signal.SIGSEGV, "SIGSEGV"),
        (-99, "signal 99"),
        (1, "why"),
    ],
)
def test_the_cause_of_death_is_told_in_words_that_help(status: int, word: str) -> None:
    assert word in cause_of_death(status, "why")


async def test_a_processor_without_avx2_costs_the_model_and_not_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that dies like there, before it says a word."""
    worker = tmp_path / "worker.py"
    worker.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n")
    monkeypatch.setattr(embedded_worker, "__file__", str(worker))
    monkeypatch.setattr(engine, "PAUSE_SECONDS_MAX", 0.01)
    async with embedded() as backend:
        with pytest.raises(CallError, match="AVX2"):
            await ask(backend)


def test_a_socket_never_gets_a_path_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    folder = socket_folder()
    folder.rmdir()
    assert len(str(folder / "engine.sock")) < 108
    assert not folder.is_relative_to(long)
