"""What the conformance suite calls: contracts, and handlers that keep a ledger which the tests read over the bus."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import trio

from covey.bus.bus import BusHandle
from covey.bus.caller import Caller
from covey.bus.replies import Emit
from covey.contracts.method import Nothing, Party, Streaming, Unary
from covey.errors import CallError, Problem
from covey.telemetry.logs import current_request_id

_GATEWAY: frozenset[Party] = frozenset({"gateway"})


class Text(msgspec.Struct, frozen=True):
    """Any text."""

    text: str


class Item(msgspec.Struct, frozen=True):
    """One reply of a stream."""

    number: int
    text: str = ""


class Amount(msgspec.Struct, frozen=True):
    """How many replies, each with how many characters."""

    items: int
    chars: int = 0


class Failure(msgspec.Struct, frozen=True):
    """What to raise, after how many replies; `nested`: inside a nursery of the handler's own."""

    problem: Problem
    after_items: int = 0
    nested: bool = False


class Ledger(msgspec.Struct, frozen=True):
    """How often handlers were started, emitted, ended, were cancelled; and how many run now."""

    counts: dict[str, int]


class Until(msgspec.Struct, frozen=True):
    """Answer once a count is at least this, or with `exactly`, just this."""

    name: str
    count: int
    exactly: bool = False


class Seen(msgspec.Struct, frozen=True):
    """The caller as a handler sees it."""

    peer: str
    stamp: str
    request_id: str
    logged_request_id: str


ECHO = Unary("conformance.echo", Text, Text, access=_GATEWAY)
REVERSE = Unary("conformance.reverse", Text, Text, access=_GATEWAY)
"""The near side serves it."""
CALL_BACK = Unary("conformance.call_back", Text, Text, access=_GATEWAY)
"""The far side calls REVERSE at its caller."""
COUNT = Streaming("conformance.count", Amount, Item, access=_GATEWAY)
FLOOD = Streaming("conformance.flood", Amount, Item, access=_GATEWAY)
"""Emits without end."""
FAIL = Unary("conformance.fail", Failure, Text, access=_GATEWAY)
FAIL_STREAM = Streaming("conformance.fail_stream", Failure, Item, access=_GATEWAY)
BUG = Unary("conformance.bug", Nothing, Text, access=_GATEWAY)
LIAR = Unary("conformance.liar", Nothing, Text, access=_GATEWAY)
"""Returns what its contract does not say."""
AT_ONCE = Unary("conformance.at_once", Text, Text, access=_GATEWAY)
"""Served by a plain function, which does what the text says: `refuse`, `bug`, `lie`; any other comes back."""
HANG = Unary("conformance.hang", Nothing, Text, access=_GATEWAY)
HANG_STREAM = Streaming("conformance.hang_stream", Amount, Item, access=_GATEWAY, idle_seconds=0.2)
"""Emits, then never ends."""
LARGE = Unary("conformance.large", Amount, Text, access=_GATEWAY)
LENGTH = Unary("conformance.length", Text, Item, access=_GATEWAY)
"""Answers with how long the text is."""
LENGTH_STREAM = Streaming("conformance.length_stream", Text, Item, access=_GATEWAY)
WHO = Unary("conformance.who", Nothing, Seen, access=_GATEWAY)
WHO_STREAM = Streaming("conformance.who_stream", Nothing, Seen, access=_GATEWAY)
RESTRICTED = Unary("conformance.restricted", Nothing, Text, access=frozenset({"web"}))
LEDGER = Unary("conformance.ledger", Nothing, Ledger, access=_GATEWAY)
UNTIL = Unary("conformance.until", Until, Ledger, access=_GATEWAY)
NOBODY = Unary("conformance.nobody", Nothing, Text, access=_GATEWAY)
"""Served nowhere."""


def serve_near(bus: BusHandle) -> None:
    """What the near side serves."""

    async def reverse(_: Caller, request: Text) -> Text:
        return Text(request.text[::-1])

    bus.serve(REVERSE, reverse)


def serve_far(bus: BusHandle) -> None:
    """What the far side serves, with a ledger of its own. `bus` must be stamped `gateway`: it calls back."""
    callee = _Callee(bus)
    bus.serve(ECHO, callee.echo)
    bus.serve(CALL_BACK, callee.call_back)
    bus.serve_stream(COUNT, callee.emit_some)
    bus.serve_stream(FLOOD, callee.flood)
    bus.serve(FAIL, callee.fail)
    bus.serve_stream(FAIL_STREAM, callee.fail_stream)
    bus.serve(BUG, callee.bug)
    bus.serve(LIAR, callee.liar)
    bus.serve_at_once(AT_ONCE, callee.at_once)
    bus.serve(HANG, callee.hang)
    bus.serve_stream(HANG_STREAM, callee.hang_stream)
    bus.serve(LARGE, callee.large)
    bus.serve(LENGTH, callee.length)
    bus.serve_stream(LENGTH_STREAM, callee.length_stream)
    bus.serve(WHO, callee.who)
    bus.serve_stream(WHO_STREAM, callee.who_stream)
    bus.serve(RESTRICTED, callee.restricted)
    bus.serve(LEDGER, callee.ledger)
    bus.serve(UNTIL, callee.until)


class _Callee:
    def __init__(self, bus: BusHandle) -> None:
        self._bus = bus
        self._counts = Counter[str]()
        self._changed = trio.lowlevel.ParkingLot()

    def _count(self, name: str, change: int = 1) -> None:
        self._counts[name] += change
        self._changed.unpark_all()

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        self._count("started")
        self._count("running")
        try:
            yield
        except trio.Cancelled:
            self._count("cancelled")
            raise
        finally:
            self._count("running", -1)

    async def echo(self, _: Caller, request: Text) -> Text:
        return request

    async def call_back(self, caller: Caller, request: Text) -> Text:
        return await self._bus.call(REVERSE, request, to=caller.peer)

    async def emit_some(self, _: Caller, request: Amount, emit: Emit[Item]) -> None:
        with self._recorded():
            for number in range(request.items):
                await emit(Item(number, "x" * request.chars))
                self._count("emitted")
            self._count("emptied")

    async def flood(self, _: Caller, request: Amount, emit: Emit[Item]) -> None:
        with self._recorded():
            while True:
                await emit(Item(self._counts["flooded"], "x" * request.chars))
                self._count("flooded")

    async def fail(self, _: Caller, request: Failure) -> Text:
        if request.nested:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                raise CallError.of(request.problem)
        raise CallError.of(request.problem)

    async def fail_stream(self, caller: Caller, request: Failure, emit: Emit[Item]) -> None:
        for number in range(request.after_items):
            await emit(Item(number))
        await self.fail(caller, request)

    async def bug(self, _: Caller, __: Nothing) -> Text:
        raise ZeroDivisionError("conformance")

    async def liar(self, _: Caller, __: Nothing) -> Any:
        return Nothing()

    def at_once(self, _: Caller, request: Text) -> Any:
        if request.text == "refuse":
            raise CallError("not_found", "There is none.", reason="conformance")
        if request.text == "bug":
            raise ZeroDivisionError("conformance")
        return Nothing() if request.text == "lie" else request

    async def hang(self, _: Caller, __: Nothing) -> Text:
        with self._recorded():
            await trio.sleep_forever()
        raise AssertionError

    async def hang_stream(self, _: Caller, request: Amount, emit: Emit[Item]) -> None:
        with self._recorded():
            for number in range(request.items):
                await emit(Item(number))
            await trio.sleep_forever()

    async def large(self, _: Caller, request: Amount) -> Text:
        return Text("x" * request.chars)

    async def length(self, _: Caller, request: Text) -> Item:
        with self._recorded():
            return Item(len(request.text))

    async def length_stream(self, caller: Caller, request: Text, emit: Emit[Item]) -> None:
        await emit(await self.length(caller, request))

    async def who(self, caller: Caller, _: Nothing) -> Seen:
        await trio.lowlevel.checkpoint()
        return Seen(caller.peer, caller.stamp, caller.request_id, current_request_id())

    async def who_stream(self, caller: Caller, request: Nothing, emit: Emit[Seen]) -> None:
        await emit(await self.who(caller, request))

    async def restricted(self, _: Caller, __: Nothing) -> Text:
        return Text("secret")

    async def ledger(self, _: Caller, __: Nothing) -> Ledger:
        return Ledger(dict(self._counts))

    async def until(self, caller: Caller, request: Until) -> Ledger:
        def reached() -> bool:
            count = self._counts[request.name]
            return count == request.count if request.exactly else count >= request.count

        while not reached():
            await self._changed.park()
        return await self.ledger(caller, Nothing())
