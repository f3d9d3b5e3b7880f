"""The child process that runs llama.cpp (xllamacpp): one model, one Unix socket, gone when standard input ends.

A process of its own, because a CPU without AVX2 dies of an illegal instruction and a corrupt file can crash the
engine: either must cost one model and not the node. Standard input brings one line of JSON (`Orders`); standard output
answers with one line, `{"url": ...}` or `{"error": ...}`. Then the end of standard input, which comes even when the
parent was killed, ends the process: nothing is ever orphaned.

Run by path, so that it imports nothing of Covey.
"""

import json
import os
import shutil
import sys
from importlib import import_module
from typing import Any, TypedDict


class Orders(TypedDict):
    """What the parent wants: `folder` is private, holds the socket and is removed at the end."""

    model: str
    alias: str
    folder: str
    context_tokens: int
    slots: int
    batch_tokens: int
    threads: int
    cache_mib: int
    gpu_layers: int


def parameters(engine: Any, orders: Orders) -> Any:
    """The parameters for these orders; `engine` is the module xllamacpp, whose extension has no types."""
    made = engine.CommonParams()
    made.model.path = orders["model"]
    made.model_alias = {orders["alias"]}
    made.n_parallel = orders["slots"]
    made.n_ctx = orders["context_tokens"] * orders["slots"]  # slots divide the context among them
    # Cancelling while a prompt is evaluated takes effect between batches only.
    made.n_batch = made.n_ubatch = orders["batch_tokens"]
    made.cpuparams.n_threads = made.cpuparams_batch.n_threads = orders["threads"]
    made.n_gpu_layers = orders["gpu_layers"]
    made.cache_ram_mib = orders["cache_mib"]
    made.hostnames = [os.path.join(orders["folder"], "engine.sock")]  # noqa: PTH118
    made.ui = False
    made.endpoint_slots = True
    made.verbosity = 1
    return made


def main() -> None:
    """Serve until standard input ends."""
    orders: Orders = json.loads(sys.stdin.readline())
    try:
        engine: Any = import_module("xllamacpp")  # only here: whoever imports this module does not want its weight
        server: Any = engine.Server(parameters(engine, orders))
    except (RuntimeError, ValueError, ImportError, OSError) as error:
        say({"error": " ".join(str(error).split())[:500] or type(error).__name__})
        raise SystemExit(3) from error
    say({"url": server.listening_address})
    sys.stdin.read()
    shutil.rmtree(orders["folder"], ignore_errors=True)
    os._exit(0)  # the engine's own shutdown waits for answers that nobody reads any more


def say(line: dict[str, str]) -> None:
    """One line of JSON to the parent."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
