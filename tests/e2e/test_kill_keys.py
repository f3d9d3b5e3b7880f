"""`kill -9` of the whole node while keys are being made: every key that was answered works afterwards."""

import random
import subprocess
import threading
import time
from pathlib import Path

import httpx
import pytest
from running import COVEY, ECHO, NodeProcess, place_for

ROUNDS = 50
SEED = 20261123


@pytest.mark.slow
def test_every_key_that_was_shown_works_after_kill_9(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    shown: list[str] = []
    with place_for(tmp_path, config=ECHO) as place:
        node = place.start("--role", "auth", "--role", "gateway", "--role", "inference").wait_ready()
        try:
            node.add_user("ann")
            for _ in range(ROUNDS):
                made = make_keys_until_killed(node, chance.uniform(0.05, 0.4))
                shown.extend(made)
                node.end()
                node = place.start("--role", "auth", "--role", "gateway", "--role", "inference").wait_ready()
                assert all(works(node, key) for key in made)
            assert len(shown) >= ROUNDS, f"only {len(shown)} keys were made: the test kills too early"
            assert all(works(node, key) for key in shown)
            node.stop()
            assert "is sound" in place.covey("store", "check").stdout
        finally:
            node.end()


def make_keys_until_killed(node: NodeProcess, seconds: float) -> list[str]:
    """Make keys as fast as one process can, over the node's socket; kill the node after a while."""
    program = (
        "import sys, trio, pathlib\n"
        "from covey.control import connect\n"
        "async def main():\n"
        "    async with connect(pathlib.Path(sys.argv[1])) as client:\n"
        "        print('connected', flush=True)\n"
        "        while True:\n"
        "            print((await client.create_key('ann')).key, flush=True)\n"
        "trio.run(main)\n"
    )
    python = Path(COVEY[0]).with_name("python")
    maker = subprocess.Popen(
        [str(python), "-c", program, str(node.data)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=node.place.environment,
    )  # fmt: skip
    assert maker.stdout is not None
    assert maker.stdout.readline().strip() == "connected"

    def kill_later() -> None:
        time.sleep(seconds)  # the moment of the power cut is the input of this test
        node.process.kill()

    killer = threading.Thread(target=kill_later)
    killer.start()
    keys = [line.strip() for line in maker.stdout if line.endswith("\n")]
    killer.join()
    maker.wait()
    maker.stdout.close()
    return keys


def works(node: NodeProcess, key: str) -> bool:
    return httpx.get(f"{node.url}/v1/models", headers={"authorization": f"Bearer {key}"}).status_code == 200
