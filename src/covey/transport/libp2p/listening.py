"""Opening the port that other nodes dial."""

import errno
import socket

import trio

from covey.errors import CallError

BACKLOG = 512


async def open_listener(host: str, port: int) -> trio.SocketListener:
    """Listen on an IP address; port 0 lets the system choose. The caller closes it.

    py-libp2p sets SO_REUSEPORT, with which a second process binds the same port and takes half of the connections
    without a word. Not here.

    Raises:
        CallError: `conflict` (`port_in_use`): the caller may try another port; `forbidden`; `invalid`.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    door = trio.socket.socket(family, socket.SOCK_STREAM)
    try:
        # A node that restarts finds its port free, though old connections linger; two that listen still collide.
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            door.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        await door.bind((host, port))
        door.listen(BACKLOG)
    except OSError as error:
        door.close()
        raise _refusal(host, port, error) from error
    except BaseException:
        door.close()
        raise
    return trio.SocketListener(door)


def bound(listener: trio.SocketListener) -> tuple[str, int]:
    """Where it listens."""
    name = listener.socket.getsockname()
    return str(name[0]), int(name[1])


def _refusal(host: str, port: int, error: OSError) -> CallError:
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if error.errno == errno.EADDRINUSE:
        return CallError(
            "conflict",
            f"Another program listens on {place} already: stop it, or set [network] listen to another port.",
            reason="port_in_use",
        )  # fmt: skip
    if error.errno in (errno.EACCES, errno.EPERM):
        return CallError("forbidden", f"This user may not listen on {place}: choose a port above 1023.")
    return CallError("invalid", f"This node cannot listen on {place}: {error.strerror}.", reason="listen")
