"""The operator's door: the node's Unix socket, which speaks the bus's own frames.

The socket's file permissions are the authorisation. It lies at a short path under the user's runtime folder, for a
socket's path may have some 100 bytes; the data folder says where, in a file that programs of another session find.
"""

import hashlib
import os
import tempfile
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from covey.bus.background import open_background
from covey.bus.bus import Bus, StreamHandler, UnaryHandler
from covey.bus.caller import EVERY_PARTY, Caller
from covey.bus.replies import Emit
from covey.bus.session import acceptor, open_session
from covey.client import Client
from covey.contracts.method import Party, Streaming, Unary
from covey.contracts.registry import AnyMethod, contracts
from covey.errors import CallError
from covey.telemetry.metrics import Metrics
from covey.transport.base import PeerId
from covey.transport.unix import PATH_BYTES_MAX, dial_unix, serve_unix

if TYPE_CHECKING:  # the command line's own import: it must be quick
    from covey.roles.base import Lifecycle

POINTER = "control.json"
NODE = PeerId("node")
OPERATOR: frozenset[Party] = frozenset({"operator"})


class Pointer(msgspec.Struct, frozen=True):
    """What `control.json` in the data folder holds while a node runs on it."""

    socket: str
    pid: int


def socket_path(folder: Path) -> Path:
    """Where the node of a data folder listens: a short name that two folders never share.

    In the user's runtime folder, where there is one that serves: `su` and `sudo` keep the variable of somebody else's,
    and a service or a container may name one that does not exist. The data folder's pointer tells which it was.
    """
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16] + ".sock"
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR", ""))
    own = runtime / "covey" / name
    if _serves(runtime) and len(os.fsencode(own)) <= PATH_BYTES_MAX:
        return own
    return Path(tempfile.gettempdir()) / f"covey-{os.getuid()}" / name


def _serves(runtime: Path) -> bool:
    try:
        mine = runtime.is_absolute() and runtime.is_dir() and runtime.stat().st_uid == os.getuid()
    except OSError:
        return False
    return mine and os.access(runtime, os.W_OK | os.X_OK)


def relay(bus: Bus) -> Bus:
    """A bus that passes on whatever the operator may call, to this node's own handlers or to another node's.

    Here the operator needs no credential. On another node they are a member's operator: that node asks for an
    administrator's key, which the request carries (`COVEY_ADMIN_KEY`).
    """
    door = Bus(bus.me, Metrics(), name=bus.name)
    known = {**contracts(), **{served.method.name: served.method for served in bus.all_served()}}
    for method in known.values():
        if "operator" in method.access:
            door.serve(method, _relay_stream(bus, method) if isinstance(method, Streaming) else _relay(bus, method))
    return door


def _stamp(bus: Bus, method: AnyMethod) -> Party:
    return "operator" if bus.served(method.name) is not None else "member"


def _relay(bus: Bus, method: Unary[Any, Any]) -> UnaryHandler[Any, Any]:
    async def call(caller: Caller, request: Any) -> Any:
        return await bus.stamped(_stamp(bus, method)).call(method, request)

    return call


def _relay_stream(bus: Bus, method: Streaming[Any, Any]) -> StreamHandler[Any, Any]:
    async def stream(caller: Caller, request: Any, emit: Emit[Any]) -> None:
        async with bus.stamped(_stamp(bus, method)).stream(method, request) as replies:
            async for reply in replies:
                await emit(reply)

    return stream


@asynccontextmanager
async def open_control(bus: Bus, folder: Path, lifecycle: "Lifecycle") -> AsyncGenerator[None, None]:
    """Serve the operator while the block runs; leaving lets running calls finish until `lifecycle.drain_until`."""
    path = socket_path(folder)
    pointer = folder / POINTER
    running = 0
    idle = trio.Event()
    idle.set()
    serve = acceptor(relay(bus), lambda _: OPERATOR)

    async def accept(peer: PeerId, stream: trio.abc.Stream) -> None:
        nonlocal running, idle
        if running == 0:
            idle = trio.Event()
        running += 1
        try:
            await serve(peer, stream)
        finally:
            running -= 1
            if running == 0:
                idle.set()

    async with open_background() as nursery:

        async def listen(*, task_status: trio.TaskStatus[None]) -> None:
            await serve_unix(path, accept, task_status=task_status)

        await nursery.start(listen)
        try:
            await trio.to_thread.run_sync(_point, pointer, Pointer(str(path), os.getpid()))
        except OSError as error:
            raise CallError(
                "storage", f"{pointer} cannot be written ({error.strerror}): make the data folder writable."
            ) from error
        try:
            yield
        finally:
            with suppress(FileNotFoundError):
                pointer.unlink()
            # A command's connection lasts as long as its one call.
            with trio.CancelScope(deadline=lifecycle.drain_until, shield=True):
                await idle.wait()


@asynccontextmanager
async def connect(folder: Path) -> AsyncGenerator[Client, None]:
    """A client of the node that runs on a data folder, with the operator's rights.

    Raises:
        CallError: `unreachable` where no node runs there; `forbidden` where it is another user's.
    """
    try:
        pointer = msgspec.json.decode((folder / POINTER).read_bytes(), type=Pointer)
    except (FileNotFoundError, NotADirectoryError):
        raise CallError(
            "unreachable", f"No node is running on {folder}. Start one with: covey up", reason="not_running"
        ) from None
    except (OSError, msgspec.DecodeError) as error:
        raise CallError(
            "storage", f"{folder / POINTER} cannot be read ({error}): restart the node that runs there."
        ) from error
    stream = await dial_unix(Path(pointer.socket))
    bus = Bus(PeerId(f"cli:{os.getpid()}"), Metrics())
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(bus.open())
        try:
            await stack.enter_async_context(open_session(bus, stream, peer=NODE, granted=EVERY_PARTY, dialer=True))
        except CallError as error:
            if error.code != "deadline":
                raise
            raise CallError(
                "deadline",
                f"The node on {folder} runs (process {pointer.pid}) but does not answer. If it stays so, stop that"
                " process and start it again: covey up",
            ) from error
        yield Client(bus.stamped("operator"))


def _point(path: Path, pointer: Pointer) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(msgspec.json.encode(pointer))
    temporary.replace(path)
