"""Auth nodes without a network: stores, authors, and what one hears of another."""

from collections.abc import Sequence

from covey.contracts.auth import KeyLimits
from covey.contracts.feeds import Admit, KeyCreate, Kind, Op
from covey.store.entries import EntryError, Sealed, unseal
from covey.store.feed_log import GENESIS_KEY, INCARNATION_KEY, release, settle_anew
from covey.store.feeds import Author
from covey.store.genesis import found
from covey.store.hybrid_clock import farthest
from covey.store.identity import Identity
from covey.store.ingest import Ingested, batches_after, take
from covey.store.memory import MemoryStore
from covey.store.tails import position
from covey.store.view import VIEW_KEY, VIEW_VERSION, View
from covey.store.writer import Overlay

NOW = 1_800_000_000.0
ALICE, BOB, CAROL, DAN = (Identity(bytes([number]) * 32) for number in (1, 2, 3, 4))
KINDS: tuple[Kind, ...] = ("members", "keys", "secret")


class Node:
    """A store and an author, with a wall clock of its own."""

    def __init__(self, identity: Identity, genesis: bytes, ahead_seconds: float = 0.0) -> None:
        self.identity = identity
        self.now = NOW + ahead_seconds
        self.kv = MemoryStore()
        self.author = Author(identity, genesis)
        overlay = Overlay(self.kv)
        overlay.put([(GENESIS_KEY, genesis), (VIEW_KEY, str(VIEW_VERSION).encode())])
        overlay.put([(INCARNATION_KEY, identity.peer_id[-16:].encode().hex()[:16].encode())])
        settle_anew(overlay)
        self.write(overlay)

    @property
    def view(self) -> View:
        return View(self.kv)

    def write(self, overlay: Overlay) -> None:
        self.kv.write(list(overlay.changes.items()))

    def say(self, *ops: Op) -> None:
        changes, _ = self.author.plan(self.kv, lambda _: ops, self.now)
        self.kv.write(changes)

    def hear(self, other: "Node") -> Ingested:
        """All that another one holds; what became of the last kind that brought anything."""
        last = Ingested()
        for kind in KINDS:
            have = dict.fromkeys(position(other.kv, kind).vector, 0)
            entries = [unseal(stored) for batch in batches_after(other.kv, kind, have) for stored in batch]
            taken = self.take(entries)
            last = taken if taken.applied or taken.frozen or taken.refused else last
        return last

    def take(self, entries: Sequence[Sealed | EntryError]) -> Ingested:
        overlay = Overlay(self.kv)
        taken = take(overlay, entries, self.now)
        self.author.say_again(overlay, taken, self.now)
        self.write(overlay)
        return taken

    def keep_time(self) -> None:
        """As `covey.store.sync.Sync` does every half minute."""
        overlay = Overlay(self.kv)
        taken = Ingested(voided=release(overlay, farthest(self.now)))
        self.author.say_again(overlay, taken, self.now)
        self.author.set_clock_right(overlay, self.now)
        self.write(overlay)

    def own(self, kind: Kind) -> str:
        return self.author.own(self.kv, kind)


def network(*identities: Identity) -> list[Node]:
    """Auth nodes that have all heard of each other; the first is the founder."""
    genesis, _ = found(identities[0].peer_id, NOW)
    nodes = [Node(identity, genesis) for identity in identities]
    nodes[0].say(*(Admit(identity.peer_id, ("auth",), f"n{number}", "x") for number, identity in enumerate(identities)))
    for node in nodes[1:]:
        node.hear(nodes[0])
    return nodes


def key(name: str = "k") -> KeyCreate:
    return KeyCreate(name, "owner", b"d" * 32, "cvy", "", (), KeyLimits(), 1, None, "x")
