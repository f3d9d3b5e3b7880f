"""`covey join`: make a data folder a member's. The node is not running yet; afterwards it starts as any other."""

import shutil
import time
from contextlib import AsyncExitStack, closing, suppress
from functools import partial
from pathlib import Path

import trio

from covey.bus.bus import Bus
from covey.cluster.cluster import Cluster, NetworkConfig
from covey.cluster.host import NOWHERE, open_host
from covey.cluster.invites import Invite
from covey.cluster.joining import JoinDialer, ask, join
from covey.contracts.joining import JoinRequest, Welcome
from covey.errors import CallError
from covey.store.feeds import SystemClock
from covey.store.identity import KEY_FILE, open_identity
from covey.store.ingest import ingest, network_of
from covey.store.leveldb import DATABASE, open_leveldb
from covey.store.rows import AccountRow, MemberRow
from covey.store.view import View
from covey.store.writer import Store, open_store
from covey.telemetry.metrics import Metrics
from covey.transport.base import PeerId
from covey.version import __version__


async def join_network(
    folder: Path, invite: Invite, *, name: str, network: NetworkConfig, replace: bool = False
) -> Welcome | None:
    """Use an invite; `None` where this machine is a member of that very network already, with all that it would gain.

    Args:
        folder: the data folder; no node may be running on it.
        invite: see `covey.cluster.invites`.
        name: what this machine would like to be called.
        network: the `[network]` table.
        replace: where the folder belongs to another network, or to a machine that was removed: move all of that
            aside, into a folder within it, and begin as a new machine.

    Raises:
        CallError: what went wrong, and what to do. The folder then is what it was.
    """
    aside = await trio.to_thread.run_sync(partial(_make_room, folder, invite, replace=replace))
    try:
        return await _join(folder, invite, name, network)
    except BaseException:
        if aside is not None:
            _move_back(folder, aside)
        raise


async def _join(folder: Path, invite: Invite, name: str, network: NetworkConfig) -> Welcome | None:
    async with AsyncExitStack() as stack:
        metrics = Metrics()
        kv = await trio.to_thread.run_sync(open_leveldb, folder)
        stack.callback(kv.close)
        identity = await trio.to_thread.run_sync(open_identity, folder)
        store = await stack.enter_async_context(open_store(kv, metrics))
        me = View(store.reader).get(MemberRow, identity.peer_id)
        is_member = network_of(store.reader) == invite.network_id.hex()
        if is_member and (me is None or (not me.removed and set(invite.roles) <= set(me.roles))):
            return None
        host = await stack.enter_async_context(
            open_host(identity, NOWHERE, is_member=_nobody, on_rpc=_hang_up, on_join=_hang_up)
        )
        if is_member:
            welcome = await use_as_member(host, store, invite, name)
        else:
            welcome = await join(host, store, invite, name=name, version=__version__, now=time.time())
        bus = Bus(identity.peer_id, metrics, name=welcome.name)
        cluster = Cluster(bus, store, identity, network, open_host, SystemClock())
        await cluster.keep_roles(welcome.roles)
        await cluster.let_back_in()
        issuer = PeerId(invite.issuer)
        await cluster.book.learn({issuer: invite.addresses})
        await cluster.book.learn({PeerId(peer): found for peer, found in welcome.addresses.items()})
        return welcome


async def use_as_member(host: JoinDialer, store: Store, invite: Invite, name: str) -> Welcome:
    """Use an invite as a member: what it is for is added to what this machine may do.

    Raises:
        CallError: `forbidden` (`removed`) where this machine is out, by the word of whoever made the invite.
    """
    request = JoinRequest(network_id=invite.network_id.hex(), secret=invite.secret, name=name, version=__version__)
    answer, _ = await ask(host, PeerId(invite.issuer), invite.addresses, request)
    if answer.refusal is not None:
        raise CallError.of(answer.refusal)
    if answer.welcome is None:
        raise CallError("protocol", "The node that made the invite gave no answer: upgrade the older one.")
    taken = await ingest(store, "members", answer.welcome.members, now=time.time())
    for refusal in taken.refused:
        raise refusal
    return answer.welcome


def _make_room(folder: Path, invite: Invite, *, replace: bool) -> Path | None:
    """Refuse a folder that holds another network's state, or move that aside; returns where to. Blocks."""
    if not (folder / DATABASE).exists():
        return None
    with closing(open_leveldb(folder)) as kv:
        current, view = network_of(kv), View(kv)
        peopled = any(True for _ in view.all(AccountRow, limit=1))
        me = view.get(MemberRow, open_identity(folder).peer_id)
        # A network of its own that nobody else has joined is what a first `covey up` leaves behind: no loss.
        joined = me is not None and not me.removed and sum(not row.removed for row in view.all(MemberRow)) > 1
    if not current or (current == invite.network_id.hex() and not replace):
        return None
    if (peopled or joined) and not replace:
        whose = (
            f"{folder} holds a network of its own, with accounts."
            if peopled
            else f"{folder} belongs to a machine of another network."
        )
        raise CallError(
            "conflict",
            f"{whose} Join with another --data folder, or with --replace: what is there is then kept aside, and this"
            " machine begins anew.",
        )
    aside = folder / time.strftime("replaced-%Y%m%d-%H%M%S")
    aside.mkdir(mode=0o700)
    _move(folder, aside)
    return aside


def _move_back(folder: Path, aside: Path) -> None:
    # What the attempt made is nobody's yet: a key that no network has admitted, and an empty store.
    with suppress(FileNotFoundError):
        shutil.rmtree(folder / DATABASE)
    _move(aside, folder)
    aside.rmdir()


def _move(source: Path, target: Path) -> None:
    for name in (DATABASE, KEY_FILE):
        if (source / name).exists():
            (source / name).rename(target / name)


def _nobody(peer: PeerId) -> bool:
    return False


async def _hang_up(peer: PeerId, stream: trio.abc.Stream) -> None:
    await trio.aclose_forcefully(stream)
