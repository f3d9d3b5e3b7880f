"""What a client sees while machines die, freeze, move and are cut off: answers or honest errors, never a hang, and
never a `[DONE]` after half an answer.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import DEAD_SECONDS, ROUNDS, Answer, Host, Trio, eventually, open_network

pytestmark = pytest.mark.slow

LONG = " ".join(f"word{number}" for number in range(400))
"""Takes the echo back end eight seconds."""
NOTICE_SECONDS = 3 * DEAD_SECONDS + 4
"""Within which a silent peer has to be given up, and others tried: three times what is promised, for busy machines."""


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Trio]:
    with open_network(tmp_path) as network:
        yield Trio(network)


def is_honest(answer: Answer) -> bool:
    """It broke, and says so."""
    return answer.status == 200 and answer.error is not None and not answer.done


def link(of: Host, to: str) -> str:
    """The path of a link, as a machine knows it."""
    found = {one["name"]: one["link"]["path"] for one in of.json("nodes", "list") if "link" in one}
    return str(found[to])


def losses(of: Host, to: str) -> int:
    """How often a machine has lost a link. It may be back, through another member, before anybody looks."""
    return of.said().count(f"The link to the node {to} is down")


def test_a_machine_dies_while_it_answers(three: Trio) -> None:
    for _ in range(ROUNDS):
        stream = three.gateway.stream(LONG).until_text()
        three.inference.kill()
        assert is_honest(stream.rest()), stream.answer
        refused = three.gateway.chat()
        assert (refused.status, refused.done) == (503, False), refused
        three.inference.start().ready()  # the same identity
        assert three.wait_service() < 5
    assert "Two machines run with the identity" not in three.explain()


def test_others_answer_instead(three: Trio) -> None:
    second = three.add_inference("inference2")
    for round_ in range(ROUNDS):
        dying = (three.inference, second)[round_ % 2]
        streams = [three.gateway.stream(LONG).until_text() for _ in range(4)]  # on both
        dying.kill()
        seen = [stream.rest() for stream in streams]
        assert all(answer.good or is_honest(answer) for answer in seen), seen
        assert any(is_honest(answer) for answer in seen), seen
        assert any(answer.good for answer in seen), seen
        after = [three.gateway.chat() for _ in range(4)]
        assert all(answer.good for answer in after), after
        dying.start().ready()
        eventually(lambda: three.serving() >= 2, 10, three.explain)


def test_a_machine_that_freezes_before_the_first_token_costs_time_alone(three: Trio) -> None:
    second = three.add_inference("inference2")
    for round_ in range(ROUNDS):
        frozen = (three.inference, second)[round_ % 2]
        frozen.freeze()
        answers = [three.gateway.chat(seconds=NOTICE_SECONDS) for _ in range(3)]
        frozen.thaw()
        assert all(answer.good for answer in answers), answers
        eventually(lambda: three.serving() >= 2, 10, three.explain)
        assert three.gateway.chat().good


def test_a_machine_that_freezes_in_an_answer_is_noticed_and_comes_back(three: Trio) -> None:
    for _ in range(ROUNDS):
        stream = three.gateway.stream(LONG, seconds=NOTICE_SECONDS).until_text()
        three.inference.freeze()
        assert is_honest(stream.rest()), stream.answer
        three.inference.thaw()
        assert three.wait_service() < 5


def test_a_black_hole_and_its_end(three: Trio) -> None:
    gateway, inference = three.gateway, three.inference
    # From both others: through one that still hears it, it would be reached again within seconds.
    roads = [road for other in (gateway, three.auth) for road in ((other, inference), (inference, other))]
    for _ in range(ROUNDS):
        stream = gateway.stream(LONG, seconds=NOTICE_SECONDS).until_text()
        for near, far in roads:
            near.ip("route", "add", "blackhole", f"{far.address}/32")
        assert is_honest(stream.rest()), stream.answer
        eventually(lambda: link(inference, "gateway") == "down", NOTICE_SECONDS, three.explain)
        refused = gateway.chat()
        assert refused.status == 503, refused
        for near, far in roads:
            near.ip("route", "del", "blackhole", f"{far.address}/32")
        assert three.wait_service() < 5  # the figure is 2 s


@pytest.mark.parametrize("deaf", ["gateway", "inference"])
def test_a_cut_in_one_direction(three: Trio, deaf: str) -> None:
    pair = (three.gateway, three.inference)
    lost, hearing = pair if deaf == "inference" else pair[::-1]
    for _ in range(ROUNDS):
        before = losses(three.inference, "gateway")
        stream = three.gateway.stream(LONG, seconds=NOTICE_SECONDS).until_text()
        three.network.cut(lost, hearing, one_way=True)
        assert is_honest(stream.rest()), stream.answer
        eventually(lambda before=before: losses(three.inference, "gateway") > before, NOTICE_SECONDS, three.explain)
        three.network.heal(*pair)
        assert three.wait_service() < 5


def test_the_auth_machine_is_cut_off_and_comes_back(three: Trio) -> None:
    """The gateway goes on under its lease: it checks keys in its own copy."""
    for other in (three.gateway, three.inference):  # or it would be reached through the one that still hears it
        three.network.cut(three.auth, other)
    eventually(lambda: three.gateway.states()["auth"] == "down", NOTICE_SECONDS, three.explain)
    answer = three.gateway.chat()
    assert answer.good, answer
    assert three.gateway.states()["auth"] == "down"
    three.network.heal(three.auth, three.gateway, three.inference)
    eventually(lambda: three.gateway.states()["auth"] == "up", NOTICE_SECONDS, three.explain)
    assert three.gateway.chat().good


def test_a_machine_moves_to_another_address(three: Trio) -> None:
    for round_ in range(ROUNDS):
        three.inference.move(f"10.77.0.{100 + round_}")
        assert three.wait_service(NOTICE_SECONDS) < NOTICE_SECONDS
        three.inference.wait_said(f"can now be reached at: /ip4/{three.inference.address}/", 10)
    three.gateway.kill()  # what was learnt is on its disk
    three.gateway.start().ready()
    three.wait_service()


def test_everybody_starts_anew(three: Trio) -> None:
    for host in (three.gateway, three.auth, three.inference):
        assert host.stop() == 0
    for host in (three.inference, three.gateway, three.auth):
        host.start()
    for host in (three.inference, three.gateway, three.auth):
        host.ready()
    three.wait_service(20)
