"""Coming in: the two ends of `/covey/join/1` (see `covey.contracts.joining` for what is said)."""

import struct
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import msgspec
import trio

from covey.cluster.invites import Invite
from covey.contracts.joining import (
    JOIN_BYTES_MAX,
    JOIN_REQUEST_BYTES_MAX,
    JOIN_SECONDS_MAX,
    JoinAnswer,
    JoinRequest,
    Welcome,
)
from covey.errors import CallError
from covey.store.ingest import install
from covey.store.writer import Store
from covey.transport.base import PeerId

T = TypeVar("T", bound=msgspec.Struct)
_LENGTH = struct.Struct("!I")


class JoinDialer(Protocol):
    """What reaches the issuer of an invite, and proves that it is that one."""

    async def dial_join(self, peer: PeerId, addresses: tuple[str, ...]) -> tuple[trio.abc.Stream, str]:
        """A stream for joining to that very peer, and the address that worked. `CallError`: `unreachable`."""
        ...


async def answer_join(
    peer: PeerId, stream: trio.abc.Stream, welcome: Callable[[PeerId, JoinRequest], Awaitable[JoinAnswer]]
) -> None:
    """Serve one machine that is not a member, within `JOIN_SECONDS_MAX`; closes the stream."""
    try:
        with trio.move_on_after(JOIN_SECONDS_MAX):
            try:
                answer = await welcome(peer, await _receive(stream, JoinRequest, JOIN_REQUEST_BYTES_MAX))
            except CallError as error:
                answer = JoinAnswer(refusal=error.problem)
            await _send(stream, answer)
            await stream.aclose()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # it left: nothing was promised to it
    finally:
        await trio.aclose_forcefully(stream)


async def ask(
    dialer: JoinDialer, peer: PeerId, addresses: tuple[str, ...], request: JoinRequest
) -> tuple[JoinAnswer, str]:
    """Put a request to a node that may admit; returns its answer, and the address it was reached at.

    Raises:
        CallError: `unreachable`, `deadline`, `protocol`.
    """
    with trio.move_on_after(JOIN_SECONDS_MAX):
        stream, address = await dialer.dial_join(peer, addresses)
        try:
            await _send(stream, request)
            return await _receive(stream, JoinAnswer, JOIN_BYTES_MAX), address
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise CallError("unreachable", "The node that made the invite hung up: try again.") from error
        finally:
            await trio.aclose_forcefully(stream)
    raise CallError("deadline", f"The node that made the invite did not answer within {JOIN_SECONDS_MAX:g} s.")


async def join(dialer: JoinDialer, store: Store, invite: Invite, *, name: str, version: str, now: float) -> Welcome:
    """Become a member: show the secret to the verified issuer, verify what it sends, and keep it.

    Raises:
        CallError: the invite has expired, or the issuer refused or was not reached; the message says what to do.
        EntryError: what the issuer sent does not verify. Nothing was kept.
        StoreError: this data folder belongs to a network already.
    """
    if now > invite.expires_at:
        raise CallError("invalid", "The invite has expired. Make a new one with: covey invite", reason="expired")
    network_id = invite.network_id.hex()
    request = JoinRequest(network_id=network_id, secret=invite.secret, name=name, version=version)
    answer, _ = await ask(dialer, PeerId(invite.issuer), invite.addresses, request)
    if answer.refusal is not None:
        raise CallError.of(answer.refusal)
    if answer.welcome is None:
        raise CallError("protocol", "The node that made the invite gave no answer: upgrade the older one.")
    await install(store, answer.welcome.genesis, network_id, answer.welcome.members, now=now)
    return answer.welcome


async def _send(stream: trio.abc.SendStream, message: msgspec.Struct) -> None:
    content = msgspec.msgpack.encode(message)
    await stream.send_all(_LENGTH.pack(len(content)) + content)


async def _receive(stream: trio.abc.ReceiveStream, kind: type[T], bytes_max: int) -> T:
    """One frame.

    Raises:
        CallError: `protocol`, for whatever is not exactly one frame of that kind.
    """
    (size,) = _LENGTH.unpack(await _exactly(stream, _LENGTH.size))
    if size > bytes_max:
        raise CallError("protocol", f"A message of {size} bytes is refused; {bytes_max} are the most.")
    content = await _exactly(stream, size)
    try:
        return msgspec.msgpack.decode(content, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CallError("protocol", "What was received is no message of joining.") from error


async def _exactly(stream: trio.abc.ReceiveStream, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        piece = await stream.receive_some(min(size - len(received), 65_536))
        if not piece:
            raise CallError("unreachable", "The other side hung up in the middle of joining.")
        received += piece
    return bytes(received)
