"""Covey turns the machines you own into one private, OpenAI-compatible AI service.

To embed a node: `async with covey.open_node(config) as node: await node.chat("Hi")` in a trio program, or
`with covey.run_in_thread(config) as node: node.chat("Hi")` in any other. To add a role or a back end: `Role`,
`BackendPlugin`, and an entry point (examples/plugin). Every name is imported when it is first asked for.
"""

from typing import TYPE_CHECKING

from covey.version import __version__

if TYPE_CHECKING:
    from covey.backends.base import Backend, BackendParts, BackendPlugin
    from covey.blocking import ThreadedNode, run_in_thread
    from covey.client import Answer, Client
    from covey.config import Config
    from covey.contracts.inference import Message, Sampling
    from covey.contracts.method import Nothing, Streaming, Unary
    from covey.errors import CallError
    from covey.node import Node, RoleCrashed, open_node
    from covey.roles.base import Parts, Role

__all__ = [
    "Answer",
    "Backend",
    "BackendParts",
    "BackendPlugin",
    "CallError",
    "Client",
    "Config",
    "Message",
    "Node",
    "Nothing",
    "Parts",
    "Role",
    "RoleCrashed",
    "Sampling",
    "Streaming",
    "ThreadedNode",
    "Unary",
    "__version__",
    "open_node",
    "run_in_thread",
]

_HOMES = {
    "Answer": "covey.client",
    "Backend": "covey.backends.base",
    "BackendParts": "covey.backends.base",
    "BackendPlugin": "covey.backends.base",
    "CallError": "covey.errors",
    "Client": "covey.client",
    "Config": "covey.config",
    "Message": "covey.contracts.inference",
    "Node": "covey.node",
    "Nothing": "covey.contracts.method",
    "Parts": "covey.roles.base",
    "Role": "covey.roles.base",
    "RoleCrashed": "covey.node",
    "Sampling": "covey.contracts.inference",
    "Streaming": "covey.contracts.method",
    "ThreadedNode": "covey.blocking",
    "Unary": "covey.contracts.method",
    "open_node": "covey.node",
    "run_in_thread": "covey.blocking",
}


def __getattr__(name: str) -> object:
    """Import a public name where it lives (PEP 562): importing the package itself costs nothing."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
