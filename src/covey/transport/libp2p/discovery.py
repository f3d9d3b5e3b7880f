"""Finding members on the local network: mDNS, as libp2p does it, under a service name of the network's own.

https://github.com/libp2p/specs/blob/master/discovery/mdns.md. What is found is a hint: anybody may announce anything,
and Noise and membership decide. Everything of zeroconf's happens in threads: it starts with more than a second of
blocking. libp2p's `MDNSDiscovery` does that on the loop, and tells all hosts of a process through one global.
"""

import contextlib
import hashlib
import logging
import secrets
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager

import msgspec
import trio
from zeroconf import Error as ZeroconfError
from zeroconf import ServiceBrowser, ServiceInfo, ServiceStateChange, Zeroconf

from covey.transport.base import PeerId
from covey.transport.libp2p.addresses import parse_address

log = logging.getLogger(__name__)

HINTS_MAX = 64
"""Waiting to be read; beyond, new ones are dropped: they come again."""
ADDRESSES_MAX = 8
LOOKUP_MILLISECONDS = 3_000
REFRESH_SECONDS = 15.0
"""Between looks at whether the addresses have changed."""
CLOSE_SECONDS = 2.0


class Hint(msgspec.Struct, frozen=True):
    """Somebody says that a peer can be dialled there."""

    peer: PeerId
    addresses: tuple[str, ...]


def service_type(network_id: str) -> str:
    """The DNS-SD service of one network: it tells nobody else which."""
    fingerprint = hashlib.sha256(b"covey mdns\0" + network_id.encode()).hexdigest()[:8]
    return f"_p2p-{fingerprint}._udp.local."


@asynccontextmanager
async def open_discovery(
    network_id: str,
    me: PeerId,
    addresses: Callable[[], Sequence[str]],
    *,
    interfaces: Sequence[str] | None = None,
    refresh_seconds: float = REFRESH_SECONDS,
) -> AsyncGenerator[trio.MemoryReceiveChannel[Hint], None]:
    """Announce this node, and hear of others, as long as the block runs. Starts in the background, and never raises.

    Args:
        network_id: only nodes that name the same one find each other.
        me: this node; its own announcements are no hints.
        addresses: where it can be dialled, now; with none it only listens.
        interfaces: IP addresses of the interfaces to use; default: all.
        refresh_seconds: between two looks at `addresses`.
    """
    send, receive = trio.open_memory_channel[Hint](HINTS_MAX)
    announcer = _Announcer(service_type(network_id), me, trio.lowlevel.current_trio_token(), send)
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_keep_announced, announcer, addresses, interfaces, refresh_seconds)
        try:
            yield receive
        except Exception as error:  # noqa: BLE001 - raised again below, where no nursery wraps it
            failure = error
        finally:
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _keep_announced(
    announcer: "_Announcer", addresses: Callable[[], Sequence[str]], interfaces: Sequence[str] | None, seconds: float
) -> None:
    try:
        await trio.to_thread.run_sync(announcer.start, interfaces)
        told: Sequence[str] = ()
        while True:
            now = [each for each in addresses() if "/p2p-circuit" not in each][:ADDRESSES_MAX]
            if now != list(told):
                await trio.to_thread.run_sync(announcer.announce, now)
                told = now
            await trio.sleep(seconds)
    except (OSError, ZeroconfError) as error:
        log.warning("Other nodes on this network are not found by themselves: mDNS does not work (%s).", error)
    finally:
        with trio.move_on_after(CLOSE_SECONDS, shield=True):
            await trio.to_thread.run_sync(announcer.stop, abandon_on_cancel=True)


class _Announcer:
    """What blocks, for threads."""

    def __init__(
        self, service: str, me: PeerId, token: trio.lowlevel.TrioToken, hints: trio.MemorySendChannel[Hint]
    ) -> None:
        self._service = service
        self._me = me
        self._token = token
        self._hints = hints
        self._name = f"{secrets.token_hex(16)}.{service}"
        self._zeroconf: Zeroconf | None = None
        self._announced: ServiceInfo | None = None

    def start(self, interfaces: Sequence[str] | None) -> None:
        """Listen. Raises `OSError` where the machine has no network."""
        self._zeroconf = Zeroconf() if interfaces is None else Zeroconf(interfaces=list(interfaces))
        ServiceBrowser(self._zeroconf, self._service, handlers=[self._changed])

    def announce(self, addresses: Sequence[str]) -> None:
        """Say where this node is, or that it is nowhere."""
        assert self._zeroconf is not None
        if not addresses:
            if self._announced is not None:
                self._zeroconf.unregister_service(self._announced)
                self._announced = None
            return
        properties = {f"dnsaddr{number or ''}": f"{address}/p2p/{self._me}" for number, address in enumerate(addresses)}
        places = [parse_address(each) for each in addresses]
        info = ServiceInfo(
            self._service,
            self._name,
            port=places[0].port,
            properties=properties,
            server=f"{self._name.partition('.')[0]}.local.",
            # Nobody uses these, but zeroconf waits for them before it believes in a service.
            parsed_addresses=[place.host for place in places if place.kind in ("ip4", "ip6")],
        )
        if self._announced is None:
            # The name is random: asking first whether somebody has it would only take time.
            self._zeroconf.register_service(info, cooperating_responders=True)
        else:
            self._zeroconf.update_service(info)
        self._announced = info

    def stop(self) -> None:
        """Say goodbye, and end zeroconf's threads."""
        if self._zeroconf is not None:
            self._zeroconf.close()

    def _changed(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        """On the browser's own thread, where waiting is allowed."""
        if state_change is ServiceStateChange.Removed or name == self._name:
            return
        try:
            info = zeroconf.get_service_info(service_type, name, timeout=LOOKUP_MILLISECONDS)
            hint = None if info is None else _hint(info)
            if hint is not None and hint.peer != self._me:
                self._token.run_sync_soon(self._tell, hint)
        except trio.RunFinishedError:
            pass  # the node has stopped meanwhile
        except (OSError, ZeroconfError) as error:
            log.debug("What %s announces could not be read: %s", name, error)

    def _tell(self, hint: Hint) -> None:
        # It is only a hint, and comes again.
        with contextlib.suppress(trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            self._hints.send_nowait(hint)


def _hint(info: ServiceInfo) -> Hint | None:
    """What a TXT record says; `None` where that is nothing for us. Anybody may have written it."""
    peer: PeerId | None = None
    found: list[str] = []
    for key, value in list(info.properties.items())[: 2 * ADDRESSES_MAX]:
        if not key.startswith(b"dnsaddr") or value is None:
            continue
        try:
            address = parse_address(value.decode("ascii"))
        except ValueError:
            continue
        if address.peer is None or (peer is not None and address.peer != peer):
            continue
        peer = address.peer
        found.append(str(address).removesuffix(f"/p2p/{peer}"))
    return None if peer is None else Hint(peer, tuple(found[:ADDRESSES_MAX]))
