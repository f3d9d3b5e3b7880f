"""Random histories of auth nodes, without a network or a clock of their own: stores, and what is passed between them.

Everything that replication must survive happens here in thousands of seeded histories: partitions, crashes, disks that
are put back or lost, skewed clocks, equivocation, revocation, and removals that cross. What must hold is asserted at
every step (`World.watch`) and once all is healed (`World.settle`).
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from covey.contracts.feeds import (
    Admit,
    KeyCreate,
    Kind,
    Op,
    Remove,
)
from covey.errors import CallError
from covey.recovery import standing_cutoffs
from covey.store.checking import check_reader
from covey.store.entries import KINDS, FeedId, Sealed, unseal
from covey.store.feed_log import (
    GENESIS_KEY,
    INCARNATION_KEY,
    derive_view,
    is_future,
    keep_proof,
    read_entries,
    read_head,
    read_heads,
    read_proofs,
    read_verdict,
    release,
    settle_anew,
)
from covey.store.feeds import Author
from covey.store.genesis import Genesis
from covey.store.hybrid_clock import farthest
from covey.store.identity import Identity, public_key_of
from covey.store.ingest import Ingested, checked_proof, next_batch, take
from covey.store.memory import MemoryStore
from covey.store.quarantine import Quarantine
from covey.store.rows import AccountRow, InvitationRow, KeyRow, SessionRow, StandingRow
from covey.store.tails import position
from covey.store.view import VIEW_KEY, VIEW_VERSION, View
from covey.store.writer import Overlay

BEGIN = 1_800_000_000.0
KEYS = [Identity(bytes([number]) * 32) for number in range(1, 12)]
"""Made once: an identity costs as much as a signature."""


@dataclass(eq=False)
class Machine:
    """An auth node: its disk, and what its process remembers.

    `saved`: an old copy of its disk. `unsure`: its disk was put back, and it has not heard from anybody since.
    """

    name: str
    identity: Identity
    kv: MemoryStore = field(default_factory=MemoryStore)
    skew_seconds: float = 0.0
    quarantine: Quarantine = field(default_factory=Quarantine)
    saved: list[tuple[bytes, bytes]] | None = None
    unsure: bool = False
    denied: set[tuple[str, str, int]] = field(default_factory=set[tuple[str, str, int]])

    @property
    def peer(self) -> str:
        return self.identity.peer_id

    @property
    def view(self) -> View:
        return View(self.kv)


class World:
    """`size` auth nodes, and their histories. `seed` decides everything."""

    def __init__(self, seed: int, size: int) -> None:
        self.random = random.Random(seed)
        self.now = BEGIN
        self.machines = [Machine(f"n{number}", KEYS[number]) for number in range(size)]
        self.groups = [set(self.machines)]
        self.names = 0
        self.denials: dict[str, set[tuple[str, str, int]]] = {}
        self.created: dict[str, tuple[str, int, set[str]]] = {}
        """Keys by id: the feed and the place of their creation, and the machines that had it on disk."""
        self.equivocators: set[str] = set()
        self.rolled_back: set[str] = set()
        self._found()

    def _found(self) -> None:
        first = self.machines[0]
        self.recovery = Identity(self.random.randbytes(32))
        recovery = public_key_of(self.recovery.peer_id)
        genesis = Genesis(
            version=1, founder=first.peer, recovery_public_key=recovery, created_at=1, nonce=self.random.randbytes(16)
        )
        self.genesis = msgspec.msgpack.encode(genesis)
        for machine in self.machines:
            overlay = Overlay(machine.kv)
            overlay.put([(GENESIS_KEY, self.genesis), (VIEW_KEY, str(VIEW_VERSION).encode())])
            overlay.put([(INCARNATION_KEY, self.random.randbytes(8).hex().encode())])
            settle_anew(overlay)
            machine.kv.write(list(overlay.changes.items()))
        for machine in self.machines:
            self.write(first, Admit(machine.peer, ("auth",), machine.name, "operator"))
        for machine in self.machines[1:]:
            self.pull(machine, first)

    # What happens

    def author(self, machine: Machine) -> Author:
        return Author(machine.identity, self.genesis, new_incarnation=lambda: self.random.randbytes(8).hex().encode())

    def clock(self, machine: Machine) -> float:
        return self.now + machine.skew_seconds

    def write(self, machine: Machine, *ops: Op) -> bool:
        author = self.author(machine)
        try:
            changes, _ = author.plan(machine.kv, lambda _: ops, self.clock(machine))
        except CallError:
            return False  # it knows that it was removed
        machine.kv.write(changes)
        for op in ops:
            if isinstance(op, KeyCreate):
                feed = author.own(machine.kv, "keys")
                self.created[op.id] = (feed, read_head(machine.kv, feed).seq, {machine.name})
        self.watch(machine)
        return True

    def recover_from(self, target: Machine, *, at: Machine) -> None:
        """As `covey.recovery.Recovery.remove`, on the machine `at`."""
        author = Author(self.recovery, self.genesis, self.random.randbytes(8).hex())
        removal = Remove(target.peer, standing_cutoffs(at.kv, target.peer), "recovery")
        overlay = Overlay(at.kv)
        author.lay(overlay, (removal,), self.clock(at))
        self._commit(at, overlay, Ingested())

    def pull(self, reader: Machine, source: Machine) -> int:
        """What `source` holds goes to `reader`, as by its tails; how many entries were new."""
        if not self.linked(reader, source):
            return 0
        applied = 0
        for first, second in [(proof.first, proof.second) for proof in read_proofs(source.kv).values()]:
            pair = checked_proof((first, second))
            assert pair is not None
            overlay = Overlay(reader.kv)
            voided = keep_proof(overlay, *pair)
            self._commit(reader, overlay, Ingested(voided=voided or []))
        kinds = list(KINDS)
        self.random.shuffle(kinds)  # each kind has a stream of its own
        for kind in kinds:
            have = {feed: head.seq for feed, head in read_heads(reader.kv, f"{kind}/").items()}
            for feed in self._different(reader, source, kind):
                have[feed] = 0
            while batch := next_batch(source.kv, kind, have):
                applied += self.take(reader, kind, [unseal(stored) for stored in batch.entries])
                have = batch.vector
        reader.unsure = False
        return applied

    def _different(self, reader: Machine, source: Machine, kind: Kind) -> list[str]:
        found: list[str] = []
        theirs = position(source.kv, kind).vector
        for feed, seq in position(reader.kv, kind).vector.items():
            seq = min(seq, theirs.get(feed, 0))
            if seq == 0:
                continue
            one = next(read_entries(reader.kv, feed, after=seq - 1))
            if one.hash != next(read_entries(source.kv, feed, after=seq - 1)).hash:
                found.append(feed)
        return found

    def take(self, machine: Machine, kind: Kind, entries: Sequence[Sealed]) -> int:
        overlay = Overlay(machine.kv)
        taken = take(overlay, [*machine.quarantine.take(kind), *entries], self.clock(machine))
        machine.quarantine.put(kind, taken.early)
        unexpected = {error.reason for error in taken.refused} - {"equivocation", "broken_chain"}
        assert not unexpected, taken.refused
        self._commit(machine, overlay, taken)
        applied = taken.applied
        for other in KINDS:
            if taken.applied and (early := machine.quarantine.take(other)):
                applied += self.take(machine, other, early)
        return applied

    def _commit(self, machine: Machine, overlay: Overlay, taken: Ingested) -> None:
        self.author(machine).say_again(overlay, taken, self.clock(machine))
        machine.kv.write(list(overlay.changes.items()))
        for key_id, (_, _, holders) in self.created.items():
            row = machine.view.get(KeyRow, key_id) if machine.name not in holders else None
            if row is not None and row.created is not None:
                holders.add(machine.name)
        self.watch(machine)

    def linked(self, one: Machine, other: Machine) -> bool:
        """Whether they are on one side, and neither knows the other as removed."""
        if one is other or not any(one in group and other in group for group in self.groups):
            return False
        return other.peer not in read_verdict(one.kv).removed and one.peer not in read_verdict(other.kv).removed

    def release(self, machine: Machine) -> None:
        overlay = Overlay(machine.kv)
        taken = Ingested(voided=release(overlay, farthest(self.clock(machine))))
        self.author(machine).set_clock_right(overlay, self.clock(machine))
        self._commit(machine, overlay, taken)

    # What must hold

    def watch(self, machine: Machine) -> None:
        """What a node has denied stays denied on it, for as long as it is an auth node."""
        denied = denials(machine.view)
        if read_verdict(machine.kv).may_write(machine.peer) and not machine.unsure:
            lost = {one for one in machine.denied if not _holds(one, denied)}
            assert not lost, f"{machine.name} no longer denies {sorted(lost)}"
            machine.denied |= denied

    def settle(self) -> list[Machine]:
        """Heal everything, and let all that are members still hear of everything; returns those that agree."""
        self.groups = [set(self.machines)]
        self.now += 48 * 3600  # no clock is ahead any more
        for machine in self.machines:
            machine.skew_seconds = 0.0
        for _ in range(12 * len(self.machines)):
            before = self._held()
            for machine in self.machines:
                self.release(machine)
            for one in self.machines:
                for other in self.machines:
                    self.pull(one, other)
            if self._held() == before:
                break
        return self.left()

    def _held(self) -> list[list[bytes]]:
        """What every machine has on its disk."""
        return [[key for key, _ in machine.kv.scan(b"")] for machine in self.machines]

    def left(self) -> list[Machine]:
        """The machines that nobody of those who agree has removed: the others are cut off, and may know less."""
        removed: set[str] = set()
        for machine in self.machines:
            removed |= set(read_verdict(machine.kv).removed)
        return [machine for machine in self.machines if machine.peer not in removed]

    def check(self) -> None:
        """Once all is settled: agreement, nothing resurrected, nothing lost that two had."""
        left = self.settle()
        if not left:
            return  # everybody is out: the recovery key's turn
        first = left[0]
        for machine in left:
            for kind in KINDS:
                assert machine.view.hash(kind) == first.view.hash(kind), f"{machine.name} and {first.name}: {kind}"
            waiting = [sealed for kind in KINDS for sealed in machine.quarantine.take(kind)]
            # What a node that is cut off now, or a thief of its key, gave away before its time is nobody's loss.
            honest = {other.peer for other in left} - self.equivocators - self.rolled_back
            assert not [sealed for sealed in waiting if sealed.feed.author in honest], machine.name
            report = check_reader(machine.kv)
            assert report.problems == (), report.problems
        derived = derive_view(first.kv)
        assert {key: value for key, value in derived.changes.items() if key.startswith(b"v/")} == dict(
            first.kv.scan(b"v/")
        )
        final = denials(first.view)
        for machine in left:
            lost = {one for one in machine.denied if not _holds(one, final)}
            assert not lost, f"{machine.name} had denied {sorted(lost)}"
        self._check_kept(first, {machine.name for machine in left})

    def _check_kept(self, machine: Machine, left: set[str]) -> None:
        verdict = read_verdict(machine.kv)
        for key_id, (feed, seq, holders) in self.created.items():
            if len(holders) < 2 or not holders & left or seq > verdict.limit(FeedId.parse(feed)):
                continue  # on one disk alone, or its author was removed or equivocated before
            author, entry = FeedId.parse(feed).author, next(read_entries(machine.kv, feed, after=seq - 1), None)
            void = not verdict.may_write(author) or author in self.equivocators | self.rolled_back
            if void and entry is not None and is_future(machine.kv, entry):
                continue  # it waits, and what its author said again once its clock was right may count no more
            row = machine.view.get(KeyRow, key_id)
            assert row is not None, f"the key {key_id} of {feed} was on {sorted(holders)}"
            assert row.created is not None, f"the key {key_id} of {feed} was on {sorted(holders)}"


def denials(view: View) -> set[tuple[str, str, int]]:
    """Everything that is denied: its type, its id, and the epoch where it has one."""
    return {
        *(("key", row.id, 0) for row in view.all(KeyRow) if row.revoked),
        *(("session", row.id, 0) for row in view.all(SessionRow) if row.ended),
        *(("invitation", row.id, 0) for row in view.all(InvitationRow) if row.used_by),
        *(("owner", row.owner, 2 * row.epoch + (not row.active)) for row in view.all(StandingRow) if row.epoch),
        *(("password", row.id, row.password_epoch) for row in view.all(AccountRow) if row.password_epoch),
    }


def _holds(one: tuple[str, str, int], denied: set[tuple[str, str, int]]) -> bool:
    kind, name, epoch = one
    if kind == "owner" and not epoch % 2:
        return True  # an enabling is no denial: it may be voided
    return any(kind == other and name == its and now >= epoch for other, its, now in denied)
