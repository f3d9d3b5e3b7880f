"""One limited key at four gateways of real processes: the owner of its limit is killed, and the network is cut.

What a client sees decides: nobody has a model here, and a request that was let in is told so; any other, of its limit.
Mutations that these tests catch: a new owner that begins with a full burst, an owner that lends all of a limit while it
reaches one gateway of four.
"""

import http.client
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import API_PORT, CHEAP_PASSWORDS, DEAD_SECONDS, NETWORK, Host, Network, eventually, open_network

from covey.contracts.limits import ranked

pytestmark = pytest.mark.slow

LIMIT = 120
RATE = LIMIT / 60
OFFERED = 10 * RATE
LET_IN = "no_capacity"
"""What who is let in is told."""
CONFIG = NETWORK + CHEAP_PASSWORDS


class Seven:
    """Three auth machines and four gateways, and a key of `LIMIT` requests a minute that all of them know."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.auth = [network.host("auth1", CONFIG).start("--role", "auth").ready()]
        for name in ("auth2", "auth3"):
            self.auth.append(network.host(name, CONFIG).join(self.auth[0].invite("auth")).ready())
        self.gateways = [network.host(f"gateway{number}", CONFIG) for number in range(1, 5)]
        for gateway in self.gateways:
            gateway.join(self.auth[0].invite("gateway"))
        self.auth[0].create_key()
        made = self.auth[0].json("keys", "create", "--user", "ann", "--requests-per-minute", str(LIMIT))
        for gateway in self.gateways:
            gateway.ready().key = made["key"]
            eventually(lambda gateway=gateway: gateway.get("/v1/models")[0] == 200, 30, self.explain)
        peers = {one["peer"]: one["name"] for one in self.auth[0].json("nodes", "list") if "auth" in one["roles"]}
        order = [peers[peer] for peer in ranked(f"key:{made['id']}", peers)]
        self.owners = [next(host for host in self.auth if host.name == name) for name in order]
        """The one that owns the limit, then who would after it."""

    def explain(self) -> str:
        return "\n".join(f"--- {host.name}\n{host.said()}" for host in self.network.hosts)


class Load:
    """Requests at every gateway, ten times what is allowed all together, from a thread for each.

    `admitted`: when each was sent and answered, and by whom.
    """

    def __init__(self, gateways: list[Host]) -> None:
        self.admitted: list[tuple[float, float, str]] = []
        self.said: set[str] = set()
        self._stop = threading.Event()
        every_seconds = len(gateways) / OFFERED
        self._threads = [threading.Thread(target=self._offer, args=(host, every_seconds)) for host in gateways]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _offer(self, host: Host, every_seconds: float) -> None:
        body = json.dumps({"model": "none", "messages": [{"role": "user", "content": "x"}]})
        headers = {"authorization": f"Bearer {host.key}", "content-type": "application/json"}
        connection = http.client.HTTPConnection("127.0.0.1", API_PORT, timeout=10)
        while not self._stop.wait(every_seconds):
            try:
                if connection.sock is None:
                    connection.sock = host.connect("127.0.0.1", API_PORT, 5)
                sent = time.monotonic()
                connection.request("POST", "/v1/chat/completions", body, headers)
                with connection.getresponse() as answer:
                    said = json.loads(answer.read())["error"]["code"]
            except (OSError, http.client.HTTPException):
                connection.close()
                continue
            self.said.add(said)
            if said == LET_IN:
                self.admitted.append((sent, time.monotonic(), host.name))
        connection.close()

    def worst(self, after: float = 0.0) -> float:
        """The highest share of what is allowed (burst and rate), over every window of a second and more.

        A window lasts from when its first request was sent until its last was answered: each was let in meanwhile.
        """
        events = sorted(one for one in list(self.admitted) if one[0] >= after)
        highest = 0.0
        for first, (begin, _, _) in enumerate(events):
            for count, (_, end, _) in enumerate(events[first:], start=1):
                highest = max(highest, count / (LIMIT + RATE * max(end - begin, 1.0)))
        return highest

    def share(self, begin: float, end: float) -> float:
        """Of the rate, that was let in between."""
        return sum(begin <= sent < end for sent, _, _ in self.admitted) / (RATE * (end - begin))

    def spent_burst(self) -> bool:
        """Whether requests are refused by now."""
        return "requests" in self.said


@pytest.fixture
def seven(tmp_path: Path) -> Iterator[Seven]:
    with open_network(tmp_path) as network:
        yield Seven(network)


def test_the_owner_of_a_limit_is_killed(seven: Seven) -> None:
    with Load(seven.gateways) as load:
        eventually(load.spent_burst, 60, seven.explain)
        began = time.monotonic()
        time.sleep(6)
        seven.owners[0].kill()
        killed = time.monotonic()
        time.sleep(12)
    print(f"worst window {load.worst():.3f}, before {load.share(began, killed):.3f} of the rate,"
          f" after {load.share(killed + 4, killed + 12):.3f}")  # fmt: skip
    assert load.said == {LET_IN, "requests"}
    assert load.worst() <= 1.0
    assert load.share(killed + 4, killed + 12) >= 0.8
    assert len({name for _, _, name in load.admitted}) == 4


def test_a_network_cut_apart_with_the_owner_on_the_smaller_side(seven: Seven) -> None:
    here, there = [seven.owners[0], seven.gateways[0]], [*seven.owners[1:], *seven.gateways[1:]]
    with Load(seven.gateways) as load:
        eventually(load.spent_burst, 60, seven.explain)
        for one in here:
            for other in there:
                seven.network.cut(one, other)
        cut = time.monotonic()
        time.sleep(20)
        healed = time.monotonic()
        seven.network.heal(*here, *there)
        time.sleep(12)
    steady = load.share(cut + DEAD_SECONDS + 3, healed)
    print(f"worst window {load.worst():.3f}, from {DEAD_SECONDS} s after the cut {load.worst(cut + DEAD_SECONDS):.3f};"
          f" cut apart {steady:.3f} of the rate")  # fmt: skip
    assert load.worst() <= 2.0
    assert load.worst(cut + DEAD_SECONDS) <= 1.0
    assert 0.75 <= steady <= 1.05
    assert {name for sent, _, name in load.admitted if cut + DEAD_SECONDS + 3 < sent < healed} == {
        host.name for host in seven.gateways
    }
