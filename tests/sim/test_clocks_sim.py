"""A node whose clock was far ahead and is right again: it ends up with the view that everybody else has.

Single stories, without dice, that `test_histories_sim.py` found in thousands of random ones.
"""

from collections.abc import Callable

import pytest
from history_dice import TEN_YEARS_SECONDS, put_disk_back, restore_backup, save_disk
from history_world import Machine, World

from covey.contracts.feeds import AccountCreate, KeyRevoke, Rename
from covey.store.feed_log import INCARNATION_KEY, read_verdict
from covey.store.rows import AccountRow, MemberRow


def restored_from_a_backup(world: World, machine: Machine) -> None:
    save_disk(world, machine)
    restore_backup(world, machine)


def frozen(world: World, machine: Machine) -> None:
    """Two entries for one place of its keys feed: its disk was put back in between."""
    save_disk(world, machine)
    world.write(machine, KeyRevoke("k1", "operator"))
    world.pull(world.machines[0], machine)
    put_disk_back(world, machine)
    machine.unsure = False
    world.write(machine, KeyRevoke("k2", "operator"))
    world.pull(machine, world.machines[0])
    assert read_verdict(machine.kv).frozen
    world.write(machine, KeyRevoke("k3", "operator"))


@pytest.mark.parametrize("begin_anew", [restored_from_a_backup, frozen])
def test_what_a_fast_clock_wrote_before_its_node_began_new_feeds(
    begin_anew: Callable[[World, Machine], None],
) -> None:
    """Elsewhere all that such a node wrote waits, in whichever of its feeds: so it has to at home; it is said again."""
    world = World(0, 3)
    fast = world.machines[2]
    fast.skew_seconds = TEN_YEARS_SECONDS
    world.write(fast, AccountCreate("U1", "ann", "user", False, 1, "operator"))
    world.write(fast, Rename(fast.peer, "fast", "operator"))
    before = fast.kv.get(INCARNATION_KEY)
    begin_anew(world, fast)
    assert fast.kv.get(INCARNATION_KEY) != before
    fast.skew_seconds = 0.0
    world.check()
    for machine in world.machines:
        account, member = machine.view.get(AccountRow, "U1"), machine.view.get(MemberRow, fast.peer)
        assert account is not None
        assert member is not None
        assert (account.name, member.name) == ("ann", "fast")
