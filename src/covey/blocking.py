"""A node for programs that do not run on trio: it lives in a thread of its own, and its client blocks.

`with covey.run_in_thread(config) as node: print(node.chat("Hi").text)`. In an asyncio program: enter the block before
the loop starts, or in a thread, and call `await asyncio.to_thread(node.chat, "Hi")`. Any thread may call any method.
"""

import atexit
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import trio

from covey.bus.background import open_background
from covey.client import Answer, Chunks, Client, Conversation
from covey.config import Config
from covey.contracts.auth import KeyLimits, NewKey
from covey.contracts.cluster import NODE_STATUS, NodeStatus
from covey.contracts.gateway import ModelSummary
from covey.contracts.inference import Finish, Sampling, Usage
from covey.contracts.method import Nothing, Req, Res, Unary
from covey.errors import CallError, describe
from covey.node import Node, open_node

T = TypeVar("T")
PIECES_MAX = 64
"""How much of an answer waits for a slow reader before its model waits too."""


def run_in_thread(
    config: Config | Mapping[str, Any] | Path | None = None,
    *,
    roles: Sequence[str] | None = None,
    data: Path | None = None,
    listen: bool = False,
) -> "ThreadedNode":
    """Run a node in a thread, as long as a block: `with covey.run_in_thread(config) as node: ...`.

    The arguments are those of `open_node`. Entering the block returns once the roles are ready; leaving it stops them.
    Without a block, `start()` and `close()` do the same; a node that is still open when the program ends is closed.

    Raises:
        CallError: from entering: the configuration, the data folder or the address is refused.
        RoleCrashed: from entering, or from leaving where a role failed meanwhile.
    """
    return ThreadedNode(lambda: open_node(config, roles=roles, data=data, listen=listen))


class ThreadedNode:
    """A node in a thread, and a blocking client of it. Made by `run_in_thread`.

    Once it is closed, or has failed, every call raises `CallError` (`unreachable`); calls that run while it closes are
    cut off (`draining`). A call from the node's own thread, which would wait for itself, is a `RuntimeError`.
    """

    def __init__(self, open_: Callable[[], AbstractAsyncContextManager[Node]]) -> None:
        self._open = open_
        self._lock = threading.Lock()
        self._closing = False
        self._thread: threading.Thread | None = None
        self._ready: Future[Node] = Future()
        self._token: trio.lowlevel.TrioToken | None = None
        self._nursery: trio.Nursery | None = None
        self._scope = trio.CancelScope()
        self._failure: BaseException | None = None

    # Its life

    def start(self) -> Self:
        """Start the thread, and return once the node is ready. Raises what `open_node` raises."""
        with self._lock:
            if self._thread is not None:
                raise RuntimeError("A node is started once: make another with run_in_thread().")
            self._thread = threading.Thread(target=self._run, name="covey", daemon=True)
            self._thread.start()
        try:
            self._ready.result()
        except BaseException:  # a KeyboardInterrupt too: nothing goes on behind the caller's back
            self.close()
            raise
        # A daemon thread is otherwise cut off at the program's end, in the middle of whatever it does.
        atexit.register(self.close)
        return self

    def close(self) -> None:
        """Stop the node and wait for its thread; twice, and from any thread, is fine."""
        self._closing = True
        self._post(self._stop)
        atexit.unregister(self.close)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if error is None and self._failure is not None:
            raise self._failure

    # The client

    @property
    def urls(self) -> tuple[str, ...]:
        """Where the API and the dashboard listen, with `listen=True`."""
        return self._ready.result(timeout=0).urls

    def chat(
        self,
        conversation: Conversation,
        *,
        model: str = "",
        max_tokens: int | None = None,
        stop: tuple[str, ...] = (),
        sampling: Sampling | None = None,
    ) -> Answer:
        """As `Client.chat`."""
        return self.run(
            lambda client: client.chat(conversation, model=model, max_tokens=max_tokens, stop=stop, sampling=sampling)
        )

    def stream_chat(
        self,
        conversation: Conversation,
        *,
        model: str = "",
        max_tokens: int | None = None,
        stop: tuple[str, ...] = (),
        sampling: Sampling | None = None,
    ) -> "BlockingChunks":
        """The answer piece by piece: `for text in node.stream_chat("Hi")`. Closing it, leaving its block or dropping it
        stops the model.
        """
        return BlockingChunks(
            self,
            lambda client: client.stream_chat(
                conversation, model=model, max_tokens=max_tokens, stop=stop, sampling=sampling
            ),
        )

    def models(self) -> tuple[ModelSummary, ...]:
        """As `Client.models`."""
        return self.run(lambda client: client.models())

    def create_key(
        self,
        user: str,
        *,
        label: str = "",
        models: tuple[str, ...] = (),
        expires_seconds: int | None = None,
        requests_per_minute: int | None = None,
        limits: KeyLimits | None = None,
        node_labels: tuple[str, ...] = (),
        routes: tuple[str, ...] = (),
    ) -> NewKey:
        """As `Client.create_key`."""
        return self.run(
            lambda client: client.create_key(
                user,
                label=label,
                models=models,
                expires_seconds=expires_seconds,
                requests_per_minute=requests_per_minute,
                limits=limits,
                node_labels=node_labels,
                routes=routes,
            )
        )

    def status(self) -> NodeStatus:
        """How the node is."""
        return self.call(NODE_STATUS, Nothing())

    def call(self, method: Unary[Req, Res], request: Req) -> Res:
        """Call any contract, with the operator's rights."""
        return self.run(lambda client: client.bus.call(method, request))

    def run(self, work: Callable[[Client], Awaitable[T]]) -> T:
        """Run an asynchronous function of the client in the node's thread, and wait for what it returns.

        An exception that interrupts the wait (Ctrl-C) cancels the work.
        """
        if threading.current_thread() is self._thread:
            raise RuntimeError("This is the node's own thread: use its asynchronous client there.")
        job = self.begin(work)
        try:
            return job.result.result()
        except BaseException:
            self.cancel(job)
            raise

    # Jobs, for `run` and for streams

    def begin(self, work: Callable[[Client], Awaitable[T]]) -> "Job[T]":
        """Have a function of the client run in the node's thread; its `result` is always settled some time."""
        job = Job(work)
        if not self._post(lambda: self._begin(job)):
            job.refuse(self._gone())
        return job

    def cancel(self, job: "Job[Any]") -> None:
        """Stop a job; one that has ended is left as it is. Never waits, so that a finaliser may call it."""
        self._post(job.scope.cancel)

    def _post(self, act: Callable[[], object]) -> bool:
        """Have something done in the node's thread, and say whether it will be."""
        token = self._token
        if token is None:
            return False
        try:
            token.run_sync_soon(act)
        except trio.RunFinishedError:
            return False
        return True

    # In the node's thread

    def _run(self) -> None:
        try:
            trio.run(self._serve)
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits, or raised by `__exit__`
            self._failure = error
        self._token = None  # what is finalised while Python ends must not need a module that is gone already
        if not self._ready.done():
            self._ready.set_exception(self._failure or CallError("draining", "The node was closed while it started."))

    async def _serve(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        if self._closing:  # `close` found no token yet to say so with
            return
        with self._scope:
            async with self._open() as node, open_background() as nursery:
                self._nursery = nursery
                try:
                    self._ready.set_result(node)
                    await node.wait_stopped()
                finally:
                    self._nursery = None

    def _begin(self, job: "Job[Any]") -> None:
        if self._nursery is None:
            job.refuse(self._gone())
        else:
            self._nursery.start_soon(job.run, self._ready.result(timeout=0).client)

    def _stop(self) -> None:
        if self._nursery is None:
            self._scope.cancel()  # it is starting: nothing has been promised to anybody
        else:
            self._ready.result(timeout=0).stop()

    def _gone(self) -> CallError:
        why = f": {describe(self._failure)}" if self._failure is not None else "."
        return CallError("unreachable", f"The node is not running{why}", reason="not_running")


class Job(Generic[T]):
    """Some work in the node's thread. `scope` is cancelled there alone; `result` is waited for elsewhere."""

    def __init__(self, work: Callable[[Client], Awaitable[T]]) -> None:
        self.scope = trio.CancelScope()
        self.result: Future[T] = Future()
        self._work = work

    async def run(self, client: Client) -> None:
        """Do it, and settle the result whatever happens."""
        try:
            with self.scope:
                self.result.set_result(await self._work(client))
        except Exception as error:  # noqa: BLE001 - handed to whoever waits
            self.result.set_exception(error)
        finally:
            if not self.result.done():
                why = "The call was cancelled." if self.scope.cancelled_caught else "The node was closed."
                self.refuse(CallError("draining", why))

    def refuse(self, error: CallError) -> None:
        """It will not be done."""
        self.result.set_exception(error)


class BlockingChunks:
    """The pieces of an answer; `finish` and `usage` are there once it has ended. Raises the model's `CallError`.

    One thread at a time. Use it in a `for`, or as a block; `close()` returns once the model has stopped.
    """

    def __init__(self, node: ThreadedNode, open_: Callable[[Client], AbstractAsyncContextManager[Chunks]]) -> None:
        self.finish: Finish | None = None
        self.usage: Usage | None = None
        self._node = node
        self._pieces: deque[str] = deque()
        pump = _Pump(open_)  # which must not know of this object, or dropping it would not stop the model
        self._pump = pump
        self._job = node.begin(pump.run)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        if not self._pieces:
            self._pieces.extend(self._take())
        if not self._pieces:
            raise StopIteration
        return self._pieces.popleft()

    def _take(self) -> list[str]:
        """The pieces that wait, at least one; [] at the end."""
        try:
            pieces = [] if self._job.result.done() else self._node.run(lambda client: self._pump.take())
        except CallError:
            wait([self._job.result])  # the node closes: the answer's own end says why it was cut
            pieces = []
        if not pieces and self._job.result.done():
            pieces = self._pump.left()  # what it sent before its end is still there, and nobody else reads it now
        if not pieces:
            self.finish, self.usage = self._job.result.result()
        return pieces

    def close(self) -> None:
        """Stop the model; an answer that has ended is left as it is."""
        self._pieces.clear()
        self._node.cancel(self._job)
        wait([self._job.result])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_job"):
            self._node.cancel(self._job)


class _Pump:
    """Carries an answer into a channel, in the node's thread."""

    def __init__(self, open_: Callable[[Client], AbstractAsyncContextManager[Chunks]]) -> None:
        self._open = open_
        self._send, self._receive = trio.open_memory_channel[str](PIECES_MAX)

    async def run(self, client: Client) -> tuple[Finish | None, Usage | None]:
        """Returns how it ended."""
        with self._send:
            async with self._open(client) as chunks:
                async for text in chunks:
                    await self._send.send(text)
            return chunks.finish, chunks.usage

    async def take(self) -> list[str]:
        """What waits, at least one; [] once it has ended."""
        try:
            first = await self._receive.receive()
        except trio.EndOfChannel:
            return []
        return [first, *self.left()]

    def left(self) -> list[str]:
        """What waits, without waiting."""
        pieces: list[str] = []
        while True:
            try:
                pieces.append(self._receive.receive_nowait())
            except (trio.WouldBlock, trio.EndOfChannel):
                return pieces
