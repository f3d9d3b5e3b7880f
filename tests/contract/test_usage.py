"""Usage over the bus: who sees whose, and how the books of several gateways become one."""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from covey.bus.bus import Bus, BusHandle
from covey.bus.caller import Caller
from covey.bus.replies import Emit
from covey.contracts.auth import AUTHORIZE, Actor, AuthorizeActor, Identity
from covey.contracts.method import Party
from covey.contracts.usage import (
    GROUPS_MAX,
    USAGE,
    USAGE_RECORDS,
    AskUsage,
    Dimension,
    UsageRecord,
    UsageRow,
    UsageRows,
    UsageSums,
)
from covey.errors import CallError
from covey.roles.gateway.usage import UsageBook
from covey.roles.gateway.usage_service import UsageService
from covey.store.memory import MemoryStore
from covey.store.writer import open_store
from covey.telemetry.metrics import Metrics
from covey.testing import ALICE, BOB, MEMBER, alice_and_bob
from covey.transport.memory import MemoryNetwork

NOW = 1_764_072_000.0
PEOPLE: Mapping[str, Identity] = {
    "ada": Identity("session:ada", "ada", "admin"),
    "grace": Identity("session:grace", "grace"),
    "grace-key": Identity("k1", "grace"),
    "ada-key": Identity("k9", "ada"),
    "admin-key": Identity("k8", "ada", "admin"),
}


class FixedClock:
    def now(self) -> float:
        return NOW


async def authorize(caller: Caller, request: AuthorizeActor) -> Identity:
    identity = PEOPLE.get(request.actor.session or request.actor.key)
    if identity is None:
        raise CallError("unauthenticated", "Not logged in, or no longer: log in.", reason="session")
    return identity


def record(owner: str, key: str, number: int, **more: Any) -> UsageRecord:
    return UsageRecord(NOW + number, f"{owner}-{number}", key, owner, "tiny", "n", "/v1/x", "ok", 10, 5, **more)


def fill(book: UsageBook, *, grace: int, ada: int) -> None:
    for number in range(grace):
        book.record(record("grace", "k1" if number % 2 else "session:grace", number))
    for number in range(ada):
        book.record(record("ada", "k9", number))


@asynccontextmanager
async def gateways(
    *, network: MemoryNetwork | None = None, auth_at: str = "alice", granted: frozenset[Party] = MEMBER
) -> AsyncGenerator[tuple[Bus, Bus, UsageBook, UsageBook], None]:
    """Alice and Bob are gateways; who else they are is in `auth_at`."""
    async with AsyncExitStack() as stack:
        books: list[UsageBook] = []
        for _ in range(2):
            store = await stack.enter_async_context(open_store(MemoryStore(), Metrics(), in_thread=False))
            books.append(UsageBook(store, FixedClock(), Metrics()))

        def serve(bus: BusHandle, book: UsageBook, name: str) -> None:
            stamped = bus._bus.stamped("gateway")
            UsageService(stamped, book).serve()
            if name == auth_at:
                bus._bus.stamped("auth").serve(AUTHORIZE, authorize)

        alice, bob = await stack.enter_async_context(
            alice_and_bob(
                alice=lambda bus: serve(bus, books[0], "alice"),
                bob=lambda bus: serve(bus, books[1], "bob"),
                network=network,
                granted=granted,
            )
        )
        yield alice, bob, books[0], books[1]


@asynccontextmanager
async def alone(bob: Callable[[BusHandle], None]) -> AsyncGenerator[tuple[Bus, UsageBook], None]:
    """Alice is an honest gateway; Bob is played by the test."""
    async with open_store(MemoryStore(), Metrics(), in_thread=False) as store:
        book = UsageBook(store, FixedClock(), Metrics())

        def serve(bus: BusHandle) -> None:
            UsageService(bus._bus.stamped("gateway"), book).serve()

        async with alice_and_bob(alice=serve, bob=bob) as (alice, _):
            yield alice, book


async def rows(
    bus: BusHandle, actor: Actor | None = None, by: tuple[Dimension, ...] = (), **more: Any
) -> tuple[dict[tuple[str, ...], int], tuple[str, ...]]:
    found: list[UsageRow] = []
    silent: tuple[str, ...] = ()
    ask = AskUsage(actor or Actor(), more.pop("since", NOW - 60), more.pop("until", NOW + 3600), by, **more)
    async with bus.stream(USAGE, ask) as replies:
        async for reply in replies:
            found += reply.rows
            silent += reply.silent
    return {row.group: row.sums.requests for row in found}, silent


async def records(bus: BusHandle, actor: Actor | None = None, **more: Any) -> tuple[list[str], tuple[str, ...]]:
    found: list[UsageRecord] = []
    silent: tuple[str, ...] = ()
    async with bus.stream(USAGE_RECORDS, AskUsage(actor or Actor(), NOW - 60, NOW + 3600, **more)) as replies:
        async for reply in replies:
            found += reply.records
            silent += reply.silent
    return [one.request_id for one in found], silent


async def test_both_gateways_books_are_one(autojump_clock: trio.testing.MockClock) -> None:
    async with gateways() as (alice, bob, here, there):
        fill(here, grace=3, ada=1)
        fill(there, grace=2, ada=500)
        for bus in (alice, bob):
            stamped = bus.stamped("web")
            assert await rows(stamped, Actor("ada"), ("user",)) == ({("ada",): 501, ("grace",): 5}, ())
            assert await rows(stamped, Actor("grace"), ("user",)) == ({("grace",): 5}, ())
            ids, silent = await records(stamped, Actor("ada"))
            assert (len(ids), silent) == (506, ())
            assert sorted((await records(stamped, Actor("grace")))[0]) == sorted(
                [f"grace-{number}" for number in (0, 1, 2, 0, 1)]
            )


async def test_the_operator_of_an_auth_node_sees_all_everywhere(autojump_clock: trio.testing.MockClock) -> None:
    async with gateways() as (alice, bob, here, there):
        fill(here, grace=1, ada=1)
        fill(there, grace=1, ada=1)
        assert await rows(alice.stamped("operator"), by=("user",)) == ({("ada",): 2, ("grace",): 2}, ())
        assert len((await records(alice.stamped("operator")))[0]) == 4
        # Bob is no auth node: what he says of his operator is worth nothing to Alice, as with everything else.
        assert await rows(bob.stamped("operator"), by=("user",)) == ({("ada",): 1, ("grace",): 1}, ("alice",))
        assert (await records(bob.stamped("operator")))[1] == ("alice",)
        assert await rows(bob.stamped("operator"), Actor(key="admin-key")) == ({(): 4}, ())


@pytest.mark.parametrize("stamp", ["web", "gateway", "member", "inference"])
async def test_nobody_is_nobody(autojump_clock: trio.testing.MockClock, stamp: Party) -> None:
    async with gateways() as (alice, bob, here, _):
        fill(here, grace=1, ada=1)
        with pytest.raises(CallError) as refused:  # far, from one who is no auth node
            await rows(_to(bob, stamp))
        assert refused.value.code == "unauthenticated"
        with pytest.raises(CallError) as refused:
            await records(_to(bob, stamp))
        assert refused.value.code == "unauthenticated"
        with pytest.raises(CallError) as refused:  # near
            await rows(alice.stamped(stamp), here=True)
        assert refused.value.code == "unauthenticated"


def _to(bus: Bus, stamp: Party) -> BusHandle:
    """A handle whose streams go to Alice alone."""

    class Handle(BusHandle):
        def stream(self, method: Any, request: Any, **more: Any) -> Any:
            return super().stream(method, request, to=ALICE, **more)

    return Handle(bus, stamp)


async def test_an_auth_nodes_dashboard_speaks_for_no_operator(autojump_clock: trio.testing.MockClock) -> None:
    async with gateways() as (alice, _, _, there):
        fill(there, grace=1, ada=1)
        with pytest.raises(CallError) as refused:
            async with alice.stamped("web").stream(USAGE, AskUsage(Actor(), NOW, NOW + 1), to=BOB) as replies:
                await replies.batch()
        assert refused.value.code == "unauthenticated"


@pytest.mark.parametrize("ask", [{"user": "ada"}, {"user": "ADA"}, {"user": "ada", "key": "k9"}])
@pytest.mark.parametrize("here_only", [False, True])
async def test_a_person_may_not_ask_for_somebody_else(
    autojump_clock: trio.testing.MockClock, ask: dict[str, str], *, here_only: bool
) -> None:
    async with gateways() as (alice, bob, here, there):
        fill(here, grace=2, ada=2)
        fill(there, grace=2, ada=2)
        for bus in (alice, bob):
            for question in (rows, records):
                with pytest.raises(CallError) as refused:
                    await question(bus.stamped("web"), Actor("grace"), here=here_only, **ask)
                assert refused.value.code == "forbidden"


@pytest.mark.parametrize("ask", [{"user": "grace", "key": "k9"}, {"key": "k9"}])
async def test_somebody_elses_key_is_none_of_a_persons(
    autojump_clock: trio.testing.MockClock, ask: dict[str, str]
) -> None:
    async with gateways() as (alice, bob, here, there):
        fill(here, grace=2, ada=2)
        fill(there, grace=2, ada=2)
        for bus in (alice, bob):
            assert await rows(bus.stamped("web"), Actor("grace"), ("user", "key"), **ask) == ({}, ())
            assert await records(bus.stamped("web"), Actor("grace"), **ask) == ([], ())


async def test_a_key_sees_its_own_use_alone(autojump_clock: trio.testing.MockClock) -> None:
    async with gateways() as (alice, _, here, there):
        fill(here, grace=4, ada=3)
        fill(there, grace=4, ada=3)
        member = alice.stamped("operator")
        assert (await rows(member, Actor(key="grace-key"), ("key",)))[0] == {("k1",): 4}
        assert (await rows(member, Actor(key="ada-key"), ("user",)))[0] == {("ada",): 6}, "ada's, but no admin key"
        assert (await rows(member, Actor(key="admin-key"), ("user",)))[0] == {("ada",): 6, ("grace",): 8}
        with pytest.raises(CallError, match="only its own use"):
            await rows(member, Actor(key="grace-key"), key="k9")
        with pytest.raises(CallError) as refused:
            await rows(member, Actor("wrong"))
        assert refused.value.code == "unauthenticated"


async def test_a_gateway_that_does_not_answer_is_named(autojump_clock: trio.testing.MockClock) -> None:
    network = MemoryNetwork()
    async with gateways(network=network) as (alice, _, here, there):
        fill(here, grace=1, ada=0)
        fill(there, grace=1, ada=0)
        network.freeze(BOB)
        assert await rows(alice.stamped("operator")) == ({(): 1}, ("bob",))
        assert await rows(alice.stamped("operator"), here=True) == ({(): 1}, ())


async def test_more_than_a_frame_holds_comes_in_parts(autojump_clock: trio.testing.MockClock) -> None:
    async with gateways() as (alice, _, _, there):
        for number in range(3000):
            there.record(record("grace", f"key-{number:060}", number % 600))
        seen, silent = await rows(alice.stamped("operator"), by=("key",))
        assert (len(seen), silent) == (3000, ())
        assert list(seen) == sorted(seen)


@pytest.mark.parametrize("lie", ["too many", "another shape"])
async def test_a_gateway_that_answers_something_else_is_left_out(
    autojump_clock: trio.testing.MockClock, lie: str
) -> None:
    async def usage(caller: Caller, ask: AskUsage, emit: Emit[UsageRows]) -> None:
        row = UsageRow(("a", "b") if lie == "another shape" else ("a",), UsageSums(1))
        for _ in range(GROUPS_MAX // 500 + 1 if lie == "too many" else 1):
            await emit(UsageRows((row,) * 500))

    async with alone(lambda bus: bus.serve_stream(USAGE, usage)) as (alice, book):
        fill(book, grace=1, ada=0)
        assert await rows(alice.stamped("operator"), by=("user",)) == ({("grace",): 1}, ("bob",))


async def test_what_another_gateway_says_of_the_question_is_the_answer(autojump_clock: trio.testing.MockClock) -> None:
    async def usage(caller: Caller, ask: AskUsage, emit: Emit[UsageRows]) -> None:
        raise CallError("too_large", "This has more than 3 lines: ask for a shorter time, or group by less.")

    async with alone(lambda bus: bus.serve_stream(USAGE, usage)) as (alice, book):
        fill(book, grace=1, ada=0)
        with pytest.raises(CallError, match="more than 3 lines"):
            await rows(alice.stamped("operator"), by=("user",))


@pytest.mark.parametrize(
    ("ask", "param"),
    [
        ({"since": NOW + 3600}, "until"),
        ({"since": float("nan")}, "until"),
        ({"until": float("inf")}, "until"),
        ({"since": -1e12}, "since"),
        ({"by": ("day", "day")}, "group_by"),
    ],
)
async def test_a_question_that_is_none_is_refused(
    autojump_clock: trio.testing.MockClock, ask: dict[str, Any], param: str
) -> None:
    async with gateways() as (alice, _, _, _):
        with pytest.raises(CallError) as refused:
            await rows(alice.stamped("operator"), **ask)
        assert (refused.value.code, refused.value.param) == ("invalid", param)
