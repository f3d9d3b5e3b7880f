"""An OpenAI-compatible server as it is configured: its address, its key, and the client that carries it there alone."""

import ipaddress
import os
from pathlib import Path

import httpx
import msgspec

from covey.backends.connections import tcp_connections
from covey.contracts.inference import Capability
from covey.errors import CallError

KEY_BYTES_MAX = 4_096
IDLE_MAX = 16


class Upstream(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[[backends.openai.upstreams]]`.

    Args:
        name: for people; unique.
        base_url: up to and including `/v1`.
        api_key_env: the environment variable that holds the key, or
        api_key_file: the file that holds it; neither: none is sent.
        models: patterns (`gpt-*`) of the models to offer; none: all.
        slots: requests at once per model; 0: unknown.
        capabilities: what its models can do; none: one whose name says so embeds, any other does all the rest.
        local: it is llama.cpp's server, with its extensions (`top_k`, `min_p`, exact token counts in each chunk).
        max_tokens_field: newer models of OpenAI want `max_completion_tokens`.
        connect_seconds: the longest wait for a connection.
        first_token_seconds: the longest wait for the first token.
        idle_seconds: the longest wait between tokens.
    """

    name: str
    base_url: str
    api_key_env: str = ""
    api_key_file: str = ""
    models: tuple[str, ...] = ()
    slots: int = 0
    capabilities: tuple[Capability, ...] = ()
    local: bool = False
    max_tokens_field: str = "max_tokens"
    connect_seconds: float = 5.0
    first_token_seconds: float = 120.0
    idle_seconds: float = 60.0


def read_key(upstream: Upstream) -> str:
    """The upstream's key, "" for none.

    Raises:
        CallError: `invalid`: it was promised and is not there.
    """
    if upstream.api_key_env:
        key = os.environ.get(upstream.api_key_env, "")
        if not key:
            raise CallError(
                "invalid",
                f"The upstream {upstream.name} wants its key in the environment variable {upstream.api_key_env}, which "
                "is not set.",
            )
        return key
    if not upstream.api_key_file:
        return ""
    try:
        with Path(upstream.api_key_file).expanduser().open("rb") as file:
            key = file.read(KEY_BYTES_MAX).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CallError(
            "invalid", f"The key file of {upstream.name}, {upstream.api_key_file}, cannot be read."
        ) from error
    if not key:
        raise CallError("invalid", f"The key file of {upstream.name}, {upstream.api_key_file}, is empty.")
    return key


def open_server_client(upstream: Upstream) -> httpx.AsyncClient:
    """The client of one upstream; closed by the caller.

    Raises:
        CallError: `invalid`: its URL or key is unusable.
    """
    try:
        url = httpx.URL(upstream.base_url.rstrip("/") + "/")
    except httpx.InvalidURL as error:
        raise CallError("invalid", f"The `base_url` of {upstream.name} is not a URL.") from error
    if url.scheme not in {"http", "https"} or not url.host or url.userinfo:
        raise CallError(
            "invalid", f"The `base_url` of {upstream.name} must be http(s)://HOST/v1; a key goes into `api_key_env`."
        )
    key = read_key(upstream)
    if key and url.scheme == "http" and not is_private(url.host):
        raise CallError("invalid", f"The key of {upstream.name} would cross the Internet in the clear: use https.")
    return httpx.AsyncClient(
        base_url=url,
        headers={"Authorization": f"Bearer {key}"} if key else {},
        trust_env=False,
        follow_redirects=False,
        timeout=httpx.Timeout(15.0, connect=upstream.connect_seconds),
        # Local servers close connections that they promised to keep; a handshake costs something with TLS alone.
        transport=tcp_connections(tls=url.scheme == "https", idle_max=IDLE_MAX if url.scheme == "https" else 0),
    )


def is_private(host: str) -> bool:
    """Whether a host is this machine or one of a private network: there, plain HTTP is the custom."""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return host == "localhost" or "." not in host or host.endswith((".local", ".lan", ".internal", ".home.arpa"))
