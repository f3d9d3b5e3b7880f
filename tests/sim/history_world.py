"""Random histories of auth nodes, without a network or a clock of their own: stores, and what is passed between them.

Everything that replication must survive happens here in thousands of seeded histories: partitions, crashes, disks that
are put back or lost, skewed clocks, equivocation, revocation, and removals that cross. What must hold is asserted at
every step (`World.watch`) and once all is healed (`World.settle`).
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec
from nacl.signing import SigningKey

from covey.contracts.auth import KeyLimits
from covey.contracts.feeds import (
    AccountCreate,
    AccountRename,
    Admit,
    InvitationCreate,
    InvitationUse,
    KeyCreate,
    KeyRevoke,
    Kind,
    Label,
    Op,
    OwnerLimits,
    OwnerStanding,
    PasswordSet,
    Remove,
    Rename,
    SessionEnd,
    SessionStart,
)
from covey.errors import CallError
from covey.store.checking import check_reader
from covey.store.entries import KINDS, Entry, FeedId, Sealed, seal, unseal
from covey.store.feed_log import (
    GENESIS_KEY,
    INCARNATION_KEY,
    derive_view,
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
from covey.store.identity import Identity
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
    denied: set[tuple[str, str, int]] = field(default_factory=set)

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
        recovery = bytes(SigningKey(self.random.randbytes(32)).verify_key)
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


# Histories


def play(seed: int, *, steps: int = 40) -> World:
    """One whole history, checked. `AssertionError` says what did not hold."""
    dice = random.Random(seed)
    world = World(seed, dice.randint(3, 7))
    happenings: list[tuple[int, Callable[[World, Machine], None]]] = [
        (30, say_something),
        (8, deny_something),
        (30, hear),
        (5, part),
        (4, heal),
        (4, crash),
        (3, save_disk),
        (2, put_disk_back),
        (2, restore_backup),
        (3, skew),
        (2, equivocate),
        (2, remove),
    ]
    weights = [weight for weight, _ in happenings]
    for _ in range(steps):
        world.now += dice.choice([0.0, 0.001, 1.0, 60.0, 4000.0])
        (happening,) = dice.choices([what for _, what in happenings], weights)
        happening(world, dice.choice(world.machines))
    world.check()
    return world


def say_something(world: World, machine: Machine) -> None:
    if machine.unsure:
        return  # a node that has just started asks before it writes
    dice = world.random
    world.names += 1
    number, owner = world.names, f"o{dice.randint(0, 3)}"
    op = dice.choice(
        [
            KeyCreate(f"k{number}", owner, b"d" * 32, "cvy", "", (), KeyLimits(), int(world.now), None, "operator"),
            KeyCreate(f"k{number}", owner, b"d" * 32, "cvy", "", (), KeyLimits(), int(world.now), None, "operator"),
            OwnerStanding(owner, number, True, "operator"),
            AccountCreate(f"U{number}", f"name{dice.randint(0, 3)}", "user", False, int(world.now), "operator"),
            AccountRename(f"U{dice.randint(1, number)}", f"name{dice.randint(0, 3)}", "operator"),
            PasswordSet(owner, number, "hash", "operator"),
            SessionStart(f"s{number}".encode(), owner, 1, 1, 2),
            InvitationCreate(f"i{number}", b"d" * 32, "user", "", 1, 2, "operator"),
            Rename(dice.choice(world.machines).peer, f"m{number}", "operator"),
        ]
    )
    world.write(machine, op)
    if number % 7 == 0:
        world.write(machine, OwnerLimits(owner, {"concurrency": number, "tokens_per_day": None}, "operator"))
        world.write(machine, Label(machine.peer, {"gpu": number % 2 == 0, f"l{number % 3}": True}, "operator"))


def deny_something(world: World, machine: Machine) -> None:
    if machine.unsure:
        return
    dice, number, owner = world.random, world.random.randint(1, world.names + 1), f"o{world.random.randint(0, 3)}"
    world.write(
        machine,
        dice.choice(
            [
                KeyRevoke(f"k{number}", "operator"),
                KeyRevoke(f"k{number}", "operator"),
                OwnerStanding(owner, world.names + 1, False, "operator"),
                SessionEnd(f"s{number}".encode()),
                InvitationUse(f"i{number}", owner),
            ]
        ),
    )


def hear(world: World, machine: Machine) -> None:
    world.pull(machine, world.random.choice(world.machines))


def part(world: World, machine: Machine) -> None:
    shuffled = world.random.sample(world.machines, len(world.machines))
    cut = world.random.randint(1, len(shuffled) - 1)
    world.groups = [set(shuffled[:cut]), set(shuffled[cut:])]


def heal(world: World, machine: Machine) -> None:
    world.groups = [set(world.machines)]


def crash(world: World, machine: Machine) -> None:
    machine.quarantine = Quarantine()


def save_disk(world: World, machine: Machine) -> None:
    machine.saved = list(machine.kv.scan(b""))


def put_disk_back(world: World, machine: Machine) -> None:
    """As a snapshot of a virtual machine: nothing tells the node. Now and then it writes before anybody can tell it."""
    if machine.saved is None:
        return
    _become(world, machine, machine.saved)
    machine.unsure = world.random.random() < 0.8
    machine.denied = denials(machine.view)
    world.rolled_back.add(machine.peer)
    if not machine.unsure:
        world.equivocators.add(machine.peer)


def restore_backup(world: World, machine: Machine) -> None:
    """`covey store restore`: it goes on in another incarnation of its feeds."""
    if machine.saved is None:
        return
    incarnation = world.random.randbytes(8).hex().encode()
    _become(world, machine, [(key, value) for key, value in machine.saved if key != INCARNATION_KEY])
    machine.kv.write([(INCARNATION_KEY, incarnation)])
    machine.unsure = False
    machine.denied = denials(machine.view)


def _become(world: World, machine: Machine, pairs: Sequence[tuple[bytes, bytes]]) -> None:
    machine.kv = MemoryStore()
    machine.kv.write(pairs)
    machine.quarantine = Quarantine()
    for key_id, (_, _, holders) in world.created.items():
        if machine.view.get(KeyRow, key_id) is None:
            holders.discard(machine.name)


def skew(world: World, machine: Machine) -> None:
    machine.skew_seconds = world.random.choice([0.0, -7200.0, -5.0, 5.0, 1800.0, 36_000.0])


def equivocate(world: World, machine: Machine) -> None:
    """Its key was stolen: two entries for the next place of one of its feeds, one to each of two others."""
    others = [other for other in world.machines if other is not machine]
    one, other = world.random.sample(others, 2)
    kind: Kind = "keys"
    feed = world.author(machine).own(machine.kv, kind)
    head = read_head(machine.kv, feed)
    net = world.author(machine).net
    for number, target in enumerate((one, other)):
        entry = Entry(
            net=net,
            feed=feed,
            seq=head.seq + 1,
            prev_hash=head.hash,
            clock=head.clock + 1 + number + (int(world.clock(machine) * 1000) << 16),
            deps={},
            ops=(KeyRevoke(f"k{world.random.randint(1, world.names + 1)}", "operator"),),
        )
        if world.linked(machine, target):
            world.take(target, kind, [seal(machine.identity, entry)])
    world.equivocators.add(machine.peer)


def remove(world: World, machine: Machine) -> None:
    """Somebody removes another one, with what it knows of its feeds."""
    if machine.unsure or not read_verdict(machine.kv).may_write(machine.peer):
        return
    target = world.random.choice([other for other in world.machines if other is not machine])
    if target.peer in read_verdict(machine.kv).removed or len(world.left()) <= 2:
        return
    cutoffs = {
        feed: head.seq for feed, head in read_heads(machine.kv).items() if FeedId.parse(feed).author == target.peer
    }
    world.write(machine, Remove(target.peer, cutoffs, "operator"))
