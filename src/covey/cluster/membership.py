"""Who is a member, as the verified `members` feeds in this node's store say; kept in memory, for it is asked often."""

from typing import get_args

from covey.contracts.method import Party
from covey.store.feed_log import VERDICT_KEY, read_heads
from covey.store.ingest import network_of
from covey.store.membership import AUTHOR_ROLE
from covey.store.pulse import Pulse
from covey.store.rows import MemberRow
from covey.store.view import View
from covey.store.writer import Store
from covey.transport.base import PeerId

_PARTIES: frozenset[str] = frozenset(get_args(Party)) - {"operator", "member"}


class Membership:
    """The members of this node's network, itself among them. `changes` beats whenever the members feeds grow."""

    def __init__(self, store: Store) -> None:
        self.changes = Pulse()
        self._store = store
        self._rows: dict[PeerId, MemberRow] = {}
        self.authors: frozenset[PeerId] = frozenset()
        """The auth nodes of the network: those of its machines that were admitted as one, and not removed."""
        self._state: object = None
        self._read()

    async def watch(self) -> None:
        """Keep up with the store; runs until cancelled."""
        seen = self._store.commits.count
        while True:
            if self._read():
                self.changes.beat()
            seen = await self._store.commits.after(seen)

    @property
    def network_id(self) -> str:
        """In hexadecimal; "" while this node belongs to none."""
        return network_of(self._store.reader)

    def rows(self) -> dict[PeerId, MemberRow]:
        """Every machine that was ever admitted, the removed ones too."""
        return dict(self._rows)

    def get(self, peer: PeerId) -> MemberRow | None:
        """A machine that was ever admitted."""
        return self._rows.get(peer)

    def is_member(self, peer: PeerId) -> bool:
        """Admitted, and not removed."""
        row = self._rows.get(peer)
        return row is not None and not row.removed

    def granted(self, peer: PeerId) -> frozenset[Party]:
        """What a peer may act as: its roles and `member`; nothing for others."""
        row = self._rows.get(peer)
        if row is None or row.removed:
            return frozenset()
        return frozenset({"member", *(_PARTIES & set(row.roles))})  # type: ignore[arg-type]

    def known_name(self, peer: PeerId) -> str:
        """What people call a member; "" for any other."""
        row = self._rows.get(peer)
        return "" if row is None or row.removed else row.name

    def name(self, peer: PeerId) -> str:
        """What people call it."""
        row = self._rows.get(peer)
        return row.name if row and row.name else str(peer)

    def labels(self, peer: PeerId) -> frozenset[str]:
        """What an administrator labelled a member with; nothing for others."""
        row = self._rows.get(peer)
        return frozenset() if row is None or row.removed else frozenset(row.labels)

    def _read(self) -> bool:
        reader = self._store.reader
        # Rows change without a new entry, too: with the verdict, and when an entry has waited long enough.
        waiting = next(reader.scan(b"f/", limit=1), None)
        state = read_heads(reader, "members/"), reader.get(VERDICT_KEY), waiting
        if state == self._state:
            return False
        self._state = state
        self._rows = {PeerId(row.peer): row for row in View(self._store.reader).all(MemberRow)}
        self.authors = frozenset(
            peer for peer, row in self._rows.items() if AUTHOR_ROLE in row.roles and not row.removed
        )
        return True
