"""The plug-in in use, from a program that embeds a node: `pip install ./examples/plugin` first.

python examples/plugin/try_it.py
"""

import tempfile
from pathlib import Path

import trio
from covey_wordcount.contract import COUNT_WORDS, CountWords

import covey

CONFIG = Path(__file__).with_name("roles.toml")


async def main() -> None:
    """Ask the role, and the model of the back end."""
    with tempfile.TemporaryDirectory() as folder:
        async with covey.open_node(CONFIG, data=Path(folder)) as node:
            print((await node.bus.call(COUNT_WORDS, CountWords("three little words"))).words)
            print((await node.chat("one two three", model="reverse")).text)


if __name__ == "__main__":
    trio.run(main)
