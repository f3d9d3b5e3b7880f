"""`covey join`: make a data folder a member's. The node is not running yet; afterwards it starts as any other."""

import time
from contextlib import AsyncExitStack
from pathlib import Path

import trio

from covey.bus.bus import Bus
from covey.cluster.cluster import Cluster, NetworkConfig
from covey.cluster.host import NOWHERE, open_host
from covey.cluster.invites import Invite
from covey.cluster.joining import join
from covey.contracts.joining import Welcome
from covey.errors import CallError
from covey.store.identity import KEY_FILE, open_identity
from covey.store.ingest import network_of
from covey.store.leveldb import DATABASE, open_leveldb
from covey.store.rows import AccountRow
from covey.store.view import View
from covey.store.writer import open_store
from covey.telemetry.metrics import Metrics
from covey.transport.base import PeerId
from covey.version import __version__


async def join_network(
    folder: Path, invite: Invite, *, name: str, network: NetworkConfig, replace: bool = False
) -> Welcome | None:
    """Use an invite; `None` where this machine is a member of that very network already.

    Args:
        folder: the data folder; no node may be running on it.
        invite: see `covey.cluster.invites`.
        name: what this machine would like to be called.
        network: the `[network]` table.
        replace: where the folder belongs to another network, or to a machine that was removed: move all of that
            aside, into a folder within it, and begin as a new machine.

    Raises:
        CallError: what went wrong, and what to do.
    """
    await _make_room(folder, invite, replace=replace)
    async with AsyncExitStack() as stack:
        metrics = Metrics()
        kv = await trio.to_thread.run_sync(open_leveldb, folder)
        stack.callback(kv.close)
        identity = await trio.to_thread.run_sync(open_identity, folder)
        store = await stack.enter_async_context(open_store(kv, metrics))
        if network_of(store.reader) == invite.network_id.hex():
            return None
        host = await stack.enter_async_context(
            open_host(identity, NOWHERE, is_member=_nobody, on_rpc=_hang_up, on_join=_hang_up)
        )
        welcome = await join(host, store, invite, name=name, version=__version__, now=time.time())
        cluster = Cluster(Bus(identity.peer_id, metrics, name=welcome.name), store, identity, network, open_host)
        await cluster.keep_roles(welcome.roles)
        issuer = PeerId(invite.issuer)
        await cluster.book.learn({issuer: invite.addresses})
        await cluster.book.learn({PeerId(peer): found for peer, found in welcome.addresses.items()})
        return welcome


async def _make_room(folder: Path, invite: Invite, *, replace: bool) -> None:
    """Refuse a folder that holds another network's state, or move that aside."""
    if not (folder / DATABASE).exists():
        return
    kv = await trio.to_thread.run_sync(open_leveldb, folder)
    try:
        current = network_of(kv)
        peopled = any(True for _ in View(kv).all(AccountRow, limit=1))
    finally:
        kv.close()
    if not current or (current == invite.network_id.hex() and not replace):
        return
    if peopled and not replace:
        raise CallError(
            "conflict",
            f"{folder} holds a network of its own, with accounts. Join with another --data folder, or with --replace:"
            " what is there is then kept aside, and this machine begins anew.",
        )
    await trio.to_thread.run_sync(_move_aside, folder)


def _move_aside(folder: Path) -> None:
    aside = folder / time.strftime("replaced-%Y%m%d-%H%M%S")
    aside.mkdir(mode=0o700)
    for name in (DATABASE, KEY_FILE):
        if (folder / name).exists():
            (folder / name).rename(aside / name)


def _nobody(peer: PeerId) -> bool:
    return False


async def _hang_up(peer: PeerId, stream: trio.abc.Stream) -> None:
    await trio.aclose_forcefully(stream)
