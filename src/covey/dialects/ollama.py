"""Ollama's API, as a server speaks it: chats, completions, embeddings, and what tells of the models that there are.

Source: Ollama's API reference (docs/api.md) and its Go types (api/types.go). Unknown fields are ignored, as Ollama
does; a known one that we cannot honour is refused by name, but for those that `ollama_options` names.
"""

from covey.dialects.ollama_chat import parse_chat
from covey.dialects.ollama_embed import parse_embed, parse_embeddings
from covey.dialects.ollama_generate import parse_generate
from covey.dialects.ollama_models import parse_show, running, shown, tags, version
from covey.dialects.ollama_problems import error_body
from covey.dialects.ollama_writer import PING

__all__ = [
    "PING",
    "error_body",
    "parse_chat",
    "parse_embed",
    "parse_embeddings",
    "parse_generate",
    "parse_show",
    "running",
    "shown",
    "tags",
    "version",
]
