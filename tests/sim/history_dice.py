"""Whole histories of auth nodes, thrown by dice: who says what, who hears whom, and everything that goes wrong."""

import random
from collections.abc import Callable, Sequence

from history_world import Machine, World, denials

from covey.contracts.auth import KeyLimits
from covey.contracts.feeds import (
    AccountApprove,
    AccountCreate,
    AccountRename,
    Admit,
    BudgetSpent,
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
    ScopedKeyCreate,
    SessionEnd,
    SessionStart,
)
from covey.store.entries import KINDS, Entry, FeedId, seal
from covey.store.feed_log import INCARNATION_KEY, read_head, read_heads, read_verdict
from covey.store.feeds import OP_KINDS
from covey.store.memory import MemoryStore
from covey.store.quarantine import Quarantine
from covey.store.rows import KeyRow

TEN_YEARS_SECONDS = 10 * 365.25 * 24 * 3600
BY = "operator"


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
        (4, save_disk),
        (2, put_disk_back),
        (3, restore_backup),
        (5, skew),
        (3, keep_time),
        (3, equivocate),
        (3, remove),
        (2, recover),
    ]
    weights = [weight for weight, _ in happenings]
    for _ in range(steps):
        world.now += dice.choice([0.0, 0.001, 1.0, 60.0, 4000.0])
        (happening,) = dice.choices([what for _, what in happenings], weights)
        happening(world, dice.choice(world.machines))
    world.check()
    return world


# What is said


def say_something(world: World, machine: Machine) -> None:
    """One operation; now and then several in one entry of each kind."""
    if machine.unsure:
        return  # a node that has just started asks before it writes
    dice = world.random
    count = dice.choice([1, 1, 1, 1, 1, 3])
    world.write(machine, *(gift(world, machine) for _ in range(count)))


def deny_something(world: World, machine: Machine) -> None:
    if not machine.unsure:
        world.write(machine, denial(world))


def gift(world: World, machine: Machine) -> Op:
    """Something of every kind that feeds hold, but for what takes something away.

    Keys are new each time. Whom or what else an operation is about is drawn from a few, so that they meet.
    """
    dice = world.random
    world.names += 1
    gifts: list[Op] = [*_about_a_member(world), *_about_keys(world), *_about_a_person(world, machine)]
    return dice.choice(gifts)


def _about_a_member(world: World) -> list[Op]:
    dice, number = world.random, world.names
    peer = dice.choice([dice.choice(world.machines), world.machines[0]]).peer
    labels = {f"l{dice.randint(0, 2)}": dice.random() < 0.6, "gpu": dice.random() < 0.5}
    return [
        Rename(peer, f"m{number}", BY),
        Rename(peer, f"m{number}", BY),
        Label(peer, labels, BY),
        Admit(dice.choice([peer, "a gateway"]), (dice.choice(["gateway", "inference"]),), f"a{number}", BY),
        Admit(peer, ("auth", "web"), f"a{number}", BY),
    ]


def _about_keys(world: World) -> list[Op]:
    dice, number, owner = world.random, world.names, _owner(world)
    key = (f"k{number}", owner, b"d" * 32, "cvy", "", (), KeyLimits(), int(world.now), None, BY)
    limit = dice.choice([None, 1, number])
    return [
        KeyCreate(*key),
        KeyCreate(*key),
        ScopedKeyCreate(*key, node_labels=("gpu",)),
        OwnerStanding(owner, number, True, BY),
        OwnerStanding(owner, dice.randint(1, number), True, BY),
        OwnerLimits(owner, {dice.choice(["concurrency", "tokens_per_day"]): limit, "requests_per_minute": number}, BY),
    ]


def _about_a_person(world: World, machine: Machine) -> list[Op]:
    dice, number, owner = world.random, world.names, _owner(world)
    account, name = f"U{dice.randint(1, number)}", f"name{dice.randint(0, 3)}"
    period = dice.choice(["2026-11-25", "2026-11-26", "2026-11", "2026-12"])
    used = {other.peer: dice.randint(0, 9) for other in (machine, dice.choice(world.machines))}
    return [
        AccountCreate(f"U{number}", name, dice.choice(["user", "admin"]), dice.random() < 0.5, int(world.now), BY),
        AccountRename(account, name, BY),
        AccountApprove(account, BY),
        PasswordSet(owner, dice.choice([number, dice.randint(1, number)]), f"hash{number}", BY),
        SessionStart(f"s{number}".encode(), owner, 1, 1, 2),
        InvitationCreate(f"i{number}", b"d" * 32, "user", "", 1, 2, BY),
        BudgetSpent(f"owner:{owner}", period, used),
    ]


def denial(world: World) -> Op:
    """Something taken away: also before what it takes away is known."""
    dice, owner = world.random, _owner(world)
    number = dice.randint(1, world.names + 1)
    denials: list[Op] = [
        KeyRevoke(f"k{number}", BY),
        KeyRevoke(f"k{number}", BY),
        OwnerStanding(owner, world.names + 1, False, BY),
        OwnerStanding(owner, number, False, BY),
        SessionEnd(f"s{number}".encode()),
        InvitationUse(f"i{number}", dice.choice([owner, ""])),
    ]
    return dice.choice(denials)


def _owner(world: World) -> str:
    return f"o{world.random.randint(0, 3)}"


# What goes wrong


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
    """Mostly the clock of the host that two of them run on."""
    dice = world.random
    seconds = dice.choice([0.0, 0.0, -7200.0, -5.0, 5.0, 1800.0, 36_000.0, TEN_YEARS_SECONDS, TEN_YEARS_SECONDS])
    for one in (machine, dice.choice([machine, *world.machines])):
        one.skew_seconds = seconds


def keep_time(world: World, machine: Machine) -> None:
    """As it does every half minute: see what is ahead of its clock, right or wrong."""
    if not machine.unsure:
        world.release(machine)


def equivocate(world: World, machine: Machine) -> None:
    """Its key was stolen: two entries for the next place of one of its feeds, one to each of two others."""
    dice = world.random
    others = [other for other in world.machines if other is not machine]
    one, other = dice.sample(others, 2)
    kind = dice.choice(KINDS)
    feed = world.author(machine).own(machine.kv, kind)
    head = read_head(machine.kv, feed)
    ahead_seconds = dice.choice([0.0, 0.0, TEN_YEARS_SECONDS])
    clock = max(head.clock + 1, int((world.clock(machine) + ahead_seconds) * 1000) << 16)
    for number, target in enumerate((one, other)):
        entry = Entry(
            net=world.author(machine).net,
            feed=feed,
            seq=head.seq + 1,
            prev_hash=head.hash,
            clock=clock + number,
            deps={},
            ops=(_forged(world, machine, kind),),
        )
        if world.linked(machine, target):
            world.take(target, kind, [seal(machine.identity, entry)])
    world.equivocators.add(machine.peer)


def _forged(world: World, machine: Machine, kind: Kind) -> Op:
    while True:
        op = world.random.choice([gift(world, machine), denial(world), _removal(world, machine)])
        if op is not None and OP_KINDS[type(op)] == kind:
            return op


def remove(world: World, machine: Machine) -> None:
    """Somebody removes another one, with what it knows of its feeds."""
    if machine.unsure or not read_verdict(machine.kv).may_write(machine.peer):
        return
    removal = _removal(world, machine)
    if removal is not None:
        world.write(machine, removal)


def _removal(world: World, machine: Machine) -> Remove | None:
    """Of somebody who is in still, where more than two are."""
    target = world.random.choice([other for other in world.machines if other is not machine])
    if target.peer in read_verdict(machine.kv).removed or len(world.left()) <= 2:
        return None
    cutoffs = {
        feed: head.seq for feed, head in read_heads(machine.kv).items() if FeedId.parse(feed).author == target.peer
    }
    return Remove(target.peer, cutoffs, BY)


def recover(world: World, machine: Machine) -> None:
    """The recovery key removes somebody who is out already: of two who removed each other, the other is back.

    Also at a machine that is out itself: it may be the one that comes back.
    """
    removed = read_verdict(machine.kv).removed
    out = [other for other in world.machines if other.peer in removed and other is not machine]
    if out and not machine.unsure:
        world.recover_from(world.random.choice(out), at=machine)
