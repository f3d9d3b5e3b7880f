"""The official client of Ollama with its traps closed: timeouts, credentials, and six families of exceptions."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx
import msgspec
import trio

from covey.backends.connections import tcp_connections
from covey.backends.refusals import context_exceeded
from covey.backends.sse_client import describe
from covey.errors import CallError
from covey.telemetry.logs import redact

if TYPE_CHECKING:
    import ollama

OLLAMA_PORT = 11434
TOKENS_MAX = 2**31
"""What one answer can have at most: beyond it a server is not believed."""


class OllamaConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[backends.ollama]`.

    Args:
        url: of the server.
        slots: requests at once per model; Ollama's own `OLLAMA_NUM_PARALLEL`. 0: unknown.
        refresh_seconds: how often it is asked for its models.
        connect_seconds: the longest wait for a connection.
        first_token_seconds: the longest wait for the first token: Ollama loads the model before it.
        idle_seconds: the longest wait between tokens.
    """

    url: str = "http://127.0.0.1:11434"
    slots: int = 4
    refresh_seconds: float = 5.0
    connect_seconds: float = 2.0
    first_token_seconds: float = 300.0
    idle_seconds: float = 60.0


@contextmanager
def translated() -> Generator[None, None, None]:
    """Turn whatever the client raises into a `CallError`."""
    import ollama

    try:
        yield
    except ollama.ResponseError as error:
        raise refusal(error.status_code, redact(" ".join(str(error.error).split()))[:300]) from error
    except (ConnectionError, httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise absent() from error
    except httpx.HTTPError as error:
        raise CallError("upstream", f"Ollama broke off its answer ({describe(error)}).") from error
    except (ValueError, RecursionError, TypeError, AttributeError) as error:
        # Not JSON, JSON of another shape (pydantic's), or too deep; the last two: the client takes JSON that is not an
        # object for one.
        raise CallError("upstream", "Ollama sent something that is not its protocol.") from error


def counted(tokens: int | None) -> int:
    """What a server says it has counted; 0: nothing.

    Raises:
        CallError: `upstream`: nobody can have counted that.
    """
    if not 0 <= (tokens or 0) <= TOKENS_MAX:
        raise CallError("upstream", "Ollama says that it counted an impossible number of tokens.")
    return tokens or 0


def absent() -> CallError:
    """Nobody is there."""
    return CallError("upstream", "Ollama cannot be reached; is it running?", reason="unreachable")


async def anybody_at(url: str, seconds: float) -> bool:
    """Whether something takes connections there, in time; errors as `server_of`."""
    host, port = server_of(url)
    try:
        with trio.fail_after(seconds):
            stream = await trio.open_tcp_stream(host, port)
    except (OSError, trio.TooSlowError):
        return False
    await stream.aclose()
    return True


def server_of(url: str) -> tuple[str, int]:
    """Host and port of a URL, which may lack its scheme, as in `OLLAMA_HOST`.

    Raises:
        CallError: `invalid`: it is no URL of a web server.
    """
    plain = "://" not in url
    try:
        parsed = httpx.URL(f"http://{url}" if plain else url)
    except httpx.InvalidURL as error:
        raise CallError("invalid", f"[backends.ollama] url {url[:200]!r} is no URL ({error}).") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise CallError(
            "invalid", f"[backends.ollama] url {url[:200]!r} is no URL like http://127.0.0.1:{OLLAMA_PORT}."
        )
    return parsed.host, parsed.port or (OLLAMA_PORT if plain else 443 if parsed.scheme == "https" else 80)


def refusal(status: int, message: str) -> CallError:
    """What an error of Ollama's means; its status is -1 inside a stream."""
    said = f": {message}" if message else ""
    if status == 404 or "not found" in message:
        return CallError("not_found", f"Ollama does not have this model{said}", reason="model_not_found")
    if "context length" in message or "context window" in message:
        return context_exceeded(0, 0, message)
    if status == 503:
        return CallError("no_capacity", f"Ollama is busy{said}", retry_after_seconds=5.0)
    if status == 400:
        return CallError("invalid", f"Ollama refused the request{said}")
    return CallError("upstream", f"Ollama failed{said}")


def open_ollama_client(config: OllamaConfig) -> "ollama.AsyncClient":
    """The official client with its traps closed; closed by the caller."""
    import ollama

    async def drop_credentials(request: httpx.Request) -> None:
        # The client takes OLLAMA_API_KEY from the environment and sends it to whatever host it is given.
        request.headers.pop("authorization", None)

    timeout = httpx.Timeout(config.first_token_seconds, connect=config.connect_seconds, write=30.0, pool=10.0)
    return ollama.AsyncClient(
        config.url,
        timeout=timeout,
        trust_env=False,
        follow_redirects=False,
        event_hooks={"request": [drop_credentials]},
        transport=tcp_connections(tls=config.url.startswith("https://")),
    )
