"""A machine that can only dial out serves as well as any."""

from pathlib import Path

import pytest
from hosts import ECHO, NETWORK, eventually, open_network

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
