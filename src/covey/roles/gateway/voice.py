"""How each family of clients is spoken to: what an error's body is, and what a stream is made of. Pure."""

from collections.abc import Callable
from dataclasses import dataclass

from covey.dialects import anthropic, ollama, sse
from covey.dialects.problems import openai_body
from covey.errors import CallError
from covey.http.asgi import Headers
from covey.http.sse import HEADERS as EVENT_HEADERS


@dataclass(frozen=True, slots=True)
class Voice:
    """One family.

    Args:
        error_body: of an answer that is but an error.
        stream_headers: of a stream.
        ping: keeps a silent stream open; "" where the format knows nothing of the kind.
        any_content_type: bodies are taken whatever they are said to be.
        id_header: what these clients call the request's id, beside `x-request-id`.
    """

    error_body: Callable[[CallError], bytes]
    stream_headers: Headers
    ping: bytes
    any_content_type: bool = False
    id_header: bytes = b""


OPENAI = Voice(openai_body, EVENT_HEADERS, sse.PING)
ANTHROPIC = Voice(anthropic.error_body, EVENT_HEADERS, anthropic.PING, id_header=b"request-id")
OLLAMA = Voice(ollama.error_body, [(b"content-type", b"application/x-ndjson")], ollama.PING, any_content_type=True)
