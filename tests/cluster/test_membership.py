"""Coming in, staying out and being thrown out, with real machines."""

from collections.abc import Iterator
from pathlib import Path
from shutil import copytree

import pytest
from hosts import Host, Network, Trio, eventually, open_network

from covey.cluster.invites import format_invite, parse_invite

pytestmark = pytest.mark.slow


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    with open_network(tmp_path) as one:
        yield one


@pytest.fixture
def auth(network: Network) -> Host:
    return network.host("auth").start("--role", "auth").ready()


def refused(host: Host) -> str:
    """Why a start came to nothing, in its one line."""
    assert host.ended() == 1, host.said()
    lines = [line for line in host.said().splitlines() if line.startswith("covey: ")]
    assert "Traceback" not in host.said()
    assert len(lines) == 1, host.said()
    return lines[0]


def test_a_bad_invite_is_refused_with_what_to_do(network: Network, auth: Host) -> None:
    token = auth.invite("inference")
    used = auth.invite("inference")
    network.host("first").join(used).ready()
    revoked = auth.json("invite")
    auth.covey("invite", "revoke", revoked["id"])
    short = auth.json("invite", "--expires", "1s")
    good = parse_invite(token)
    forged = type(good)(good.network_id, good.issuer, good.addresses, ("auth",), good.expires_at, bytes(20))
    other = network.host("stranger").start("--role", "auth").ready().invite("inference")
    foreign = parse_invite(other)
    mixed = type(good)(foreign.network_id, good.issuer, good.addresses, good.roles, good.expires_at, good.secret)
    wrong_key = type(good)(good.network_id, foreign.issuer, good.addresses, good.roles, good.expires_at, good.secret)
    cases = {
        "truncated": (token[:-7], "incomplete or damaged"),
        "garbage": ("hello", "begins with covey1"),
        "used": (used, "was used by first"),
        "revoked": (revoked["token"], "was revoked"),
        "forged": (format_invite(forged), "not one of this node's"),
        "mixed": (format_invite(mixed), "another network"),
        "wrong-key": (format_invite(wrong_key), "cannot be reached"),
        "expired": (short["token"], "expired"),
    }
    for name, (line, why) in cases.items():
        host = network.host(name).join(line)
        assert why in refused(host), name
        assert line not in host.said()  # it holds a secret
    for name in ("forged", "mixed", "revoked", "used"):
        assert f"was not let in: {cases[name][1]}" in auth.said() or cases[name][1] in auth.said(), name

    late = network.host("late").join(token).ready()  # none of that has burnt it
    eventually(lambda: auth.states().get("late") == "up", 10, late.said)
    assert {one["used"][0]["name"] for one in auth.json("invite", "list") if one["used"]} == {"first", "late"}


def test_who_has_people_of_its_own_joins_only_with_replace(network: Network, auth: Host) -> None:
    host = network.host("beta").start().ready()
    host.covey("users", "add", "ann", "--admin", "--password-file", "-", typed="correct horse battery 7")
    assert host.stop() == 0
    first = host.said()
    token = auth.invite("inference")
    host.join(token)
    assert host.ended() == 1
    assert "--replace" in host.said().removeprefix(first)
    host.join(token, "--replace").ready()
    eventually(lambda: auth.states().get("beta") == "up", 10, host.said)
    assert len(list(host.data.glob("replaced-*"))) == 1
    assert host.stop() == 0
    host.start().ready()  # plain `up`, with what it was invited for
    assert host.json("status")["roles"] == ["inference"]


def test_roles_are_those_that_were_granted(network: Network, auth: Host) -> None:
    alone = network.host("alone").start("--role", "inference")
    assert "covey invite --role inference" in refused(alone)
    assert "covey join TOKEN" in alone.said()
    beta = network.host("beta").join(auth.invite("inference"), "--role", "gateway")
    assert "admitted as inference, not as gateway" in refused(beta)
    beta.start().ready()
    again = auth.invite("gateway")  # a member uses another invite: it may do more from then on
    assert beta.stop() == 0
    beta.join(again).ready()
    assert set(beta.json("status")["roles"]) == {"gateway", "inference"}
    assert [one["uses_left"] for one in auth.json("invite", "list") if "gateway" in one["roles"]] == [0]
    assert beta.stop() == 0
    beta.join(again).ready()  # does no harm, also where the machine that made it is away
    assert beta.stop() == 0
    beta.start().ready()
    assert set(beta.json("status")["roles"]) == {"gateway", "inference"}


def test_a_member_is_not_moved_to_another_network_unasked_nor_by_an_invite_that_fails(
    network: Network, auth: Host, tmp_path: Path
) -> None:
    beta = network.host("beta").join(auth.invite("inference")).ready()
    peer_id = beta.json("status")["peer_id"]
    assert beta.stop() == 0
    other = network.host("other").start("--role", "auth").ready()
    token = other.invite("inference")
    assert "--replace" in refused(beta.join(token))
    assert other.stop() == 0
    assert beta.join(token, "--replace").ended() == 1
    assert "cannot be reached" in beta.said()
    assert not list(beta.data.glob("replaced-*"))
    beta.start().ready()
    assert beta.json("status")["peer_id"] == peer_id
    eventually(lambda: auth.states().get("beta") == "up", 10, beta.said)


def test_two_machines_that_want_one_name_get_two(network: Network, auth: Host) -> None:
    first = network.host("beta").join(auth.invite("inference"))
    second = network.host("gamma")
    second.join(auth.invite("inference"), "--name", "beta")
    first.ready(), second.ready()
    eventually(lambda: sorted(auth.states()) == ["auth", "beta", "beta-2"], 10, auth.said)
    taken = auth.covey("nodes", "rename", "beta-2", "BETA", code=1).stderr
    assert "Another node is called BETA" in taken
    assert {first.json("status")["node"], second.json("status")["node"]} == {"beta", "beta-2"}


def test_a_removed_machine_is_cut_off_at_once_and_for_good(tmp_path: Path) -> None:
    with open_network(tmp_path) as network:
        three = Trio(network)
        second = three.add_inference("inference2")
        second.freeze()
        three.auth.covey("nodes", "remove", "inference2")  # it hears of it later
        stream = three.gateway.stream(" ".join("x" * 300)).until_text()
        three.auth.covey("nodes", "remove", "inference")
        three.inference.wait_said("was removed from its network", 2)
        eventually(lambda: "The node inference was removed; its link is cut." in three.gateway.said(), 2, three.explain)
        answer = stream.rest()
        assert answer.error is not None
        assert not answer.done
        assert three.gateway.chat().status == 503
        assert "inference" not in three.gateway.states()
        second.thaw()
        second.wait_said("was removed from its network", 15)
        assert "removed" in three.inference.json("status")["removed"]

        for host in (three.inference, second):
            assert host.stop() == 0
            host.start()
            assert host.ended() == 1
            assert "covey: This machine was removed from its network" in host.said()
            assert host.said().count("error   cluster.standing") == 1
        three.inference.join(three.auth.invite("inference"), "--replace").ready()
        three.wait_service()


def test_a_copied_identity_is_refused_and_both_are_told(tmp_path: Path) -> None:
    with open_network(tmp_path) as network:
        three = Trio(network)
        thief = network.host("thief")
        copytree(three.inference.data, thief.data)
        (thief.data / "control.json").unlink()
        thief.start("--role", "inference").ready()
        for host in (thief, three.inference, three.auth, three.gateway):
            host.wait_said("Two machines run with the identity of inference", 10)
        for _ in range(5):
            assert three.gateway.chat().good
        links = {one["name"]: one["link"] for one in three.gateway.json("nodes", "list") if "link" in one}
        assert three.inference.address in links["inference"]["address"]
        said = thief.said().count("Two machines run")
        assert said <= 4, thief.said()  # each peer is heard once, not at every try

        three.inference.kill()  # an honest move of the disk into another machine
        three.wait_service()


SHIM = """
from covey.bus import wire
wire.VERSION, wire.VERSION_OLDEST = {version}, {oldest}
"""


@pytest.mark.parametrize(("version", "oldest"), [(2, 1), (9, 8)], ids=["neighbour", "too far"])
def test_releases_work_together_or_say_which_to_upgrade(
    network: Network, auth: Host, version: int, oldest: int
) -> None:
    host = network.host("newer")
    shim = host.folder / "shim"
    shim.mkdir()
    (shim / "sitecustomize.py").write_text(SHIM.format(version=version, oldest=oldest))
    host.environment["PYTHONPATH"] = ":".join(filter(None, [str(shim), host.environment.get("PYTHONPATH", "")]))
    host.join(auth.invite("inference")).ready()
    if oldest == 1:
        eventually(lambda: auth.states().get("newer") == "up", 10, host.said)
        return
    host.wait_said("upgrade the node auth", 10)
    auth.wait_said("upgrade this node", 10)
    assert auth.states()["newer"] == "down"
    assert auth.said().count("upgrade this node") == 1  # once, not at every try
