"""Real machines: one is given the role auth while it runs, another takes it by the recovery key."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import Host, Network, eventually, open_network

pytestmark = pytest.mark.slow


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    with open_network(tmp_path) as one:
        yield one


@pytest.fixture
def auth(network: Network) -> Host:
    return network.host("auth").start("--role", "auth").ready()


def roles(host: Host) -> set[str]:
    """What its own node runs; none while it starts anew."""
    done = host.covey("status", "--json", code=None)
    return set(json.loads(done.stdout)["roles"]) if done.returncode == 0 else set()


def test_a_running_machine_takes_up_the_role_auth_and_serves_once_it_has_all(network: Network, auth: Host) -> None:
    auth.covey("users", "add", "ann", "--admin", "--password-file", "-", typed="correct horse battery 7")
    key = auth.json("keys", "create", "--user", "ann")
    gateway = network.host("gw").join(auth.invite("gateway", "web")).ready()
    assert gateway.process is not None
    process = gateway.process.pid
    url = gateway.json("status")["urls"]
    eventually(lambda: auth.states().get("gw") == "up", 10, gateway.said)

    told = auth.covey("nodes", "promote", "gw", "--role", "auth").stdout
    assert "gw may run auth, gateway, web." in told
    eventually(lambda: "auth" in roles(gateway), 30, gateway.said)
    assert "This machine may run auth now, and starts anew to do so." in gateway.said()
    assert gateway.process.pid == process
    assert gateway.process.poll() is None
    assert gateway.json("status")["urls"] == url
    gateway.ready()  # the file is there again
    gateway.wait_said("This auth node has all accounts and keys, and serves.", 15)
    assert [one["name"] for one in gateway.json("users", "list")] == ["ann"]

    eventually(lambda: auth.states().get("gw") == "up", 15, gateway.said)
    revoked = gateway.covey("keys", "revoke", key["id"]).stdout
    assert "On the node that answered, and on: auth." in revoked
    assert gateway.stop() == 0
    gateway.start().ready()  # plain `up`, and it is an auth node still
    assert roles(gateway) == {"auth", "gateway", "web"}


def test_the_recovery_key_makes_a_gateway_the_next_auth_node(network: Network, auth: Host) -> None:
    found = re.search(r"covey1recovery[a-z2-7]+", auth.said())
    assert found
    recovery_key = found[0] + "\n"
    gateway = network.host("gw").join(auth.invite("gateway")).ready()
    eventually(lambda: auth.states().get("gw") == "up", 10, gateway.said)
    auth.kill()  # and its disk is lost
    refused = gateway.covey("nodes", "remove", "auth", "--recovery-key-file", "-", typed=recovery_key, code=1)
    assert "does not run the role auth" in refused.stderr
    wrong = gateway.covey("nodes", "promote", "gw", "--role", "auth", "--recovery-key-file", "-", typed="x", code=1)
    assert "not a recovery key" in wrong.stderr

    gateway.covey("nodes", "promote", "gw", "--role", "auth", "--recovery-key-file", "-", typed=recovery_key)
    eventually(lambda: "auth" in roles(gateway), 30, gateway.said)
    eventually(lambda: gateway.covey("users", "list", code=None).returncode == 0, 15, gateway.said)
    gateway.covey("users", "add", "ann", "--admin", "--password-file", "-", typed="correct horse battery 7")
    assert gateway.json("nodes", "remove", "auth")["removed"]
    new = network.host("new").join(gateway.invite("inference")).ready()
    eventually(lambda: gateway.states().get("new") == "up", 15, new.said)
    (said,) = [one for one in gateway.json("audit") if one["by"] == "recovery"]
    assert said["what"] == "The machine gw was admitted as auth, gateway."
    assert found[0] not in gateway.said()
