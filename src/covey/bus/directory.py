"""Who serves what: the live view that routing asks. Only peers with a live link are in it: ghosts cannot be called."""

from covey.transport.base import PeerId


class Directory:
    """Methods by peer, in the order in which the peers' links came up. Pure."""

    def __init__(self) -> None:
        self._methods: dict[PeerId, frozenset[str]] = {}

    def record(self, peer: PeerId, methods: tuple[str, ...]) -> None:
        """A peer reports what it serves; the latest report counts."""
        self._methods[peer] = frozenset(methods)

    def forget(self, peer: PeerId) -> None:
        """A peer's link is gone."""
        self._methods.pop(peer, None)

    def serving(self, method: str) -> tuple[PeerId, ...]:
        """The live peers that serve a method."""
        return tuple(peer for peer, methods in self._methods.items() if method in methods)
