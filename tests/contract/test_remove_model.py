"""Taking models off a node: real engines, Ollama by script, and the role in front of them."""

import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from engine_world import ensure_model
from faulty_server import reply
from test_embedded import ASK, SMALL, ask, embedded, state_of, until
from test_inference_role import Played, inference, one, plugged
from test_remote_backends import serving

from covey.backends.base import Remover
from covey.backends.catalogue import DEFAULT_MODEL
from covey.contracts.inference import REMOVE_MODEL, ChatDelta, RemovedModel, RemoveModel
from covey.errors import CallError

OTHER = msgspec.structs.replace(ASK, model="other")
NO_DEFAULT = msgspec.structs.replace(SMALL, default_model="")


@pytest.fixture
async def folder(tmp_path: Path) -> Path:
    shutil.copy(await ensure_model(), tmp_path / "other.gguf")
    return tmp_path


@pytest.mark.model
async def test_a_model_goes_with_its_engine_but_not_while_it_answers(folder: Path) -> None:
    size = (folder / "other.gguf").stat().st_size
    async with embedded(NO_DEFAULT, folder) as backend, trio.open_nursery() as nursery:
        begun = trio.Event()

        async def take(delta: ChatDelta) -> None:
            begun.set()

        nursery.start_soon(backend.generate, msgspec.structs.replace(OTHER, max_tokens=200), take)
        await begun.wait()
        with pytest.raises(CallError, match="is answering now") as refused:
            await backend.remove("other")
        assert refused.value.code == "conflict"
        nursery.cancel_scope.cancel()
    async with embedded(NO_DEFAULT, folder) as backend:
        (folder / "other.gguf.checked").write_text("{}")
        assert (await ask(backend, OTHER)).text
        assert state_of(backend, "other") == "loaded"
        engine = backend.engines.find("other")
        assert engine is not None
        assert engine.child is not None
        process = engine.child.process
        assert await backend.remove("other") == size
        with trio.fail_after(10):
            await process.wait()
        assert [*folder.iterdir()] == []
        assert backend.models() == ()
        for gone in (backend.remove("other"), ask(backend, OTHER)):
            with pytest.raises(CallError) as refused:
                await gone
            assert refused.value.code == "not_found"


@pytest.mark.model
async def test_the_default_model_stays(folder: Path) -> None:
    (folder / "other.gguf").rename(folder / f"{DEFAULT_MODEL}.gguf")
    async with embedded(SMALL, folder) as backend:
        with pytest.raises(CallError, match="default_model, restart the node") as refused:
            await backend.remove(DEFAULT_MODEL)
        assert refused.value.code == "conflict"
        assert (await ask(backend)).text


async def test_a_model_that_is_being_fetched_stays(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:

        async def silent(stream: trio.SocketStream) -> None:
            await trio.sleep_forever()

        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, silent, [listener])
        port = listener.socket.getsockname()[1]
        config = msgspec.structs.replace(
            NO_DEFAULT, models=("hf:owner/repo/other.gguf",), hugging_face_url=f"http://127.0.0.1:{port}"
        )
        async with embedded(config, tmp_path) as backend:
            with pytest.raises(CallError, match="not on this node's disk"):
                await backend.remove("other")
            with pytest.raises(CallError, match="is being fetched"):
                await ask(backend, OTHER)
            with trio.fail_after(10):
                await until(lambda: backend._downloader.transfer("other") is not None)
            with pytest.raises(CallError, match="is being fetched: wait") as refused:
                await backend.remove("other")
            assert refused.value.code == "conflict"
        nursery.cancel_scope.cancel()


async def test_a_folder_that_may_not_be_written_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, **_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    async with embedded(NO_DEFAULT, folder) as backend:
        monkeypatch.setattr(Path, "unlink", refuse)
        with pytest.raises(CallError, match="cannot be deleted: Permission denied") as refused:
            await backend.remove("other")
        assert refused.value.code == "storage"
        monkeypatch.undo()
        assert state_of(backend, "other") == "on_disk"


async def test_ollama_removes_for_itself() -> None:
    async with serving("ollama", reply(200, b"")) as (backend, server):
        assert isinstance(backend, Remover)
        server.models = b'{"models": []}'
        assert await backend.remove("m") == 0
        path, _, body = server.requests[-1]
        assert (path, msgspec.json.decode(body)["model"]) == ("/api/delete", "m")
        assert backend.models() == ()
    async with serving("ollama", reply(404, b'{"error": "model \'m\' not found"}')) as (backend, _):
        assert isinstance(backend, Remover)
        with pytest.raises(CallError) as refused:
            await backend.remove("m")
        assert refused.value.code == "not_found"


class Removing(Played):
    """One that removes."""

    async def remove(self, model: str) -> int:
        self.statuses = ()
        return 7


async def test_the_back_end_that_answers_for_a_model_removes_it() -> None:
    async def play(*_: Any) -> None: ...

    async with inference(plugged(Removing(play, one()))) as (_, parts):
        operator = parts.bus._bus.stamped("operator")
        assert await operator.call(REMOVE_MODEL, RemoveModel("m")) == RemovedModel("m", "played", 7)
        with pytest.raises(CallError) as refused:
            await operator.call(REMOVE_MODEL, RemoveModel("m"))
        assert refused.value.code == "not_found"
        with pytest.raises(CallError) as refused:
            await parts.bus._bus.stamped("web").call(REMOVE_MODEL, RemoveModel("m"))
        assert refused.value.code == "denied"
    async with inference(plugged(Played(play, one()))) as (_, parts):
        with pytest.raises(CallError, match="which removes no models") as refused:
            await parts.bus._bus.stamped("operator").call(REMOVE_MODEL, RemoveModel("m"))
        assert refused.value.code == "unsupported"
