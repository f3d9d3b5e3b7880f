"""Where members were last reached: hints that survive a restart. Only membership admits; an address proves nothing."""

from collections.abc import Iterable, Mapping

import msgspec

from covey.store.pulse import Pulse
from covey.store.writer import Store
from covey.transport.base import PeerId

ADDRESSES_PER_PEER_MAX = 8
PEERS_MAX = 1_000
ADDRESS_CHARS_MAX = 256


class AddressBook:
    """Multiaddresses by peer, the surest first. `hints` beats when something new was learnt."""

    def __init__(self, store: Store) -> None:
        self.hints = Pulse()
        self._local = store.local("addresses")
        self._by_peer: dict[PeerId, tuple[str, ...]] = {}
        for peer, value in self._local.scan(limit=PEERS_MAX):
            self._by_peer[PeerId(peer.decode())] = msgspec.msgpack.decode(value, type=tuple[str, ...])

    def get(self, peer: PeerId) -> tuple[str, ...]:
        """Where a peer may be found; () where nobody has said."""
        return self._by_peer.get(peer, ())

    def all(self) -> dict[str, tuple[str, ...]]:
        """Every peer's, to be passed on."""
        return {str(peer): addresses for peer, addresses in self._by_peer.items()}

    async def learn(self, found: Mapping[PeerId, Iterable[str]], *, first: bool = False) -> None:
        """Somebody said where peers are; `first`: it is sure (a link came up there, or the peer itself says so), so it
        goes to the front, and what nobody confirms falls off the end.
        """
        changed: dict[PeerId, tuple[str, ...]] = {}
        for peer, addresses in found.items():
            old = self.get(peer)
            new = [one for one in addresses if 0 < len(one) <= ADDRESS_CHARS_MAX]
            if not first and set(new) <= set(old):
                continue
            merged = tuple(dict.fromkeys([*new, *old] if first else _with_hearsay(old, new)))[:ADDRESSES_PER_PEER_MAX]
            if merged != old and (old or len(self._by_peer) < PEERS_MAX):
                changed[peer] = merged
        if not changed:
            return
        self._by_peer.update(changed)
        self.hints.beat()
        await self._local.put_all([(peer.encode(), msgspec.msgpack.encode(one)) for peer, one in changed.items()])


def _with_hearsay(old: tuple[str, ...], new: list[str]) -> list[str]:
    """Room is made at the end of a full list: the newest rumour counts more than the oldest."""
    unknown = [one for one in new if one not in old][: ADDRESSES_PER_PEER_MAX // 2]
    return [*old[: ADDRESSES_PER_PEER_MAX - len(unknown)], *unknown]
