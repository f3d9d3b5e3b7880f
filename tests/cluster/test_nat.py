"""Machines that nobody can dial serve as well as any; machines that moved find each other by themselves."""

from pathlib import Path

import pytest
from hosts import ECHO, NETWORK, Trio, eventually, open_network

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("listens", [True, False], ids=["listening", "dial-only"])
def test_inference_behind_nat(tmp_path: Path, listens: bool) -> None:
    with open_network(tmp_path) as network:
        auth = network.host("auth").start("--role", "auth").ready()
        gateway = network.host("gateway").join(auth.invite("gateway")).ready()
        gateway.key = auth.create_key()
        config = NETWORK + ("" if listens else 'listen = "none"\n') + ECHO
        hidden = network.host_behind_nat("hidden", config).join(auth.invite("inference")).ready()
        answer = eventually(lambda: (one := gateway.chat("from within")).good and one, 10, hidden.said)
        assert answer.text == "from within"
        gateway.kill()
        gateway.start().ready()
        eventually(lambda: gateway.chat().good, 10, hidden.said)


def test_two_machines_behind_nat_work_through_a_relay(tmp_path: Path) -> None:
    with open_network(tmp_path) as network:
        auth = network.host("auth").start("--role", "auth").ready()
        gateway = network.host_behind_nat("gateway").join(auth.invite("gateway")).ready()
        gateway.key = auth.create_key()
        hidden = network.host_behind_nat("hidden").join(auth.invite("inference")).ready()
        answer = eventually(lambda: (one := gateway.chat("through a third")).good and one, 30, hidden.said)
        assert answer.text == "through a third"
        links = {one["name"]: one["link"]["path"] for one in gateway.json("nodes", "list") if "link" in one}
        assert links == {"auth": "direct", "hidden": "relayed"}
        assert 'covey_link_relayed{node="hidden"} 1.0' in gateway.get("/metrics")[1]


def test_machines_that_all_moved_while_they_were_off_find_each_other(tmp_path: Path) -> None:
    with open_network(tmp_path) as network:
        three = Trio(network)
        hosts = (three.auth, three.gateway, three.inference)
        for host in hosts:
            assert host.stop() == 0
        for number, host in enumerate(hosts):
            host.move(f"10.77.0.{200 + number}")
            host.start()
        for host in hosts:
            host.ready()
        three.wait_service(30)  # by mDNS: every address that they knew is gone
