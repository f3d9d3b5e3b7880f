"""A node within a program that knows nothing of trio: plain threads, and asyncio.

python examples/blocking.py
"""

import asyncio
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import covey

CONFIG: Mapping[str, Any] = {"inference": {"backends": ["echo"]}}


async def ask_three(node: covey.ThreadedNode) -> list[str]:
    """From asyncio: every call that would block goes into a thread, and they run side by side."""
    answers = await asyncio.gather(*(asyncio.to_thread(node.chat, f"question {number}") for number in (1, 2, 3)))
    return [answer.text for answer in answers]


def main() -> None:
    """The node lives in a thread of its own, as long as the block."""
    with tempfile.TemporaryDirectory() as folder, covey.run_in_thread(CONFIG, data=Path(folder)) as node:
        print(node.chat("Hello from a plain program").text)

        with node.stream_chat("in pieces as they come") as chunks:
            for text in chunks:
                print(repr(text))
        print(chunks.finish)

        print(asyncio.run(ask_three(node)))
        print([model.name for model in node.models()])


if __name__ == "__main__":
    main()
