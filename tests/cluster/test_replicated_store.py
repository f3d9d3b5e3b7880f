"""Three auth machines and two gateways, one role each: a partition with a gateway on each side, and what becomes of it.

Mutations that these tests catch: a gateway that vouches without a lease, a removal that voids a revocation nobody says
again, a name that its last claimant takes away.
"""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hosts import CHEAP_PASSWORDS, NETWORK, PASSWORD, Host, Network, eventually, open_network

pytestmark = pytest.mark.slow

LEASE_SECONDS = 10
CONFIG = f"{NETWORK}{CHEAP_PASSWORDS}lease_seconds = {LEASE_SECONDS}\n"
UNNOTICED = CONFIG.replace("dead_seconds = 2.0", "dead_seconds = 30.0")
"""A cut goes unnoticed for longer than a command takes on a busy machine."""


class Five:
    """`auth1` to `auth3`, `gateway1` and `gateway2`; the first has an administrator, whose key all hosts know."""

    def __init__(self, network: Network, config: str = CONFIG) -> None:
        self.network = network
        self.auth = [network.host("auth1", config).start("--role", "auth").ready()]
        for name in ("auth2", "auth3"):
            self.auth.append(network.host(name, config).join(self.auth[0].invite("auth")))
        self.gateways = [
            network.host(name, config).join(self.auth[0].invite("gateway")) for name in ("gateway1", "gateway2")
        ]
        key = self.auth[0].create_key()
        for host in self.hosts:
            host.ready()
            host.key = key
        for gateway in self.gateways:
            eventually(lambda gateway=gateway: status(gateway) == 200, 20, self.explain)
        self.agree()

    @property
    def hosts(self) -> list[Host]:
        return [*self.auth, *self.gateways]

    def new_key(self) -> tuple[str, str]:
        """Its id and its text, once both gateways take it."""
        made = self.auth[0].json("keys", "create", "--user", "ann")
        for gateway in self.gateways:
            eventually(lambda gateway=gateway: status(gateway, made["key"]) == 200, 10, self.explain)
        return made["id"], made["key"]

    def part(self, *groups: list[Host]) -> None:
        for group in groups:
            for other in groups:
                if group is not other:
                    for one in group:
                        for far in other:
                            self.network.cut(one, far, one_way=True)

    def agree(self, seconds: float = 30.0) -> None:
        """All that read the same feeds come to the same view."""
        eventually(lambda: len({hashes(host, "members", "keys", "secret") for host in self.auth_alive}) == 1, seconds,
                   self.explain)  # fmt: skip
        eventually(lambda: len({hashes(host, "members", "keys") for host in self.alive}) == 1, seconds, self.explain)

    @property
    def alive(self) -> list[Host]:
        return [host for host in self.hosts if host.process is not None and host.process.poll() is None]

    @property
    def auth_alive(self) -> list[Host]:
        return [host for host in self.alive if host in self.auth]

    def explain(self) -> str:
        return "\n".join(f"--- {host.name}\n{host.said()}" for host in self.hosts)


def status(gateway: Host, key: str = "") -> int:
    """What a gateway answers to a key: 200, 401 or 503."""
    before = gateway.key
    gateway.key = key or before
    try:
        return gateway.get("/v1/models", seconds=10)[0]
    finally:
        gateway.key = before


def hashes(host: Host, *kinds: str) -> tuple[str, ...]:
    """Of a running node's views, made anew from its entries; its store is sound."""
    report = host.json("store", "check")
    assert report["problems"] == [], report
    return tuple(report["view_hashes"][kind] for kind in kinds)


def together(*works: Callable[[], object]) -> None:
    """At the same time; the first error is raised."""
    errors: list[BaseException] = []

    def run(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.fixture
def five(tmp_path: Path) -> Iterator[Five]:
    with open_network(tmp_path) as network:
        yield Five(network)


def test_a_partition_with_a_gateway_on_each_side(five: Five) -> None:
    most, least = [five.auth[0], five.auth[1], five.gateways[0]], [five.auth[2], five.gateways[1]]
    (here, here_key), (there, there_key) = five.new_key(), five.new_key()
    five.part(most, least)
    began = time.monotonic()
    five.auth[0].covey("keys", "revoke", here)
    five.auth[2].covey("keys", "revoke", there)
    eventually(lambda: status(five.gateways[0], here_key) == 401, 10, five.explain)
    # The minority's gateway vouches for nobody once a lease has passed, and says why.
    eventually(lambda: status(five.gateways[1]) == 503, LEASE_SECONDS + 20, five.explain)
    print(f"the minority's gateway stopped {time.monotonic() - began:.1f} s after the cut")
    assert "no_lease" in five.gateways[1].get("/v1/models")[1]
    assert status(five.gateways[0]) == 200
    five.network.heal(*five.hosts)
    eventually(lambda: status(five.gateways[1]) == 200, 20, five.explain)
    five.agree()
    for gateway in five.gateways:
        assert [status(gateway, key) for key in (here_key, there_key)] == [401, 401]


def test_a_name_that_both_sides_gave_away(tmp_path: Path) -> None:
    with open_network(tmp_path) as network:
        five = Five(network, UNNOTICED)
        five.part([five.auth[0], five.auth[1], five.gateways[0]], [five.auth[2], five.gateways[1]])

        def register(host: Host, password: str) -> None:
            host.covey("users", "add", "bob", "--password-file", "-", typed=password)

        together(lambda: register(five.auth[0], PASSWORD), lambda: register(five.auth[2], PASSWORD + " too"))
        network.heal(*five.hosts)
        five.agree(90)
        for host in five.auth:
            bobs = [one for one in host.json("users", "list") if one["name"] == "bob"]
            assert sorted(one.get("name_lost", False) for one in bobs) == [False, True], bobs
        (loser,) = [one for one in five.auth[1].json("users", "list") if one.get("name_lost")]
        five.auth[1].covey("users", "rename", loser["id"], "bobby")
        five.agree()
        assert [one["name"] for one in five.auth[2].json("users", "list")] == ["ann", "bob", "bobby"]


def test_an_author_that_is_removed_while_it_revokes(five: Five) -> None:
    removed, witness = five.auth[2], five.auth[1]
    revoked, key = five.new_key()
    five.part([five.auth[0], five.gateways[0]], [witness, removed, five.gateways[1]])
    removed.covey("keys", "revoke", revoked)  # the witness has it, and so has the gateway of that side
    eventually(lambda: status(five.gateways[1], key) in (401, 503), 10, five.explain)
    five.auth[0].covey("nodes", "remove", "auth3")  # knows nothing of that
    five.network.heal(*five.hosts)
    five.auth.remove(removed)
    removed.wait_said("removed from its network", 30)
    removed.stop()
    five.agree(60)
    for gateway in five.gateways:
        assert eventually(lambda gateway=gateway: status(gateway) == 200, 20, five.explain)
        assert status(gateway, key) == 401


def test_all_auth_machines_are_down_and_come_back(five: Five) -> None:
    gateway = five.gateways[0]
    for host in five.auth:
        host.kill()
    began = time.monotonic()
    assert status(gateway) == 200
    eventually(lambda: status(gateway) == 503, LEASE_SECONDS + 20, five.explain)
    print(f"known keys worked for {time.monotonic() - began:.1f} s")
    assert "no_lease" in gateway.get("/v1/models")[1]
    for host in five.auth:
        host.start()
    for host in five.auth:
        host.ready()
    back = time.monotonic()
    eventually(lambda: status(gateway) == 200, 20, five.explain)
    print(f"service was back {time.monotonic() - back:.2f} s after the last auth machine")  # the figure is 2 s
    five.agree()


def test_a_lost_auth_machine_is_replaced_and_nothing_is_lost(five: Five) -> None:
    """`promote` is of the command line: a gateway becomes the third auth machine."""
    made, key = five.new_key()
    five.auth[0].kill()
    gateway = five.gateways[1]
    five.auth[1].covey("nodes", "remove", "auth1")
    five.auth[1].covey("nodes", "promote", "gateway2", "--role", "auth")
    eventually(lambda: gateway.covey("keys", "list", "--json", code=None).returncode == 0, 30, five.explain)
    five.auth.remove(five.auth[0])
    five.auth.append(gateway)
    five.gateways.remove(gateway)
    five.agree(60)
    assert made in {one["id"] for one in gateway.json("keys", "list")}
    assert status(gateway, key) == 200
    five.auth[0].kill()  # of three two are left
    new = gateway.json("keys", "create", "--user", "ann")
    eventually(lambda: status(five.gateways[0], new["key"]) == 200, 20, five.explain)
